"""Checkpoints: whole or refused, exact to the bit, and harmless when the disk is full."""

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW

from tunewright.engine.checkpoint import (
    keep_newest,
    load_random_state,
    optimizer_tensors,
    random_state,
    restore_optimizer,
    restore_random_state,
    save_checkpoint,
)
from tunewright.errors import RunError
from tunewright.runs.checkpoints import Checkpoint, checkpoints, fault, newest_sound

Named = list[tuple[str, Tensor]]


def trained(steps: int = 3, size: int = 4) -> tuple[Named, AdamW]:
    """Three parameters after some steps; the last one never had a gradient."""
    generator = torch.Generator().manual_seed(0)
    named = [(name, torch.randn(size, 2, generator=generator).requires_grad_()) for name in ("a", "a.b", "unused")]
    optimizer = AdamW([parameter for _, parameter in named], lr=0.1, fused=True)
    for _ in range(steps):
        advance(named, optimizer)
    return named, optimizer


def advance(named: Named, optimizer: AdamW) -> None:
    for name, parameter in named:
        parameter.grad = None if name == "unused" else parameter.detach().sin()
    optimizer.step()


def write_weights(path: Path) -> None:
    (path / "adapter").mkdir()
    save_file({"weight": torch.arange(3.0)}, path / "adapter" / "adapter_model.safetensors")


def save(folder: Path, step: int, size: int = 4) -> Checkpoint:
    return save_checkpoint(
        folder, step, write_weights, *trained(size=size), one_process(), {"seconds": 1.5, "data": "x"}
    )


def one_process() -> dict[str, Tensor]:
    return {name: state[None] for name, state in random_state().items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_whole_and_holds_no_pickle(tmp_path: Path) -> None:
    found = save(tmp_path, 7)
    assert (found.path, found.step) == (tmp_path / "step-7", 7)
    assert names(tmp_path) == ["step-7"]
    assert fault(found.path) is None
    assert checkpoints(tmp_path) == [found]
    assert found.state() == {"seconds": 1.5, "data": "x", "step": 7}
    files = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    manifest = json.loads((found.path / "manifest.json").read_text("utf-8"))
    assert set(manifest) == files - {"manifest.json"}


def test_newest_first_and_numbers_not_words(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        save(tmp_path, step)
    (tmp_path / "step-x").mkdir()
    assert [found.step for found in checkpoints(tmp_path)] == [10, 9, 2]
    assert checkpoints(tmp_path / "nothing") == []


def test_the_newest_sound_one_and_what_is_wrong_with_newer_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-3" / "state.json").unlink()
    (tmp_path / "step-1" / "state.json").unlink()
    passed_over: list[tuple[str, str]] = []
    found = newest_sound(tmp_path, lambda path, reason: passed_over.append((path.name, reason)))
    assert found == Checkpoint(tmp_path / "step-2", 2)
    assert passed_over == [("step-3", f"{tmp_path / 'step-3' / 'state.json'} is missing")], "older ones are not read"
    assert newest_sound(tmp_path / "nothing") is None


def test_only_the_newest_sound_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / "step-5" / "state.json").write_text("{}", "utf-8")
    keep_newest(tmp_path, 2)
    assert [found.step for found in checkpoints(tmp_path)] == [4, 3]


@pytest.mark.parametrize("name", ["optimizer.safetensors", "random.safetensors", "adapter/adapter_model.safetensors"])
def test_every_file_is_watched(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 1).path / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fault(tmp_path / "step-1") == f"{file} was changed or damaged"
    file.write_bytes(content[:-1])
    assert fault(tmp_path / "step-1") == f"{file} has {len(content) - 1} bytes, not {len(content)}"
    file.unlink()
    assert fault(tmp_path / "step-1") == f"{file} is missing"
    file.write_bytes(content)
    assert fault(tmp_path / "step-1") is None


def test_a_cut_manifest_is_a_fault(tmp_path: Path) -> None:
    manifest = save(tmp_path, 1).path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8")[:-5], "utf-8")
    assert "manifest.json is damaged" in (fault(tmp_path / "step-1") or "")
    assert checkpoints(tmp_path) == []


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    aside = tmp_path / ".step-2.1.writing"
    aside.mkdir(parents=True)
    (aside / "old").write_text("half")
    assert checkpoints(tmp_path) == []
    found = save(tmp_path, 3)
    assert names(tmp_path) == ["step-3"]

    assert save(tmp_path, 3) == found  # a step that is done again replaces itself
    assert fault(found.path) is None


def test_optimizer_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    named, optimizer = trained()
    saved = save_checkpoint(tmp_path, 3, write_weights, named, optimizer, one_process(), {})
    restored = [(name, parameter.detach().clone().requires_grad_()) for name, parameter in named]
    other = AdamW([parameter for _, parameter in restored], lr=0.1, fused=True)
    restore_optimizer(saved.path, restored, other)
    assert set(optimizer_tensors(restored, other)) == {
        f"{name}/{key}" for name in ("a", "a.b") for key in ("step", "exp_avg", "exp_avg_sq")
    }
    for _ in range(3):
        advance(named, optimizer)
        advance(restored, other)
    for (name, expected), (_, actual) in zip(named, restored, strict=True):
        assert torch.equal(actual, expected), name


def test_random_numbers_go_on(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        torch.rand(5)
        saved = save(tmp_path, 1)
        expected = torch.rand(9)
        restore_random_state(load_random_state(saved.path, 0))
        assert torch.equal(torch.rand(9), expected)
        assert torch.equal(torch.rand(1), torch.rand(1)) is False
        assert set(random_state()) >= {"cpu"}


def test_each_process_goes_on_with_its_own_random_numbers(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        states = []
        for seed in (3, 4):
            torch.manual_seed(seed)
            states.append(torch.get_rng_state())
        saved = save_checkpoint(tmp_path, 1, write_weights, *trained(), {"cpu": torch.stack(states)}, {})
    assert [torch.equal(load_random_state(saved.path, 1)["cpu"], state) for state in states] == [False, True]
    assert torch.equal(load_random_state(saved.path, 0)["cpu"], states[0])
    assert torch.equal(load_random_state(saved.path, 5)["cpu"], states[1]), "more processes than were saved"


# A full disk


def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_half(tmp_path: Path) -> None:
    earlier = save(tmp_path, 1)

    def full(path: Path) -> None:
        write_weights(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"step-2: No space .* go on from step-1 with `tunewright resume`") as caught:
        save_checkpoint(tmp_path, 2, full, *trained(), one_process(), {})
    assert caught.value.exit_code == 1
    assert names(tmp_path) == ["step-1"]
    assert checkpoints(tmp_path) == [earlier]
    with pytest.raises(RunError, match="go on from the beginning with"):
        save_checkpoint(tmp_path / "new", 2, full, *trained(), one_process(), {})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    """safetensors raises an error of its own where others raise OSError."""
    earlier = save(tmp_path, 1)
    with largest_file(200_000), pytest.raises(RunError, match="could not write checkpoint .*step-2: .*too large"):
        save(tmp_path, 2, size=50_000)
    assert names(tmp_path) == ["step-1"]
    assert checkpoints(tmp_path) == [earlier]
