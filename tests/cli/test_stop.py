"""`tunewright stop` on a real process that keeps a run's status."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.test_folder import elsewhere, make_run
from tunewright.runs.folder import RunFolder

TRAINING = """
import sys, time
from pathlib import Path
from tunewright.engine.signals import catch_stop_signals
from tunewright.runs import liveness
from tunewright.runs.folder import RunFolder
from tunewright.runs.liveness import beating

liveness.BEAT_SECONDS = 0.05  # often, for a beating heart is no progress
run, obedient = RunFolder.open(Path(sys.argv[1])), sys.argv[2] == "obedient"
step = 0
with catch_stop_signals() as asked, beating(run.beat):
    while not (asked and obedient):
        step = min(step + 1, 5)
        if step < 5:
            run.write_status("running", step, 100)
        time.sleep(0.02)
    (run.path / "saving").touch()
    time.sleep(0.5)
    run.checkpoint_path(step).mkdir(parents=True)
run.write_status("interrupted", step, 100, "asked to stop")
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "a")


def start(run: RunFolder, manner: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", TRAINING, str(run.path), manner])
    deadline = time.monotonic() + 30
    while run.status()["state"] != "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def obedient(run: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    yield from start(run, "obedient")


@pytest.fixture
def stubborn(run: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    yield from start(run, "stubborn")


def test_stop_waits_for_the_checkpoint(tunewright, run: RunFolder, obedient: subprocess.Popen[bytes]) -> None:
    done = tunewright("stop", str(run.path))
    assert done.code == 0
    newest = run.checkpoints()[0].name
    assert done.out.splitlines()[1:] == [
        f"{run.path}: interrupted at step {newest.removeprefix('step-')} of 100, checkpoint {newest}",
        f"go on with it: tunewright resume {run.path}",
    ]
    assert obedient.wait(10) == 0


def test_a_second_stop_waits_for_the_same_checkpoint(
    tunewright, run: RunFolder, obedient: subprocess.Popen[bytes]
) -> None:
    os.kill(obedient.pid, signal.SIGTERM)
    while not (run.path / "saving").exists():
        time.sleep(0.01)
    done = tunewright("stop", str(run.path))
    assert done.code == 0
    newest = run.checkpoints()[0].name
    assert f"{run.path}: interrupted at step {newest.removeprefix('step-')} of 100, checkpoint {newest}" in done.out
    assert obedient.wait(10) == 0


def test_stop_of_a_run_on_another_machine(tunewright, run: RunFolder) -> None:
    run.write_status("running", 3, 100)
    elsewhere(run, 30)
    done = tunewright("stop", str(run.path))
    assert done.code == 2
    assert done.err == (
        f"error: {run.path} runs on the machine {run.status()['host']}, heard 30 s ago: stop it there; "
        "if that machine is gone, try again when it has been silent for 5 min 00 s\n"
    )
    elsewhere(run, 86400)
    assert tunewright("stop", str(run.path)) == (0, f"{run.path} is not running: died at step 3 of 100\n", "")


def test_stop_gives_up_when_nothing_moves(tunewright, run: RunFolder, stubborn: subprocess.Popen[bytes]) -> None:
    done = tunewright("stop", str(run.path), "--patience", "1")
    assert done.code == 1
    assert done.err == (
        f"error: {run.path}: process {stubborn.pid} was asked to stop and shows no progress for 1 s; "
        f"`kill -9 {stubborn.pid}` ends it, `tunewright resume {run.path}` then goes on from "
        "the newest sound checkpoint, or from the beginning if there is none\n"
    )
    assert stubborn.poll() is None, "stop asks; it does not kill"


def test_stop_of_a_run_that_is_over(tunewright, run: RunFolder) -> None:
    run.write_status("done", 9, 9)
    assert tunewright("stop", str(run.path)) == (0, f"{run.path} is not running: done at step 9 of 9\n", "")


def test_stop_of_no_run(tunewright, tmp_path: Path) -> None:
    assert tunewright("stop", str(tmp_path)).code == 2
