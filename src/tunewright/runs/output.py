"""Where a new run goes: the folder that the config names, or a free one named after the data."""

import os
from pathlib import Path

from tunewright.config.schema import RunConfig
from tunewright.errors import UsageError
from tunewright.files import why_not_a_new_folder
from tunewright.runs.names import is_run


def choose_output(config: RunConfig, root: Path = Path("runs")) -> Path:
    """`output` of the config, or the first free of `runs/NAME`, `runs/NAME-2`, … named after the first data file."""
    if config.output is not None:
        return Path(os.path.expanduser(config.output))
    first = next((source.path for source in config.data.train), next(iter(config.data.use), "run"))
    return free_folder(root / _name_after(Path(first)))


def check_output(path: Path) -> None:
    """Raise UsageError unless a run folder can be made at `path`: it is free or an empty folder, and can be written."""
    if is_run(path):
        raise UsageError(
            f"output: {path} already holds a run; name a new folder with output=DIR, "
            f"or go on with that run: tunewright resume {path}"
        )
    if (reason := why_not_a_new_folder(path)) is not None:
        raise UsageError(f"output: {reason}; name a new folder with output=DIR")


def free_folder(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _name_after(data: Path) -> str:
    """The data's own name; of a pattern such as corpus/*.jsonl that of the folder before it."""
    while data.name == ".." or (set(data.name) & set("*?[") and not data.exists()):
        data = data.parent
    return data.stem.lstrip(".") or "run"
