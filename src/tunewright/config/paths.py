"""Relative paths in a config: in the working directory, else beside the file, else, for `persona/…`, as shipped."""

import os
from glob import iglob
from pathlib import Path
from typing import Any

import tunewright
from tunewright.config.schema import RunConfig, SourceConfig

SHIPPED_DATA = Path(tunewright.__file__).parent / "data"
SHIPPED_SET = "persona"  # the folder there that holds data sets; the others hold the program


def find_paths(config: RunConfig, folder: Path) -> RunConfig:
    """The config with each path usable from here, where it was found; `folder` is that of the config file."""
    model, data = config.model, config.data
    beside = folder / model.name
    if not os.path.exists(model.name) and (os.path.isfile(beside / "config.json") or beside.suffix == ".gguf"):
        model = model.model_copy(update={"name": _find(model.name, folder)})
    changes: dict[str, Any] = {"train": [_find_source(source, folder) for source in data.train]}
    if isinstance(data.validation, SourceConfig):
        changes["validation"] = _find_source(data.validation, folder)
    if data.template != "auto":
        changes["template"] = _find(data.template, folder)
    if data.registry is not None:
        changes["registry"] = _find(data.registry, folder)
    return config.model_copy(update={"model": model, "data": data.model_copy(update=changes)})


def shown(path: str) -> str:
    """A path as it is told to people: a shipped one by the name under which it is found."""
    return Path(path).relative_to(SHIPPED_DATA).as_posix() if Path(path).is_relative_to(SHIPPED_DATA) else path


def _find_source(source: SourceConfig, folder: Path) -> SourceConfig:
    if source.source != "local":
        return source
    return source.model_copy(update={"path": _find(source.path, folder, pattern=True)})


def _find(name: str, folder: Path, pattern: bool = False) -> str:
    """Where a path or, for data, what fits a pattern is found first; the path as it is if that is nowhere."""
    path = Path(os.path.expanduser(name))
    for found in (path, folder / path):
        # os.path: a text too long for a path, such as a template, is in no folder either
        if os.path.exists(found) or (pattern and any(True for _ in iglob(str(found), recursive=True))):
            return str(found)
    shipped = SHIPPED_DATA / path
    return str(shipped if path.parts[:1] == (SHIPPED_SET,) and os.path.exists(shipped) else path)
