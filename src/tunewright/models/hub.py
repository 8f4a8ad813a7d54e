"""Models from Hugging Face: downloaded with progress, resumed after a break, taken from the cache when offline."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tunewright.errors import RunError, UsageError
from tunewright.models.cache import Notify, to_stderr
from tunewright.models.load import first_line

# Weights are safetensors or nothing: a pickle file could run code.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
# Second copies of the weights in other layouts, and companions that no training needs.
_UNWANTED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "*/onnx/*", "*.ot", "*.msgpack"]


class Away(Exception):
    """A hub did not answer; the message says why, as the middle of a sentence."""


def hub_folder(name: str, revision: str | None, notify: Notify = to_stderr) -> tuple[Path, str]:
    """(folder in the Hugging Face cache, commit) of model `name`.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured as everywhere. When the hub cannot be
    reached, a copy in the cache is used with a notice. Raises UsageError for a model that is not there or not open
    to the user, RunError when the network fails and there is no copy.
    """
    from huggingface_hub import constants, snapshot_download

    def download(offline: bool) -> tuple[Path, str]:
        with asking_huggingface("model", name, revision, "model"):
            folder = snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED, local_files_only=offline
            )
        return Path(folder), Path(folder).name  # snapshots/<commit>

    where = f"{name}{f' at {revision}' if revision else ''}"
    try:
        if constants.HF_HUB_OFFLINE:
            raise Away("HF_HUB_OFFLINE is set")
        return download(offline=False)
    except Away as fault:
        try:
            found = download(offline=True)
        except Away:
            raise RunError(
                f"{where}: {fault} and there is no complete copy in the cache ({constants.HF_HUB_CACHE}); "
                "go online and try again (files that arrived whole are kept), or give a local folder"
            ) from fault
        notify(f"{where}: {fault}; using the copy in the cache")
        return found


@contextmanager
def asking_huggingface(what: Literal["model", "data set"], name: str, revision: str | None, key: str) -> Iterator[None]:
    """What Hugging Face refuses is a UsageError that names the config's `key`, what keeps it from answering is Away."""
    from huggingface_hub import constants, errors

    # hub versions stand on different HTTP libraries (httpx, httpx2) and import this name from theirs
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # imported there, not exported

    where = f"{key}: {name}{f' at {revision}' if revision else ''}"
    page = f"{constants.ENDPOINT}/{'datasets/' if what == 'data set' else ''}{name}"
    try:
        yield
    except errors.HFValidationError as error:
        raise UsageError(f"{key}: {name!r} is no valid hub id ({error}); the form is owner/name") from error
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{where}: the {what} is gated; accept its terms on {page}, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(
            f"{where}: there is no such branch, tag or commit; see {page}/tree/main, or leave {key}.revision out"
        ) from error
    except errors.RepositoryNotFoundError as error:
        nor_here = ", and no such local folder" if what == "model" else ""
        raise UsageError(
            f"{where}: not found on {constants.ENDPOINT}{nor_here}; check the spelling "
            f"(a private {what} needs `hf auth login` or HF_TOKEN)"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise Away("HF_HUB_OFFLINE is set") from error
    except errors.LocalEntryNotFoundError as error:
        raise Away(f"{constants.ENDPOINT} cannot be reached") from error
    except (HTTPError, OSError, errors.EntryNotFoundError) as error:
        raise Away(f"the download from {constants.ENDPOINT} failed ({what_hub_said(error)})") from error


def what_hub_said(error: Exception) -> str:
    """The first line of a hub library's error, without the number that its server gave the request."""
    return re.sub(r"\s*\(Request ID:.*?\)", "", first_line(error))
