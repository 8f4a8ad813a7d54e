"""Law (d): an interrupted and resumed run equals the uninterrupted one bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine_setup import in_two_processes, make_training, run_config, tiny_tuned
from tunewright.config.schema import RunConfig
from tunewright.engine.loop import Training
from tunewright.engine.signals import StopRequest
from tunewright.engine.tunings import Tuned, trainable
from tunewright.errors import Interrupted, RunError
from tunewright.forest.score import score
from tunewright.runs.checkpoints import Checkpoint, checkpoints, fault, newest_sound

TIMES = {"seconds", "step_seconds", "samples_per_second", "tokens_per_second", "memory_bytes", "peak_memory_bytes"}


def resumed_model(config: RunConfig, checkpoint: Checkpoint) -> Tuned:
    """A model with the checkpoint's weights, through the files alone."""
    if config.method.tuning == "lora":
        from tunewright.models.adapters import load_adapter

        plain = run_config("full")
        return load_adapter(tiny_tuned(plain), checkpoint.path / "adapter", trainable=True)  # type: ignore[arg-type]  # full tuning gives a plain model
    model = tiny_tuned(config)
    model.load_state_dict(load_file(checkpoint.path / "model" / "model.safetensors"), strict=False)
    return model


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in metrics]


def stop_at(training: Training, step: int, forests: int = 0) -> None:
    """Train until a stop request comes at `step`, after `forests` forests of it were computed."""
    stop = StopRequest()
    weighted_nll, computed = training.forest_model.weighted_nll, 0

    def counted(forest: Any) -> torch.Tensor:
        nonlocal computed
        if training.step == step:
            computed += 1
            if computed > forests:
                stop.signal_name = "SIGTERM"
        return weighted_nll(forest)

    training.forest_model.weighted_nll = counted  # type: ignore[method-assign]  # the place to stop at
    with pytest.raises(Interrupted, match="tunewright resume"):
        training.fit(stop)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("step", [1, 9])
def test_resumed_run_has_the_same_bits(tmp_path: Path, tuning: str, step: int) -> None:
    """Stopped in the middle of a step in the middle of an epoch, with dropout drawing from the random state."""
    config = run_config(tuning, dropout=0.3 if tuning == "lora" else 0.0)
    whole = make_training(tmp_path / "whole", config, tiny_tuned(config), forest_tokens=30)
    whole.fit(StopRequest())

    stop_at(make_training(tmp_path / "parts", config, tiny_tuned(config), forest_tokens=30), step, forests=1)
    newest = checkpoints(tmp_path / "parts" / "checkpoints")[0]
    assert newest.step == step
    resumed = make_training(tmp_path / "parts", config, resumed_model(config, newest), forest_tokens=30)
    resumed.restore(newest)
    resumed.fit(StopRequest())

    for (name, expected), (_, actual) in zip(trainable(whole.model), trainable(resumed.model), strict=True):
        assert torch.equal(actual, expected), name
    for file in ("optimizer.safetensors", "random.safetensors"):
        expected = load_file(tmp_path / "whole" / "checkpoints" / "step-20" / file)
        actual = load_file(tmp_path / "parts" / "checkpoints" / "step-20" / file)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert without_times(resumed.run.metrics()) == without_times(whole.run.metrics())


def test_steps_after_the_checkpoint_are_done_again(tmp_path: Path) -> None:
    """A killed run loses the steps since its newest checkpoint; resuming repeats them and their metrics."""
    config = run_config("lora", dropout=0.3)
    whole = make_training(tmp_path, config, tiny_tuned(config))
    whole.fit(StopRequest())
    expected = without_times(whole.run.metrics())
    older = checkpoints(tmp_path / "checkpoints")[1]
    assert older.step == 14
    resumed = make_training(tmp_path, config, resumed_model(config, older))
    resumed.restore(older)
    assert resumed.run.metrics()[-1]["step"] == 14
    resumed.fit(StopRequest())
    assert without_times(resumed.run.metrics()) == expected


@pytest.mark.parametrize("step", [0, 7, 9, 20])
def test_a_stop_request_ends_a_validation_which_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At the start, at a step with a checkpoint of its own, at one without, and at the last; with samples, too."""
    config = run_config("lora", dropout=0.3, evaluate_steps=3 if step == 9 else 7)
    parts, whole = tmp_path / "parts", tmp_path / "whole"

    def made(folder: Path, model: Tuned) -> Training:
        training = make_training(folder, config, model, forest_tokens=30)
        training.on_sample = lambda step: training.run.append_sample({"step": step})
        return training

    undisturbed = made(whole, tiny_tuned(config))
    undisturbed.fit(StopRequest())

    training, stop, scored = made(parts, tiny_tuned(config)), StopRequest(), 0

    def score_until_stopped(model: Any, sequences: Any, forest_tokens: int, poll: Callable[[], None]) -> Any:
        def counted() -> None:
            nonlocal scored
            if training.step == step:
                stop.signal_name = "SIGTERM" if scored == 2 else None
                poll()
                scored += 1
            else:
                poll()

        return score(model, sequences, forest_tokens, counted)

    monkeypatch.setattr("tunewright.engine.loop.score", score_until_stopped)
    with pytest.raises(Interrupted, match=rf"after step {step} of 20; go on with: tunewright resume"):
        training.fit(stop)
    assert scored == 2, "the forests that were left are not scored"
    assert training.run.status()["step"] == step
    monkeypatch.undo()
    newest = newest_sound(parts / "checkpoints")
    assert newest is not None
    assert newest.step == step
    resumed = made(parts, resumed_model(config, newest))
    resumed.restore(newest)
    resumed.fit(StopRequest())
    assert without_times(resumed.run.metrics()) == without_times(undisturbed.run.metrics())
    assert resumed.run.samples() == undisturbed.run.samples()
    for (name, expected), (_, actual) in zip(trainable(undisturbed.model), trainable(resumed.model), strict=True):
        assert torch.equal(actual, expected), name


def test_a_kill_during_validation_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config("lora", dropout=0.3)
    whole = make_training(tmp_path / "whole", config, tiny_tuned(config))
    whole.fit(StopRequest())
    killed = make_training(tmp_path / "parts", config, tiny_tuned(config))

    def kill(model: Any, *rest: Any) -> Any:
        if killed.step == 14:
            raise KeyboardInterrupt
        return score(model, *rest)

    monkeypatch.setattr("tunewright.engine.loop.score", kill)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(StopRequest())
    monkeypatch.undo()
    newest = checkpoints(tmp_path / "parts" / "checkpoints")[0]
    assert (newest.step, killed.run.metrics()[-1]["step"]) == (14, 13)
    resumed = make_training(tmp_path / "parts", config, resumed_model(config, newest))
    resumed.restore(newest)
    resumed.fit(StopRequest())
    assert without_times(resumed.run.metrics()) == without_times(whole.run.metrics())


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the step after a validation: resuming goes on with the step."""
    config = run_config()
    stop_at(make_training(tmp_path, config, tiny_tuned(config), forest_tokens=30), 7, forests=1)
    newest = checkpoints(tmp_path / "checkpoints")[0]
    resumed = make_training(tmp_path, config, resumed_model(config, newest), forest_tokens=30)
    resumed.restore(newest)
    scored = []

    def noted(model: Any, *rest: Any) -> Any:
        scored.append(resumed.step)
        return score(model, *rest)

    monkeypatch.setattr("tunewright.engine.loop.score", noted)
    resumed.fit(StopRequest())
    assert scored == [14, 20]
    assert [line["step"] for line in resumed.run.metrics()] == list(range(21))


def test_only_the_newest_checkpoint_is_read_when_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(save_steps=3)
    training = make_training(tmp_path, config, tiny_tuned(config), forest_tokens=30)
    read: list[str] = []

    def noted(path: Path) -> str | None:
        if training.step == 9 and (tmp_path / "checkpoints" / "step-9").exists():
            read.append(path.name)
        return fault(path)

    monkeypatch.setattr("tunewright.runs.checkpoints.fault", noted)
    keep = training.save
    training.save = lambda: (keep(), read.clear())[0]  # type: ignore[method-assign]  # what saving itself reads is its own
    stop_at(training, 9, forests=1)
    assert read == ["step-9"]


WORKER = """
import json, sys
from pathlib import Path
from tests.engine_setup import make_training, run_config, tiny_tuned
from tests.invariants.test_law_d_resume import resumed_model, without_times
from tunewright.engine.signals import StopRequest
from tunewright.runs.checkpoints import checkpoints
folder = Path(sys.argv[1])
config = run_config(dropout=0.3)
whole = make_training(folder, config, tiny_tuned(config), forest_tokens=30)
assert whole.processes.count == 2
whole.fit(StopRequest())
expected = whole.run.metrics()
older = checkpoints(folder / "checkpoints")[1]
whole.processes.wait()
resumed = make_training(folder, config, resumed_model(config, older), forest_tokens=30)
resumed.restore(older)
resumed.fit(StopRequest())
resumed.processes.wait()
if resumed.processes.is_main:
    curves = [without_times(metrics) for metrics in (expected, resumed.run.metrics())]
    (folder / "curves.json").write_text(json.dumps([older.step, *curves]))
"""


def test_two_processes_go_on_with_the_same_bits(tmp_path: Path) -> None:
    """Each process draws its own dropout masks, as many as its share of the step asks for."""
    in_two_processes(WORKER, tmp_path / "run")
    step, expected, actual = json.loads((tmp_path / "run" / "curves.json").read_text())
    assert step == 14
    assert actual == expected


STOPPED_WORKER = """
import sys
from pathlib import Path
import tunewright.engine.loop as loop
from tests.engine_setup import make_training, run_config, tiny_tuned
from tunewright.engine.signals import StopRequest
from tunewright.errors import Interrupted
from tunewright.forest.score import score
config = run_config(max_steps=4, save_steps=2)
training = make_training(Path(sys.argv[1]), config, tiny_tuned(config), forest_tokens=30)
stop, scored = StopRequest(), 0
def score_until_stopped(model, sequences, forest_tokens, poll):
    def counted():
        global scored
        if training.step == 2:
            stop.signal_name = "SIGTERM" if scored == 1 and training.processes.index == 1 else None
            poll()
            scored += 1
        else:
            poll()
    return score(model, sequences, forest_tokens, counted)
loop.score = score_until_stopped
try:
    training.fit(stop)
except Interrupted as error:
    (Path(sys.argv[1]) / f"{training.processes.index}.txt").write_text(f"{scored} {error}")
training.processes.wait()
"""


def test_two_processes_leave_a_validation_together(tmp_path: Path) -> None:
    """The signal reaches one of them only."""
    in_two_processes(STOPPED_WORKER, tmp_path / "run")
    said = [(tmp_path / "run" / f"{index}.txt").read_text() for index in (0, 1)]
    assert said[0].startswith("1 stopped by another process after step 2 of 4;")
    assert said[1].startswith("1 stopped by SIGTERM after step 2 of 4;")
    assert [found.step for found in checkpoints(tmp_path / "run" / "checkpoints")] == [2]


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    config = run_config()
    make_training(tmp_path, config, tiny_tuned(config)).fit(StopRequest())
    newest = checkpoints(tmp_path / "checkpoints")[0]
    assert newest.step == 20
    file = newest.path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "was changed or damaged" in (fault(newest.path) or "")
    assert checkpoints(tmp_path / "checkpoints")[0].step == 14
    file.write_bytes(b"")
    assert "0 bytes" in (fault(newest.path) or "")
    (newest.path / "manifest.json").unlink()
    assert "manifest.json is missing" in (fault(newest.path) or "")


def test_changed_data_is_refused(tmp_path: Path) -> None:
    config = run_config()
    make_training(tmp_path, config, tiny_tuned(config)).fit(StopRequest())
    other = make_training(tmp_path, config, tiny_tuned(config))
    other.data_fingerprint = "another"
    with pytest.raises(RunError, match="training data .* has changed"):
        other.restore(checkpoints(tmp_path / "checkpoints")[0])


def test_a_failure_names_the_checkpoint_there_is(tmp_path: Path) -> None:
    config = run_config()
    training = make_training(tmp_path, config, tiny_tuned(config))
    weighted_nll = training.forest_model.weighted_nll

    def fails_at_the_tenth(forest: Any) -> torch.Tensor:
        return weighted_nll(forest) * (float("nan") if training.step == 9 else 1.0)

    training.forest_model.weighted_nll = fails_at_the_tenth  # type: ignore[method-assign]  # a fault to be caught
    with pytest.raises(RunError, match=r"step 10: .* the newest sound checkpoint is .*step-7\."):
        training.fit(StopRequest())


def test_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    config = run_config()
    training = make_training(tmp_path, config, tiny_tuned(config))
    before = [parameter.clone() for _, parameter in training.parameters]
    weighted_nll = training.forest_model.weighted_nll
    training.forest_model.weighted_nll = lambda forest: weighted_nll(forest) * float("nan")  # type: ignore[method-assign]  # a fault
    with pytest.raises(RunError, match=r"step 1: the loss is nan .* no checkpoint was written yet.* made-up.jsonl:"):
        training.fit(StopRequest())
    assert all(torch.equal(old, new) for old, (_, new) in zip(before, training.parameters, strict=True))
