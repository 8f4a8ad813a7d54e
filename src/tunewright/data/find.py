"""Which files a source of data stands for: one file, a folder, a pattern, or a data set on a hub."""

import glob
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.config.schema import SourceConfig
from tunewright.data.hub_sets import hub_files
from tunewright.data.kinds import kind_of, why_not
from tunewright.data.splits import GLOB, choose_files, one_kind
from tunewright.data.suggest import nearest
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr


class DataFile(NamedTuple):
    """A file, and how messages and places call it."""

    path: Path
    name: str


def find_named_files(
    source: SourceConfig, base: Path, key: str = "data.train", notify: Notify = to_stderr
) -> list[DataFile]:
    """The files of a source, sorted by name, at least one; files of a hub are downloaded first.

    A relative path starts at `base`, the folder of the config. `key` is the config key of the source, for messages;
    `notify` is told which files of a folder are left out. Raises UsageError where there is none, where they are of
    several kinds or of one that cannot be read, and RunError where a hub cannot be reached.
    """
    if source.source != "local":
        return [DataFile(path, name) for path, name in hub_files(source, key, notify)]
    if source.revision is not None:
        raise UsageError(f"{key}.revision is for data sets on a hub; say which: {key}.source: huggingface | modelscope")
    path = base / os.path.expanduser(source.path)
    try:
        if path.is_dir():
            return _folder(path, source, key, notify)
        choice = {"subset": source.subset, "split": source.split, "folder": source.folder}
        named = next((name for name, value in choice.items() if value is not None), None)
        if named is not None:
            raise UsageError(f"{key}.{named} is for folders and data sets on a hub, and {source.path} is neither")
        if path.is_file():
            if kind_of(path.name) is None:
                raise UsageError(f"{source.path} {why_not(path.name)}")
            return [DataFile(path, source.path)]
        if path.exists():
            raise UsageError(f"{key}: {source.path} is not a regular file")
        if GLOB.search(source.path):
            return _pattern(path, source, base, key)
        raise UsageError(_missing(path, source, key))
    except OSError as fault:
        raise UsageError(f"{key}: {source.path} can't be read: {fault.strerror or fault}") from None


def _folder(path: Path, source: SourceConfig, key: str, notify: Notify) -> list[DataFile]:
    if saved := _saved_by_datasets(path, source, key):
        return [DataFile(file, f"{source.path}/{file.relative_to(path).as_posix()}") for file in saved]
    names = _names_below(path)
    readme = path / "README.md"
    chosen = choose_files(
        names,
        readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None,
        source.path,
        key,
        notify,
        subset=source.subset,
        split=source.split,
        folder=source.folder,
    )
    return [DataFile(path / name, f"{source.path.rstrip('/')}/{name}") for name in chosen]


def _names_below(path: Path) -> list[str]:
    """All files of a folder and its subfolders, relative, without hidden ones."""
    names = []
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(folder) / name).relative_to(path).as_posix() for name in files if not name.startswith(".")]
    return names


def _saved_by_datasets(path: Path, source: SourceConfig, key: str) -> list[Path]:
    """The Arrow files that `save_to_disk` of the datasets library wrote there, [] if it did not."""
    splits = _read_json(path / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits and all(isinstance(split, str) for split in splits):
        split = source.split or ("train" if "train" in splits else splits[0])
        if split not in splits:
            there = f"it has {', '.join(splits)}{nearest(split, splits)}"
            raise UsageError(f"{key}.split: {source.path} has no split {split!r}, {there}")
        path = path / split
    files = _read_json(path / "state.json").get("_data_files")
    if not isinstance(files, list):
        return []
    names = [file.get("filename") for file in files if isinstance(file, dict)]
    found = [path / Path(name).name for name in names if isinstance(name, str)]
    gone = next((file.name for file in found if not file.is_file()), None)
    if gone is not None:
        raise UsageError(f"{key}: {source.path} is not complete, {gone} is missing")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _pattern(path: Path, source: SourceConfig, base: Path, key: str) -> list[DataFile]:
    relative = not os.path.isabs(os.path.expanduser(source.path))
    found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    known = [name for name in found if kind_of(name) is not None]
    if not found:
        raise UsageError(f"{key}: no file matches {source.path} (looked from {path.parent.resolve()})")
    if not known:
        raise UsageError(f"{key}: {source.path}: {Path(found[0]).name} {why_not(found[0])}")
    chosen = one_kind(known, source.path, key)
    return [DataFile(Path(name), os.path.relpath(name, base) if relative else name) for name in chosen]


def _missing(path: Path, source: SourceConfig, key: str) -> str:
    if not path.parent.is_dir():
        text = f"{key}: {source.path} does not exist, nor does the folder {path.parent}"
        if source.path.count("/") == 1 and not source.path.startswith((".", "~")):
            text += f"; for a data set on a hub add {key}.source: huggingface (or modelscope)"
        return text
    hint = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir() if kind_of(entry.name)))
    return f"{key}: {source.path} does not exist in {path.parent.resolve()}{hint}"
