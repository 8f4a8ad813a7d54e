"""Models from Hugging Face: downloaded with progress, resumed after a break, taken from the cache when offline."""

import re
from pathlib import Path
from typing import NoReturn

from tunewright.errors import RunError, UsageError
from tunewright.models.cache import Notify, to_stderr
from tunewright.models.load import first_line

# Weights are safetensors or nothing: a pickle file could run code.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
# Second copies of the weights in other layouts, and companions that no training needs.
_UNWANTED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "*/onnx/*", "*.ot", "*.msgpack"]


def hub_folder(name: str, revision: str | None, notify: Notify = to_stderr) -> tuple[Path, str]:
    """(folder in the Hugging Face cache, commit) of model `name`.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured as everywhere. When the hub cannot be
    reached, a copy in the cache is used with a notice. Raises UsageError for a model that is not there or not open
    to the user, RunError when the network fails and there is no copy.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # imported there, from httpx or httpx2

    where = f"{name}{f' at {revision}' if revision else ''}"

    def download(offline: bool) -> tuple[Path, str]:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=offline
        )
        return Path(folder), Path(folder).name  # snapshots/<commit>

    def cached(reason: str) -> tuple[Path, str]:
        try:
            found = download(offline=True)
        except errors.LocalEntryNotFoundError as error:
            raise RunError(
                f"{where}: {reason} and there is no complete copy in the cache ({constants.HF_HUB_CACHE}); "
                "go online and try again (files that arrived whole are kept), or give a local folder"
            ) from error
        notify(f"{where}: {reason}; using the copy in the cache")
        return found

    if constants.HF_HUB_OFFLINE:
        return cached("HF_HUB_OFFLINE is set")
    try:
        return download(offline=False)
    except errors.HFValidationError as error:
        raise UsageError(f"model: {name!r} is no valid hub id ({error}); the form is owner/name") from error
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        _refuse(name, where, error)
    except errors.LocalEntryNotFoundError:
        return cached(f"{constants.ENDPOINT} cannot be reached")
    except (HTTPError, OSError) as error:
        return cached(f"the download from {constants.ENDPOINT} failed ({_without_request_id(error)})")


def _refuse(name: str, where: str, error: Exception) -> NoReturn:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, errors.GatedRepoError):
        reason = f"the model is gated; accept its terms on {page}, then run `hf auth login` or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"there is no such branch, tag or commit; see {page}/tree/main, or leave model.revision out"
    else:
        reason = (
            f"not found on {constants.ENDPOINT}, and no such local folder; check the spelling "
            "(a private model needs `hf auth login` or HF_TOKEN)"
        )
    raise UsageError(f"model: {where}: {reason}") from error


def _without_request_id(error: Exception) -> str:
    return re.sub(r"\s*\(Request ID:.*?\)", "", first_line(error))
