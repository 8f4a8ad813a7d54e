"""Checkpoints: written aside, manifest last, then renamed; so a folder named step-N is whole or is refused.

A checkpoint holds weights (`adapter/` in PEFT's format, or `model/`), the optimizer's moments, the random
state, the step and its metrics. All tensors are safetensors, all else JSON: nothing is unpickled.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from tunewright.errors import RunError
from tunewright.files import WRITE_ERRORS, aside, cause, remove, to_disk
from tunewright.runs.checkpoints import Checkpoint, checkpoints, newest_sound, write_manifest


def save_checkpoint(
    folder: Path,
    step: int,
    write_weights: Any,
    named_parameters: Iterable[tuple[str, Tensor]],
    optimizer: Optimizer,
    random: dict[str, Tensor],
    state: dict[str, Any],
) -> Checkpoint:
    """Write `folder/step-N`. `write_weights(path)` puts the weights into the given folder.

    `random` has the `random_state` of each process, stacked.

    Raises RunError when the disk is full; the half-written folder is removed then.
    """
    final = folder / f"step-{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in folder.glob(".step-*"):
            remove(left_by_a_kill)
        with aside(final) as path:
            path.mkdir()
            write_weights(path)
            save_file(optimizer_tensors(named_parameters, optimizer), path / "optimizer.safetensors")
            save_file(random, path / "random.safetensors")
            (path / "state.json").write_text(json.dumps({**state, "step": step}, indent=1), "utf-8")
            write_manifest(path)
            remove(final)
        to_disk(folder)
    except WRITE_ERRORS as error:
        earlier = newest_sound(folder)
        raise RunError(
            f"could not write checkpoint {final}: {cause(error)}. Make room, then go on from "
            f"{earlier.path.name if earlier else 'the beginning'} with `tunewright resume`."
        ) from error
    return Checkpoint(final, step)


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
            # The step count too: the fused optimizer keeps it where the parameter is.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def random_state() -> dict[str, Tensor]:
    """The states of the generators that this process's training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_random_state(path: Path, process: int) -> dict[str, Tensor]:
    """The state that this process saved; where there were fewer of them, that of the last."""
    states = load_file(path / "random.safetensors")
    return {name: every[min(process, len(every) - 1)].clone() for name, every in states.items()}
