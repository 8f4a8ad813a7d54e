"""The run folder: complete from its first moment, never half-written, honest about a process that is gone."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tunewright.config.load import load_config
from tunewright.errors import RunError, UsageError
from tunewright.files import write_atomic
from tunewright.runs import liveness
from tunewright.runs.folder import RunFolder
from tunewright.runs.index import list_runs, summarise
from tunewright.runs.lines import append_line, read_lines
from tunewright.runs.liveness import SILENT_SECONDS, beating
from tunewright.runs.output import check_output, choose_output
from tunewright.runs.provenance import collect


def make_run(path: Path, *settings: str, model_folder: Path | None = None) -> RunFolder:
    """A fresh run folder as training makes it."""
    config = load_config(None, ["model=tiny", "data=rows.json", *settings])
    return RunFolder.create(
        path,
        config,
        "tunewright train",
        template_source="{{ messages }}",
        stop_ids=[2, 0],
        provenance=collect("ab12", model_folder or path.parent, "main"),
    )


def gone_process(status: dict[str, Any]) -> dict[str, Any]:
    """The status as a process would have left it that has ended since."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return status | {"pid": child.pid}


# Creating and opening


def test_what_was_created_is_what_is_opened(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "train.epochs=7")
    run = RunFolder.open(tmp_path / "runs" / "a")
    assert run.config.train.epochs == 7
    assert (run.template_source, run.stop_ids, run.model_folder) == ("{{ messages }}", (2, 0), tmp_path / "runs")
    assert run.provenance["command"] == "tunewright train"
    assert run.provenance["data_sha256"] == "ab12"
    assert run.provenance["versions"]["torch"]
    assert run.status() == {"state": "new", "step": 0, "total_steps": 0, "reason": None}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"], "nothing is left beside it"


def test_its_config_trains_again_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.json").touch()
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/a"))
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "runs/a/config.yaml")
    assert config.data.train[0].path == str(tmp_path / "rows.json")
    assert config.model.name == "tiny", "a folder that only shares a built-in's name is not the model"
    assert config.output == str(tmp_path / run.path)


def test_a_model_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert make_run(Path("a"), model_folder=Path("tiny")).config.model.name == str(tmp_path / "tiny")


def test_a_link_to_a_model_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "real").mkdir(parents=True)
    Path("tiny").symlink_to(tmp_path / "models" / "real")
    run = make_run(Path("a"), model_folder=tmp_path / "models" / "real")  # as it is resolved
    assert run.config.model.name == str(tmp_path / "tiny")


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(UsageError) as caught:
        make_run(tmp_path / "a")
    assert str(caught.value) == (
        f"output: {tmp_path / 'a'} already holds a run; name a new folder with output=DIR, "
        f"or go on with that run: tunewright resume {tmp_path / 'a'}"
    )


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in "dcba":
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path)
    assert str(caught.value) == (
        f"output: {tmp_path} is not empty (it holds a, b, c, …); name a new folder with output=DIR"
    )
    with pytest.raises(UsageError, match="output: .*a is a file; name a new folder with output=DIR"):
        check_output(tmp_path / "a")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert make_run(tmp_path / "a").config_path.is_file()


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.yaml").touch()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "run.yaml" / "x" / "y")
    assert str(caught.value) == f"output: {tmp_path / 'run.yaml'} is a file; name a new folder with output=DIR"

    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a disk that can only be read; root may do all else
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "a" / "b")
    assert str(caught.value) == f"output: {tmp_path} cannot be written to; name a new folder with output=DIR"


def test_what_only_the_system_refuses_is_said_in_words_too(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"output: .*aaa cannot be written \(File name too long\); name another folder"
    ):
        make_run(tmp_path / ("a" * 300))
    assert list(tmp_path.iterdir()) == []


def test_the_folder_one_is_in_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path())
    assert RunFolder.open(tmp_path).config.output == str(tmp_path)
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "template.jinja", "stop.json"}


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    config = load_config(None, ["model=tiny", "data=rows.json"])
    provenance = collect("", tmp_path, None)
    with pytest.raises(TypeError):
        RunFolder.create(tmp_path / "a", config, "", template_source="", stop_ids=[object()], provenance=provenance)  # type: ignore[list-item]  # the fault under test
    assert list(tmp_path.iterdir()) == []


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run folder .*nope; `tunewright runs` lists the runs here"):
        RunFolder.open(tmp_path / "nope")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match="is not a run: it has no config.yaml with template.jinja"):
        RunFolder.open(tmp_path)


def test_a_base_model_that_is_gone_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", model_folder=tmp_path / "gone")
    with pytest.raises(UsageError, match="the base model tiny of run .*a is no longer at .*gone"):
        _ = run.model_folder


def test_output_is_named_after_the_data_and_counted_up(tmp_path: Path) -> None:
    config = load_config(None, ["model=m", "data=some/甄嬛.json"])
    assert choose_output(config, tmp_path) == tmp_path / "甄嬛"
    (tmp_path / "甄嬛").mkdir()
    (tmp_path / "甄嬛-2").mkdir()
    assert choose_output(config, tmp_path) == tmp_path / "甄嬛-3"
    assert choose_output(load_config(None, ["model=m", "data=x", "output=y/z"]), tmp_path) == Path("y/z")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("corpus/*.jsonl", "corpus"),
        ("corpus/**/part-[0-9].json", "corpus"),
        ("*.jsonl", "run"),
        ("..", "run"),
        (".hidden.json", "hidden"),
        ("shibing624/alpaca-zh", "alpaca-zh"),
    ],
)
def test_output_of_a_pattern_is_named_after_its_folder(tmp_path: Path, data: str, name: str) -> None:
    config = load_config(None, ["model=m", f"data={json.dumps(data)}"])
    assert choose_output(config, tmp_path) == tmp_path / name


def test_a_file_with_a_bracket_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].json").touch()
    config = load_config(None, ["model=m", f"data={json.dumps(str(tmp_path / 'a[1].json'))}"])
    assert choose_output(config, tmp_path) == tmp_path / "a[1]"


# Lines


def test_lines_come_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert run.metrics() == []
    run.append_metrics({"step": 1, "loss": np.float32(0.5), "grad_norm": float("nan")})
    run.append_metrics({"step": 2, "text": "甄\n嬛"})
    assert run.metrics() == [{"step": 1, "loss": 0.5, "grad_norm": None}, {"step": 2, "text": "甄\n嬛"}]


@pytest.mark.parametrize("cut", [b'{"step": 3', b'{"step": 3}', b"\xe7\x94"])
def test_a_cut_last_line_is_ignored_then_replaced(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2})
    path.write_bytes(path.read_bytes() + cut)
    assert [record["step"] for record in read_lines(path)] == [1, 2]
    append_line(path, {"step": 4})
    assert [record["step"] for record in read_lines(path)] == [1, 2, 4]


def test_a_first_line_that_is_cut_is_replaced_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"st')
    append_line(tmp_path / "x", {"step": 1})
    assert read_lines(tmp_path / "x") == [{"step": 1}]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"x:2: this line is damaged"):
        read_lines(tmp_path / "x")


def test_rewind_forgets_what_came_after_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in range(5):
        run.append_metrics({"step": step})
        run.append_sample({"step": step})
    before = run.metrics_path.read_bytes()
    run.rewind(2)
    assert [record["step"] for record in run.metrics()] == [0, 1, 2]
    assert [record["step"] for record in run.samples()] == [0, 1, 2]
    assert before.startswith(run.metrics_path.read_bytes()), "the kept lines are the same bytes"


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_atomic(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


# State


def test_a_running_process_is_running_and_keeps_its_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_status("running", 1, 10)
    first = run.status()
    run.write_status("running", 2, 10)
    second = run.status()
    assert (second["state"], second["step"], second["total_steps"], second["ended"]) == ("running", 2, 10, None)
    assert second["started"] == first["started"]
    assert second["heartbeat"] > first["heartbeat"]
    run.write_status("failed", 2, 10, "loss is not finite at step 3")
    assert run.status()["reason"] == "loss is not finite at step 3"
    assert run.status()["ended"] is not None


def test_a_process_that_is_gone_has_died_with_its_last_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_status("running", 3, 10)
    run.log_path.write_text("\n".join(f"line {n}" for n in range(9)) + "\nKilled\n")
    write_atomic(run.status_json, orjson.dumps(gone_process(run.status())))
    status = run.status()
    assert status["state"] == "died"
    assert status["reason"] == (
        "the process is gone without a word; last in its log:\nline 5\nline 6\nline 7\nline 8\nKilled"
    )
    assert status["ended"] == status["heartbeat"]


def test_a_process_number_given_to_another_process_is_not_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_status("running", 3, 10)
    write_atomic(run.status_json, orjson.dumps(run.status() | {"process_started": 1.0}))
    assert run.status()["state"] == "died"


def elsewhere(run: RunFolder, silent: float) -> dict[str, Any]:
    """Let the status be that of a run on another machine, heard so many seconds ago; the process is not here."""
    status = gone_process(run.status()) | {"host": "not-" + socket.gethostname(), "heartbeat": time.time() - silent}
    write_atomic(run.status_json, orjson.dumps(status))
    return status


def test_a_run_on_another_machine_is_believed_while_it_is_heard(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_status("running", 3, 10)
    elsewhere(run, SILENT_SECONDS - 30)
    assert run.status()["state"] == "running"


def test_a_run_whose_machine_went_silent_has_died(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_status("running", 3, 10)
    run.log_path.write_text("step 3\n")
    heard = elsewhere(run, 3 * 86400)
    status = run.status()
    assert (status["state"], status["step"], status["ended"]) == ("died", 3, heard["heartbeat"])
    assert status["reason"] == (
        f"its machine {heard['host']} has not been heard for 72 h 00 min; last in its log:\nstep 3"
    )


def test_the_heart_beats_through_a_long_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.01)
    run = make_run(tmp_path / "a")
    run.write_status("running", 3, 10)
    before = run.status()
    with beating(run.beat):
        deadline = time.monotonic() + 30
        while (after := run.status())["heartbeat"] < before["heartbeat"] + 0.05 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert after["heartbeat"] >= before["heartbeat"] + 0.05
    assert after | {"heartbeat": 0} == before | {"heartbeat": 0}
    run.write_status("done", 10, 10)
    done = run.status_json.read_bytes()
    run.beat()
    assert run.status_json.read_bytes() == done, "a run that is over has no heartbeat"


@pytest.mark.parametrize("content", [b"", b'{"state": "run', b"\0" * 40])
def test_a_status_that_a_power_cut_damaged(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path / "a")
    run.write_plan({"steps": 10})
    run.append_metrics({"step": 7})
    run.status_json.write_bytes(content)
    status = run.status()
    assert (status["state"], status["step"], status["total_steps"]) == ("died", 7, 10)
    assert status["reason"] == f"{run.status_json} is damaged, as a power cut leaves it"
    assert summarise(run).state == "died"
    run.write_status("running", 7, 10)
    assert run.status()["state"] == "running"


def test_checkpoints_newest_first_by_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert run.checkpoints() == []
    for name in ("step-9", "step-100", "step-20", "step-30.tmp", "other"):
        (run.checkpoints_path / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step-100", "step-20", "step-9"]
    assert run.checkpoint_path(20) == run.checkpoints()[1]


# The list


def test_runs_are_listed_newest_first_with_their_last_numbers(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "deep" / "old"), make_run(tmp_path / "new", "method.tuning=full")
    old.write_status("done", 10, 10)
    new.write_status("running", 4, 10)
    write_atomic(new.status_json, orjson.dumps(new.status() | {"started": new.status()["started"] + 60}))
    new.append_metrics({"step": 3, "loss": 2.5, "validation_loss": 2.75, "samples_per_second": 3.5})
    new.append_metrics({"step": 4, "loss": 2.25, "samples_per_second": 4.0})
    first, second = list_runs(tmp_path)
    assert (first.path, second.path) == (str(new.path), str(old.path))
    assert (first.state, first.step, first.total_steps) == ("running", 4, 10)
    assert (first.train_loss, first.validation_loss, first.samples_per_second) == (2.25, 2.75, 4.0)
    assert (first.model, first.data, first.tuning) == ("tiny", "rows.json", "sft full")
    assert second.train_loss is None


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    bad.config_path.write_text("model: [\n")
    states = {Path(run.path).name: run.state for run in list_runs(tmp_path)}
    assert states == {"good": "new", "bad": "unreadable"}
    assert "config.yaml:2:1" in (summarise(bad).reason or "")


def test_runs_inside_runs_and_hidden_folders_are_not_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    make_run(run.path / "checkpoints" / "b")
    make_run(tmp_path / ".hidden" / "c")
    assert [found.path for found in list_runs(tmp_path)] == [str(run.path)]
    assert list_runs(tmp_path / "nowhere") == []
