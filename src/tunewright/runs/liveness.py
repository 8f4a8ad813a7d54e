"""Whether the process of a run still lives: on this machine by its number, on another one by its heartbeat."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tunewright.units import duration

BEAT_SECONDS = 15.0
# A run on another machine that was not heard for so long is gone. Far above a beat: clocks and network disks lag.
SILENT_SECONDS = 300.0


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Within the block `beat` is called now and then from a thread, however long a step or a validation takes."""
    over = threading.Event()

    def keep_beating() -> None:
        while not over.wait(BEAT_SECONDS):
            with suppress(OSError):  # a full disk is for the run itself to tell
                beat()

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def why_gone(status: dict[str, Any]) -> str | None:
    """Why the process that wrote a status "running" no longer runs; None while it does."""
    if is_here(status):
        return None if is_alive(status) else "the process is gone without a word"
    silent = time.time() - status["heartbeat"]
    if silent <= SILENT_SECONDS:
        return None
    return f"its machine {status['host']} has not been heard for {duration(silent)}"


def is_here(status: dict[str, Any]) -> bool:
    """Whether a status was written on this machine."""
    return bool(status["host"] == socket.gethostname())


def is_alive(status: dict[str, Any]) -> bool:
    """Whether the process that wrote a status here is still that process: its number may have gone to another."""
    import psutil

    try:
        process = psutil.Process(status["pid"])
        ended = process.status() == psutil.STATUS_ZOMBIE  # over, and its parent has not looked yet
        return not ended and abs(process.create_time() - status["process_started"]) < 2
    except psutil.NoSuchProcess:
        return False


def stop_it_there(status: dict[str, Any]) -> str:
    """What to do about a run that another machine keeps, or kept until a moment ago."""
    silent = max(0.0, time.time() - status["heartbeat"])
    return (
        f"runs on the machine {status['host']}, heard {duration(silent)} ago: stop it there; if that machine is gone, "
        f"try again when it has been silent for {duration(SILENT_SECONDS)}"
    )
