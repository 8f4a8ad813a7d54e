"""The checkpoints of a run as its readers see them: which there are, and which are whole.

A folder `step-N` counts when its manifest, written last, fits its files; engine/checkpoint.py writes what is in it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.files import sha256_of, to_disk

MANIFEST = "manifest.json"
# Files up to this size are hashed in the manifest; larger ones are checked by size alone.
_HASH_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """What `save` was given as `state`."""
        state: dict[str, Any] = json.loads((self.path / "state.json").read_text("utf-8"))
        return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All verified checkpoints, newest first."""
    return [Checkpoint(path, step) for step, path in step_folders(folder).items() if fault(path) is None]


def newest_sound(
    folder: Path, passed_over: Callable[[Path, str], None] = lambda path, reason: None
) -> Checkpoint | None:
    """The newest checkpoint that verifies, None without one; `passed_over` hears of newer ones and their faults."""
    for step, path in step_folders(folder).items():
        if (reason := fault(path)) is None:
            return Checkpoint(path, step)
        passed_over(path, reason)
    return None


def step_folders(folder: Path) -> dict[int, Path]:
    """Folders `step-N` by their N, newest first, sound or not."""
    names = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*") if path.is_dir())
    found = {int(number): path for number, path in names if number.isdecimal()}
    return dict(sorted(found.items(), reverse=True))


def fault(path: Path) -> str | None:
    """Why a checkpoint can't be used, or None: every file of the manifest is there, of its size and hash."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"{manifest} is missing"
    try:
        files: dict[str, dict[str, Any]] = json.loads(manifest.read_text("utf-8"))
    except ValueError as error:
        return f"{manifest} is damaged: {error}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{file} has {file.stat().st_size} bytes, not {expected['size']}"
        if expected["sha256"] is not None and sha256_of(file) != expected["sha256"]:
            return f"{file} was changed or damaged"
    return None


def write_manifest(folder: Path) -> None:
    """List the files of a finished checkpoint, all safe on the disk, in one that is written last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {}
    for path in files:
        to_disk(path)
        size = path.stat().st_size
        manifest[path.relative_to(folder).as_posix()] = {
            "size": size,
            "sha256": sha256_of(path) if size <= _HASH_LIMIT else None,
        }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    to_disk(folder / MANIFEST)
    to_disk(folder)
