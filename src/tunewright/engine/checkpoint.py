"""Checkpoints: written aside, manifest last, then renamed; so a folder named step-N is whole or is refused.

A checkpoint holds weights (`adapter/` in PEFT's format, or `model/`), the optimizer's moments, the random
state and the step. All tensors are safetensors, all else JSON: nothing is unpickled.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from tunewright.errors import RunError
from tunewright.models.cache import sha256_of

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


def save_checkpoint(
    folder: Path,
    step: int,
    write_weights: Any,
    named_parameters: Iterable[tuple[str, Tensor]],
    optimizer: Optimizer,
    state: dict[str, Any],
) -> Checkpoint:
    """Write `folder/step-N`. `write_weights(path)` puts the weights into the given folder.

    Raises RunError when the disk is full; the half-written folder is removed then.
    """
    final, aside = folder / f"step-{step}", folder / f"step-{step}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write_weights(aside)
        save_file(optimizer_tensors(named_parameters, optimizer), aside / "optimizer.safetensors")
        save_file(random_state(), aside / "random.safetensors")
        (aside / "state.json").write_text(json.dumps({**state, "step": step}, indent=1), "utf-8")
        _write_manifest(aside)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        shutil.rmtree(aside, ignore_errors=True)
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise RunError(
            f"could not write checkpoint {final}: {reason}. Earlier checkpoints are untouched; "
            "make room and go on with `tunewright resume`."
        ) from error
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    _sync(folder)
    return Checkpoint(final, step)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All verified checkpoints, newest first."""
    found = []
    for path in folder.glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and fault(path) is None:
            found.append(Checkpoint(path, int(number)))
    return sorted(found, key=lambda checkpoint: -checkpoint.step)


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


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints; called only after a new one verified."""
    for checkpoint in checkpoints(folder)[count:]:
        shutil.rmtree(checkpoint.path)


def optimizer_tensors(named_parameters: Iterable[tuple[str, Tensor]], optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts under `parameter name/key`."""
    return {
        f"{name}/{key}": value.detach().clone().contiguous()
        for name, parameter in named_parameters
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(path: Path, named_parameters: Iterable[tuple[str, Tensor]], optimizer: Optimizer) -> None:
    """Put the saved moments back, parameter by parameter."""
    saved = load_file(path / "optimizer.safetensors")
    for name, parameter in named_parameters:
        prefix = f"{name}/"
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if value.ndim else value for key, value in state.items()
            }


def random_state() -> dict[str, Tensor]:
    """The states of the generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_random_state(path: Path) -> dict[str, Tensor]:
    return load_file(path / "random.safetensors")


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {}
    for path in files:
        _sync(path)
        size = path.stat().st_size
        manifest[path.relative_to(folder).as_posix()] = {
            "size": size,
            "sha256": sha256_of(path) if size <= _HASH_LIMIT else None,
        }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
