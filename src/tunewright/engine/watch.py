"""Who is told how training goes: a terminal, the run's own log.txt, or nobody."""

from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tunewright.evaluate.answers import Question
from tunewright.models.generate import Answer
from tunewright.runs.folder import RunFolder


class Watcher(Protocol):
    """Who is told how training goes; the terminal's progress display, or nobody."""

    def begin(self, run: RunFolder, step: int, total_steps: int) -> None:
        """The loop starts after `step` finished steps."""

    def step(self, record: dict[str, Any]) -> None:
        """A line was added to metrics.jsonl."""

    def sample(self, step: int, question: Question, reply: Answer) -> None:
        """A fixed question was answered after `step` steps."""

    def say(self, line: str) -> None:
        """Anything else worth a line."""


class Silent:
    """A watcher that shows nothing."""

    def begin(self, run: RunFolder, step: int, total_steps: int) -> None: ...

    def step(self, record: dict[str, Any]) -> None: ...

    def sample(self, step: int, question: Question, reply: Answer) -> None: ...

    def say(self, line: str) -> None: ...


class Logged:
    """Passes everything on to another watcher, and keeps it in a file, each line with its time."""

    def __init__(self, watcher: Watcher, path: Path) -> None:
        self._watcher = watcher
        self._path = path

    def begin(self, run: RunFolder, step: int, total_steps: int) -> None:
        self.write(f"training begins after step {step} of {total_steps}")
        self._watcher.begin(run, step, total_steps)

    def step(self, record: dict[str, Any]) -> None:
        # metrics.jsonl has every step; here stand the landmarks.
        if "validation_loss" in record:
            loss = f"loss {record['loss']:.4f}, " if "loss" in record else ""
            self.write(f"step {record['step']}: {loss}validation loss {record['validation_loss']:.4f}")
        self._watcher.step(record)

    def sample(self, step: int, question: Question, reply: Answer) -> None:
        self.write(f"step {step}: {question.text!r} → {reply.text!r} ({reply.finish})")
        self._watcher.sample(step, question, reply)

    def say(self, line: str) -> None:
        self.write(line)
        self._watcher.say(line)

    def write(self, text: str) -> None:
        """Into the file alone."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {text}\n")
