"""`tunewright stop DIR`: ask a training run to stop at the next safe place, and wait until it has."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.errors import RunError, UsageError
from tunewright.runs.folder import RunFolder
from tunewright.runs.liveness import is_alive, is_here, stop_it_there


def stop(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the run.")],
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds without any progress after which waiting ends; the run goes on.")
    ] = 300.0,
) -> None:
    """Stop a training run; it writes a checkpoint first."""
    run = RunFolder.open(path)
    status = run.status()
    if status["state"] != "running":
        print(f"{path} is not running: {status['state']} at step {status['step']} of {status['total_steps']}")
        return
    if not is_here(status):
        raise UsageError(f"{path} {stop_it_there(status)}")
    print(f"asking process {status['pid']} to stop; step {status['step']} is done …", flush=True)
    try:
        os.kill(status["pid"], signal.SIGTERM)
    except ProcessLookupError:
        print("it has ended just now")
    except PermissionError as error:
        raise UsageError(f"process {status['pid']} of {path} belongs to another user, who can stop it") from error
    wait_for_end(run, status, patience)
    ended = run.status()
    newest = next((folder.name for folder in run.checkpoints()), None)
    print(f"{path}: {ended['state']} at step {ended['step']} of {ended['total_steps']}, checkpoint {newest or 'none'}")
    if ended["state"] != "done" and newest:
        print(f"go on with it: tunewright resume {path}")


def wait_for_end(run: RunFolder, status: dict[str, Any], patience: float) -> None:
    """Return when the process is gone; RunError after `patience` seconds in which nothing in the folder changed."""
    seen, since = _newest_change(run), time.monotonic()
    while is_alive(status):
        time.sleep(0.1)
        change = _newest_change(run)
        if change != seen:
            seen, since = change, time.monotonic()
        elif time.monotonic() - since > patience:
            raise RunError(
                f"{run.path}: process {status['pid']} was asked to stop and shows no progress for {patience:g} s; "
                f"`kill -9 {status['pid']}` ends it, `tunewright resume {run.path}` then goes on from "
                "the newest sound checkpoint, or from the beginning if there is none"
            )


def _newest_change(run: RunFolder) -> float:
    """Time of the last change of a file of the run, but for its heartbeat; files vanish while one is being renamed."""
    newest = 0.0
    for folder, _, names in os.walk(run.path):
        for name in names:
            if run.status_json.name in name:
                continue  # it beats in a process that hangs too
            try:
                newest = max(newest, os.stat(os.path.join(folder, name)).st_mtime)
            except FileNotFoundError:
                continue
    return newest
