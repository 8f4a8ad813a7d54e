"""Relative paths in a config: in the working directory, else beside the file, else, for `persona/…`, as shipped."""

import os
from collections.abc import Callable
from glob import iglob
from pathlib import Path
from typing import Any

import tunewright
from tunewright.config.schema import RunConfig, SourceConfig

SHIPPED_DATA = Path(tunewright.__file__).parent / "data"
SHIPPED_SET = "persona"  # the folder there that holds data sets; the others hold the program


def find_paths(config: RunConfig, folder: Path) -> RunConfig:
    """The config with each path usable from here, where it was found; `folder` is that of the config file."""
    name = config.model.name
    beside = folder / name
    if not os.path.exists(name) and (os.path.isfile(beside / "config.json") or beside.suffix == ".gguf"):
        name = _find(name, folder)
    return with_paths(config, name, lambda path, pattern: _find(path, folder, pattern))


def with_paths(config: RunConfig, model: str, change: Callable[[str, bool], str]) -> RunConfig:
    """The config with `model` for its name, and each path of its data as `change(path, may be a pattern)` says."""

    def changed(source: SourceConfig) -> SourceConfig:
        return source.model_copy(update={"path": change(source.path, True)}) if source.source == "local" else source

    data = config.data
    changes: dict[str, Any] = {"train": [changed(source) for source in data.train]}
    if isinstance(data.validation, SourceConfig):
        changes["validation"] = changed(data.validation)
    if data.template != "auto":
        changes["template"] = change(data.template, False)
    if data.registry is not None:
        changes["registry"] = change(data.registry, False)
    updates = {"model": config.model.model_copy(update={"name": model}), "data": data.model_copy(update=changes)}
    return config.model_copy(update=updates)


def is_there(path: Path, pattern: bool) -> bool:
    """Whether there is a file or folder, or anything that a pattern fits."""
    # os.path: a text too long for a path, such as a template, is in no folder either
    return os.path.exists(path) or (pattern and any(True for _ in iglob(str(path), recursive=True)))


def shown(path: str) -> str:
    """A path as it is told to people: a shipped one by the name under which it is found."""
    return Path(path).relative_to(SHIPPED_DATA).as_posix() if Path(path).is_relative_to(SHIPPED_DATA) else path


def _find(name: str, folder: Path, pattern: bool = False) -> str:
    """Where a path or, for data, what fits a pattern is found first; the path as it is if that is nowhere."""
    path = Path(os.path.expanduser(name))
    for found in (path, folder / path):
        if is_there(found, pattern):
            return str(found)
    shipped = SHIPPED_DATA / path
    return str(shipped if path.parts[:1] == (SHIPPED_SET,) and os.path.exists(shipped) else path)
