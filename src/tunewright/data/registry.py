"""LLaMA-Factory's registry of data sets, `dataset_info.json`, read as it is: entries -> sources.

Each key means what it means there: the first of a hub's address, `script_url`, `cloud_file_name` and `file_name` is
where the rows are; `columns`, once given, leaves those it does not list unread; `num_samples` draws at random. What
that program passes over in silence is refused in words here: unknown spellings of keys, pictures and sounds, code.
Tags that `tags` does not list keep their usual names (there they turn into nothing, and rows are lost).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.config.schema import ColumnsConfig, DataConfig, SourceConfig, TagsConfig
from tunewright.data.column_names import MEDIA
from tunewright.data.suggest import nearest
from tunewright.errors import UsageError

FILE = "dataset_info.json"
ONLINE = "ONLINE"
REMOTE = "REMOTE:"
HUBS = {"hf_hub_url": "huggingface", "ms_hub_url": "modelscope"}
COMMON = {"system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}
ALPACA = {**COMMON, "prompt": "prompt", "query": "query", "response": "response", "history": "history"}
TURNS = {**COMMON, "messages": "messages"}
TAGS = tuple(TagsConfig.model_fields)
KEYS = (
    *HUBS, "om_hub_url", "script_url", "cloud_file_name", "file_name", "file_sha1", "formatting", "ranking", "subset",
    "split", "folder", "revision", "num_samples", "columns", "tags",
)  # fmt: skip


def expand_registry(data: DataConfig, base: Path) -> list[SourceConfig]:
    """All sources to train on: `data.train`, and the sets of `data.registry` that `data.use` names.

    Relative paths start at `base`. Raises UsageError for a registry that can't be read, for names that are not in it,
    and for entries that can't be used.
    """
    if data.registry is None:
        if data.use:
            raise UsageError("data.use names sets of a registry: give its file, data.registry: path/dataset_info.json")
        return list(data.train)
    if data.registry == ONLINE:
        if not data.use:
            raise UsageError("data.use: name the data sets on a hub to train on, as org/name")
        return [*data.train, *(_hub_source(name, data, {}, _hub(data)) for name in data.use)]
    folder, entries = _read(data.registry, base)
    if not data.use:
        raise UsageError(f"data.use: name the sets to train on; {data.registry} has {_listed(entries)}")
    return [*data.train, *(_source(name, entries, folder, data, base) for name in data.use)]


def _read(registry: str, base: Path) -> tuple[str, dict[str, Any]]:
    """The folder that files of a registry are named from, and its entries."""
    if registry.startswith(REMOTE):
        path, folder = _download(registry.removeprefix(REMOTE), FILE), registry
    else:
        given = Path(os.path.expanduser(registry))
        shown = given / FILE if (base / given).is_dir() else given
        path, folder = base / shown, str(shown.parent)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"data.registry: {registry} does not exist") from None
    except OSError as error:
        raise UsageError(f"data.registry: {registry} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"data.registry: {registry} is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"data.registry: {registry}:{error.lineno}:{error.colno} is not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"data.registry: {registry} is nested too deeply") from None
    if not isinstance(entries, dict):
        raise UsageError(f"data.registry: {registry} is not a mapping of names to data sets")
    return folder, entries


def _download(repository: str, name: str) -> Path:
    """A file of a data set on Hugging Face: its registry, or what that names."""
    from huggingface_hub import hf_hub_download

    # hub versions stand on different HTTP libraries and import this name from theirs
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # imported there, not exported

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"data.registry: no {name} was found in {repository} on Hugging Face: {reason}") from None


def _source(name: str, entries: Mapping[str, Any], folder: str, data: DataConfig, base: Path) -> SourceConfig:
    if name not in entries:
        hint = nearest(name, entries) or f"; it has {_listed(entries)}"
        raise UsageError(f"data.use: {data.registry} has no data set {name!r}{hint}")
    entry, where = entries[name], f"{data.registry}: {name}"
    _require_sound(entry, where)
    hub = next((hub for key, hub in _by_preference(data) if entry.get(key)), None)
    if hub is not None:
        address = next(key for key, value in HUBS.items() if value == hub)
        return _hub_source(entry[address], data, _reading(entry, where), hub, entry)
    if entry.get("om_hub_url"):
        raise UsageError(f"{where} is on the openMind hub, which can't be read from here: download it, give file_name")
    if entry.get("script_url"):
        raise UsageError(f"{where} runs code of its own (script_url), which is never done here: save its rows as JSONL")
    if entry.get("cloud_file_name"):
        raise UsageError(f"{where} lies in a cloud store (cloud_file_name): download it and give file_name")
    if not entry.get("file_name"):
        raise UsageError(f"{where} says nowhere where its rows are: give file_name")
    if folder.startswith(REMOTE):
        repository, file = folder.removeprefix(REMOTE), {"folder": entry["file_name"]}
        if entry.get("file_sha1"):
            _require_hash(_download(repository, entry["file_name"]), entry["file_sha1"], where)
        return _hub_source(repository, data, _reading(entry, where), "huggingface", file)
    if entry.get("split") not in (None, "train"):
        raise UsageError(f"{where}: a file has no split {entry['split']!r}, remove that key")
    path = Path(folder) / str(entry["file_name"])
    if entry.get("file_sha1"):
        _require_hash(base / os.path.expanduser(path), str(entry["file_sha1"]), where)
    return SourceConfig(path=str(path), **_reading(entry, where))


def _require_sound(entry: Any, where: str) -> None:
    """The entry is a mapping of known keys to values of their kind; keys that resemble none are notes of its owner."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not a mapping")
    for key in entry:
        hint = "" if key in KEYS else nearest(key, KEYS)
        if hint:
            raise UsageError(f"{where}: unknown key {key!r}{hint}")
    for key, known in (("columns", (*ALPACA, *TURNS, *MEDIA)), ("tags", TAGS)):
        given = entry.get(key) or {}
        if not isinstance(given, dict) or not all(isinstance(value, str) or value is None for value in given.values()):
            raise UsageError(f"{where}: {key} is not a mapping of names to names")
        for name in given:
            if name not in known:
                raise UsageError(f"{where}: unknown key {key}.{name}{nearest(name, known)}")
    media = next((name for name in MEDIA if (entry.get("columns") or {}).get(name)), None)
    if media is not None:
        raise UsageError(f"{where} has {media}, but only text can be learnt")
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt", "openai"):
        raise UsageError(f"{where}: formatting {entry['formatting']!r} is none of alpaca, sharegpt, openai")
    samples = entry.get("num_samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise UsageError(f"{where}: num_samples must be a whole number above 0, not {samples!r}")
    for key in ("hf_hub_url", "ms_hub_url", "file_name", "file_sha1", "subset", "split", "folder", "revision"):
        if not isinstance(entry.get(key) or "", str):
            raise UsageError(f"{where}: {key} must be text, not {entry[key]!r}")


def _reading(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How the rows are read: format, kind, columns, tags."""
    form = entry.get("formatting", "alpaca")
    known = ALPACA if form == "alpaca" else TURNS
    given = entry.get("columns")
    if given is not None:
        columns = {role: given.get(key) or None for key, role in known.items()}
    else:
        columns = {} if form == "alpaca" else {"messages": "conversations"}
    ranking = bool(entry.get("ranking"))
    if not ranking:
        columns = {role: name for role, name in columns.items() if role not in ("chosen", "rejected")}
    elif form == "alpaca" and columns.get("chosen"):
        columns["response"] = None
    tags = entry.get("tags") if form != "alpaca" else None
    return {
        "format": form,
        "kind": "preference" if ranking else "auto",
        "columns": ColumnsConfig(**columns),
        "tags": TagsConfig(**(tags or {})),
        "guess": False,
        "num_samples": entry.get("num_samples"),
    }


def _by_preference(data: DataConfig) -> list[tuple[str, str]]:
    """Keys of hubs, the wanted one first."""
    return sorted(HUBS.items(), key=lambda item: item[1] != _hub(data))


def _hub(data: DataConfig) -> str:
    if data.hub != "auto":
        return data.hub
    wanted = os.environ.get("USE_MODELSCOPE_HUB", "0").casefold() in ("1", "true", "y", "yes", "on")
    return "modelscope" if wanted else "huggingface"


def _hub_source(
    path: str, data: DataConfig, reading: Mapping[str, Any], hub: str, entry: Mapping[str, Any] | None = None
) -> SourceConfig:
    entry = entry or {}
    given = {key: entry[key] for key in ("subset", "split", "folder", "revision") if entry.get(key)}
    return SourceConfig.model_validate({"path": path, "source": hub, **given, **reading})


def _require_hash(path: Path, expected: str, where: str) -> None:
    """The file is the one that the registry was written for."""
    if not path.is_file():
        return  # the reader says so in its own words
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected.strip().lower():
        raise UsageError(
            f"{where}: the SHA-1 of {path.name} is {digest.hexdigest()}, not file_sha1: {expected}; the file has "
            "changed: get it again, or remove that key"
        )


def _listed(entries: Mapping[str, Any]) -> str:
    names = list(entries)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "none") + more
