"""Ctrl-C and SIGTERM ask the loop to stop at the next safe place; after either, Ctrl-C ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Set by a signal, polled by the loop."""

    signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM only set the request; earlier handlers come back afterwards.

    A SIGINT after that raises KeyboardInterrupt: a person is in a hurry. A further SIGTERM asks for the same again, as
    `tunewright stop` and schedulers do, and the checkpoint that was promised is still written.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if not request:
            request.signal_name = signal.Signals(number).name
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
