"""Data sets on Hugging Face and ModelScope: their data files are downloaded and then read like any others.

A data set that was used once is used again without the hub: the list of its files is kept in the cache beside them.
Nothing of a data set is ever executed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from tunewright.config.schema import SourceConfig
from tunewright.data.splits import choose_files
from tunewright.errors import RunError, UsageError
from tunewright.models.cache import Notify, cache_root, to_stderr
from tunewright.models.hub import Away, asking_huggingface, what_hub_said


class Listing(NamedTuple):
    """What a hub says of a data set: the commit (or branch, where it names none) and all its files."""

    revision: str
    names: list[str]


class Hub(NamedTuple):
    """How one hub is asked; each function raises UsageError, `Away` where the hub can't be reached."""

    endpoint: str
    list_files: Callable[[], Listing]
    fetch: Callable[[str, str, bool], Path]  # (name, revision, offline) -> file


def hub_files(source: SourceConfig, key: str, notify: Notify = to_stderr) -> list[tuple[Path, str]]:
    """(file in the hub's own cache, name for messages) of each data file of a data set, in order.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and ModelScope's `MODELSCOPE_ENDPOINT`, `MODELSCOPE_CACHE`,
    `MODELSCOPE_API_TOKEN` are honoured. Raises UsageError for a data set that is not there, not open to the user or
    unclear, RunError when the hub can't be reached and there is no complete copy.
    """
    if source.path.count("/") != 1 or not all(source.path.split("/")):
        raise UsageError(f"{key}: {source.path!r} is no valid id of a data set on a hub; the form is owner/name")
    hub = {"huggingface": _huggingface, "modelscope": _modelscope}[source.source](source, key)
    record = _record(source, hub.endpoint)
    where = f"{source.path}{f' at {source.revision}' if source.revision else ''}"
    try:
        listing = hub.list_files()
        readme = None
        if "README.md" in listing.names:
            readme = hub.fetch("README.md", listing.revision, False).read_text(encoding="utf-8", errors="replace")
        names = choose_files(
            listing.names, readme, where, key, notify,
            subset=source.subset, split=source.split, folder=source.folder,
        )  # fmt: skip
        paths = [hub.fetch(name, listing.revision, False) for name in names]
    except Away as fault:
        found = _from_cache(record, hub)
        if found is None:
            raise RunError(
                f"{where}: {fault} and there is no complete copy in the cache; go online and try again "
                f"(files that arrived whole are kept), or give local files"
            ) from fault
        notify(f"{where}: {fault}; using the copy in the cache")
        return [(path, f"{source.path}/{name}") for path, name in found]
    _remember(record, Listing(listing.revision, names))
    return [(path, f"{source.path}/{name}") for path, name in zip(paths, names, strict=True)]


def _record(source: SourceConfig, endpoint: str) -> Path:
    """Where the list of a data set's files is kept."""
    identity = [
        source.source, endpoint, source.path, source.revision, source.subset, source.split, source.folder
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_root() / "hub-sets" / f"{digest[:32]}.json"


def _remember(record: Path, listing: Listing) -> None:
    aside = record.with_name(f"{record.name}.{os.getpid()}.tmp")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps({"revision": listing.revision, "files": listing.names}), encoding="utf-8")
        os.replace(aside, record)
    except OSError as fault:
        raise RunError(f"{record}: cannot be written ({fault.strerror or fault})") from fault
    finally:
        aside.unlink(missing_ok=True)


def _from_cache(record: Path, hub: Hub) -> list[tuple[Path, str]] | None:
    try:
        known = json.loads(record.read_bytes())
        return [(hub.fetch(name, known["revision"], True), name) for name in known["files"]]
    except (OSError, ValueError, KeyError, TypeError, Away):
        return None


def _huggingface(source: SourceConfig, key: str) -> Hub:
    from huggingface_hub import HfApi, constants, hf_hub_download

    def asking() -> AbstractContextManager[None]:
        return asking_huggingface("data set", source.path, source.revision, key)

    def list_files() -> Listing:
        with asking():
            info = HfApi().dataset_info(source.path, revision=source.revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        return Listing(str(info.sha), names)

    def fetch(name: str, revision: str, offline: bool) -> Path:
        with asking():
            file = hf_hub_download(source.path, name, repo_type="dataset", revision=revision, local_files_only=offline)
        return Path(file)

    return Hub(constants.ENDPOINT, list_files, fetch)


def _modelscope(source: SourceConfig, key: str) -> Hub:
    try:
        from modelscope_hub import HubApi, errors, get_default_config
    except ModuleNotFoundError:
        raise UsageError(
            f"{key}.source: modelscope needs a library that is not installed: pip install 'tunewright[modelscope]'"
        ) from None

    api = HubApi()
    endpoint = str(get_default_config().endpoint)
    checksums: dict[str, str] = {}

    @contextmanager
    def asking() -> Iterator[None]:
        at = f" at {source.revision}" if source.revision else ""
        try:
            yield
        except (errors.NotExistError, errors.InvalidParameter) as error:
            reason = f"not found on {endpoint} ({what_hub_said(error)}); check the spelling"
            raise UsageError(f"{key}: {source.path}{at}: {reason}, and {key}.revision where it is set") from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            reason = "the data set is not open to you; run `modelscope login` or set MODELSCOPE_API_TOKEN"
            raise UsageError(f"{key}: {source.path}{at}: {reason}") from error
        except (errors.HubError, OSError) as error:
            raise Away(f"the download from {endpoint} failed ({what_hub_said(error)})") from error

    def list_files() -> Listing:
        revision = source.revision or "master"
        with asking():
            files = [
                file for file in api.list_repo_files(source.path, "dataset", revision=revision) if file.type != "tree"
            ]
        checksums.update({file.path: file.sha256 for file in files if file.sha256})
        return Listing(revision, [file.path for file in files])

    def fetch(name: str, revision: str, offline: bool) -> Path:
        with asking():
            return api.download_file(
                source.path,
                "dataset",
                name,
                revision=revision,
                local_files_only=offline,
                expected_sha256=checksums.get(name),  # a branch moves on: a copy of yesterday's file is no hit
            )

    return Hub(endpoint, list_files, fetch)
