"""A stop request at any place of a run, and whatever else ends it: what the run folder says, and that it goes on."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils import checkpoint as checkpointing

from tests.runs.test_folder import elsewhere
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.engine.start import make_ready, resume, start
from tunewright.engine.watch import Silent
from tunewright.errors import Interrupted, UsageError
from tunewright.evaluate.answers import Question
from tunewright.models import recompute
from tunewright.models.generate import Answer
from tunewright.runs.folder import RunFolder
from tunewright.runs.liveness import SILENT_SECONDS

pytestmark = pytest.mark.usefixtures("no_probe")

STEPS = 5


class Acts(Silent):
    """Acts when training reaches a place: "sample N", "step N" or a word of what is said."""

    def __init__(self, place: str, act: Any) -> None:
        self._place, self._act, self.times = place, act, 0

    def _reached(self, place: str) -> None:
        if self._place in place:
            self.times += 1
            if self.times == 1:
                self._act()

    def step(self, record: dict[str, Any]) -> None:
        self._reached(f"step {record['step']}")

    def sample(self, step: int, question: Question, reply: Answer) -> None:
        self._reached(f"sample {step}")

    def say(self, line: str) -> None:
        self._reached(line)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny(tiny_tokenizer("chatml"), folder / "model")
    rows = [{"instruction": f"What is boat {n}?", "output": f"The Heron {n}."} for n in range(30)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config(base: Path, output: Path, tuning: str = "lora", **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": str(base / "model"), "dtype": "float32"},
            "data": {"train": str(base / "questions.jsonl"), "validation": 3},
            "method": {"tuning": tuning},
            "train": {"batch_size": 4, "max_steps": STEPS, "save_steps": 2, "learning_rate": 0.01, **train},
            "samples": {"max_new_tokens": 3},
            "evaluate": {"prompts": 2, "max_new_tokens": 3},
            "output": str(output),
        }
    )


def ask_to_stop() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output = tmp_path_factory.mktemp("whole") / "run"
    return start(make_ready(config(base, output), base), "a test", Silent())


def losses(run: RunFolder) -> list[tuple[int, float | None, float | None]]:
    return [(record["step"], record.get("loss"), record.get("validation_loss")) for record in run.metrics()]


def assert_same_end(run: RunFolder, whole: RunFolder) -> None:
    assert losses(run) == losses(whole)
    assert run.samples() == whole.samples()
    expected = load_file(whole.adapter_path / "adapter_model.safetensors")
    actual = load_file(run.adapter_path / "adapter_model.safetensors")
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert run.status()["state"] == "done"
    assert run.report_json.exists()


@pytest.mark.parametrize(
    ("place", "step"), [("step 0", 0), ("sample 0", 0), ("step 1", 1), ("step 4", 4), ("sample 4", 4)]
)
def test_a_stop_request_is_followed_by_a_checkpoint_and_the_same_end(
    base: Path, whole: RunFolder, tmp_path: Path, place: str, step: int
) -> None:
    watcher = Acts(place, ask_to_stop)
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step} of {STEPS}"):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", watcher)
    run = RunFolder.open(tmp_path / "run")
    assert watcher.times
    assert next(folder.name for folder in run.checkpoints()) == f"step-{step}"
    assert (run.status()["state"], run.status()["step"]) == ("interrupted", step)
    assert "stopped by SIGTERM" in run.log_tail()
    assert_same_end(resume(run, Silent()), whole)


def test_a_stop_request_after_the_last_step_leaves_only_the_report_out(
    base: Path, whole: RunFolder, tmp_path: Path
) -> None:
    watcher = Acts("tuned model", ask_to_stop)
    with pytest.raises(Interrupted, match="training is done and saved; the report was left out"):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", watcher)
    run = RunFolder.open(tmp_path / "run")
    assert run.adapter_path.exists()
    assert not run.report_json.exists()
    assert run.status()["state"] == "interrupted"
    assert_same_end(resume(run, Silent()), whole)


def test_a_request_that_is_repeated_is_followed_by_a_checkpoint_too(
    base: Path, whole: RunFolder, tmp_path: Path
) -> None:
    def twice() -> None:
        ask_to_stop()
        ask_to_stop()

    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3"):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 3", twice))
    run = RunFolder.open(tmp_path / "run")
    assert next(folder.name for folder in run.checkpoints()) == "step-3"
    assert_same_end(resume(run, Silent()), whole)


def test_ctrl_c_after_a_request_ends_at_once(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    def hurry() -> None:
        ask_to_stop()
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 3", hurry))
    run = RunFolder.open(tmp_path / "run")
    assert run.status()["state"] == "interrupted"
    assert run.status()["reason"] == "stopped at once by Ctrl-C"
    assert_same_end(resume(run, Silent()), whole)


def test_a_mistake_of_ours_is_logged_with_its_traceback(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by accident")

    with pytest.raises(ZeroDivisionError):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 3", fail))
    run = RunFolder.open(tmp_path / "run")
    assert run.status()["state"] == "failed"
    assert run.status()["reason"] == "ZeroDivisionError: by accident"
    assert "Traceback (most recent call last)" in run.log_path.read_text("utf-8")
    assert_same_end(resume(run, Silent()), whole)  # from step 2


def test_damaged_checkpoints_are_passed_over_aloud(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 4", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    damaged = run.checkpoint_path(4) / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    watcher = Acts("step-4 is passed over", lambda: None)
    assert_same_end(resume(run, watcher), whole)
    assert watcher.times == 1


def test_full_tuning_resumes_too(base: Path, tmp_path: Path) -> None:
    uninterrupted = start(make_ready(config(base, tmp_path / "whole", "full"), base), "a test", Silent())
    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run", "full"), base), "a test", Acts("step 3", ask_to_stop))
    run = resume(RunFolder.open(tmp_path / "run"), Silent())
    assert losses(run) == losses(uninterrupted)
    expected = load_file(uninterrupted.model_path / "model.safetensors")
    actual = load_file(run.model_path / "model.safetensors")
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_max_steps_go_beyond_the_epochs_and_resume_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    """Plan, status, progress and schedule all count max_steps; 9 steps of 4 are more than the 27 examples."""
    more = {"epochs": 0.5, "max_steps": 9, "warmup": 0.0, "schedule": "linear"}
    ready = make_ready(config(base, tmp_path / "whole", **more), base)
    assert ready.plan.steps == 9
    whole = start(ready, "a test", Silent())
    steps = whole.metrics()[1:]
    assert [record["step"] for record in steps] == list(range(1, 10))
    assert {record["samples"] for record in steps} == {4}
    assert [record["learning_rate"] for record in steps] == pytest.approx([0.01 * (9 - n) / 9 for n in range(9)])
    assert steps[-1]["epoch"] == pytest.approx(36 / 27)
    assert (whole.status()["step"], whole.status()["total_steps"]) == (9, 9)
    with pytest.raises(Interrupted, match="after step 7 of 9"):
        start(make_ready(config(base, tmp_path / "run", **more), base), "a test", Acts("step 7", ask_to_stop))
    assert_same_end(resume(RunFolder.open(tmp_path / "run"), Silent()), whole)


def test_a_running_run_is_not_resumed(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 1", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    run.write_status("running", 1, STEPS)
    with pytest.raises(UsageError, match="is still running; stop it first with: tunewright stop"):
        resume(run, Silent())


def test_two_resumes_at_once_do_not_both_train(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 1", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    refused = []

    class Second(Silent):
        def say(self, line: str) -> None:
            if line.startswith("going on"):
                with pytest.raises(UsageError, match="another process is about to train in") as caught:
                    resume(run, Silent())
                refused.append(caught)

    assert_same_end(resume(run, Second()), whole)
    assert len(refused) == 1


def test_tensorboard_shows_each_step_once_when_nothing_was_saved(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    """As after a kill before the first checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 1", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    shutil.rmtree(run.checkpoints_path)
    assert_same_end(resume(run, Silent()), whole)
    events = EventAccumulator(str(run.tensorboard_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_a_run_whose_machine_is_gone_is_resumed_here(base: Path, whole: RunFolder, tmp_path: Path) -> None:
    """As when a container is killed and starts again under another name."""
    with pytest.raises(Interrupted):
        start(make_ready(config(base, tmp_path / "run"), base), "a test", Acts("step 3", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    run.write_status("running", 3, STEPS)
    elsewhere(run, SILENT_SECONDS - 30)
    with pytest.raises(
        UsageError, match="run runs on the machine not-.*, heard 4 min 3. s ago: stop it there; if that machine"
    ):
        resume(run, Silent())
    elsewhere(run, SILENT_SECONDS + 30)
    assert_same_end(resume(run, Silent()), whole)


def test_every_choice_is_written_down(base: Path, whole: RunFolder) -> None:
    """So that another machine, with other types and other memory, goes on as this one began."""
    assert whole.config.train.forest_tokens is not None
    assert whole.config.train.recompute == "off"
    assert whole.config.model.dtype in ("float32", "bfloat16")
    assert whole.config.output == str(whole.path)


def test_layers_are_computed_again_before_and_after_a_stop(
    base: Path, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plan of the first start chose, whatever room there is later; and the end is that of a run without."""
    again: list[object] = []
    forward = checkpointing.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        again.append(args)
        return forward(*args, **kwargs)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    ready = make_ready(config(base, tmp_path / "run", recompute="full"), base)
    again.clear()  # of the plan
    with pytest.raises(Interrupted):
        start(ready, "a test", Acts("step 2", ask_to_stop))
    run = RunFolder.open(tmp_path / "run")
    layers, steps = ready.plan.layers, sum("loss" in record for record in run.metrics())
    assert run.config.train.recompute == "full"
    assert len(again) == layers * steps
    again.clear()
    run = resume(run, Silent())
    assert len(again) == layers * (1 + STEPS - steps)  # the plan's own pass, and the steps that were left
    assert_same_end(run, whole)
