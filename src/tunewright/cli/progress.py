"""What a training run shows: a bar with numbers in a terminal, lines elsewhere; and answers on the way."""

import time
from typing import TYPE_CHECKING, Any

from tunewright.units import duration, gib

if TYPE_CHECKING:
    from tunewright.evaluate.answers import Question
    from tunewright.models.generate import Answer
    from tunewright.runs.folder import RunFolder

# Without a terminal a line is printed at most so often, in seconds.
LINE_EVERY = 10.0
# Weight of the newest step in the smoothed loss and speed.
SMOOTHING = 0.1


class Progress:
    """A `Watcher` (engine/watch.py) for people; use it as a context so that the bar is taken down.

    Of several processes one is `shown`.
    """

    def __init__(self, shown: bool = True) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        self._bar: Any = None
        self._task: Any = None
        self._loss: float | None = None
        self._seconds: float | None = None
        self._total = 0
        self._last_line = 0.0
        self._sampled = -1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begin(self, run: "RunFolder", step: int, total_steps: int) -> None:
        self._total = total_steps
        self.console.print(f"run folder {run.path}")
        if self.console.is_terminal and not self.console.quiet:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(bar_width=24),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[numbers]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=step, numbers="")
            self._bar.start()

    def step(self, record: dict[str, Any]) -> None:
        if "loss" not in record:
            self.say(f"before training: validation loss {record['validation_loss']:.3f}")
            return
        self._loss = _smooth(self._loss, record["loss"])
        self._seconds = _smooth(self._seconds, record["step_seconds"])
        numbers = self._numbers(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], numbers=numbers)
        validated = "validation_loss" in record
        due = self._bar is None and (time.monotonic() - self._last_line > LINE_EVERY or record["step"] == self._total)
        if validated or due:
            self._last_line = time.monotonic()
            ending = f"  validation loss {record['validation_loss']:.3f}" if validated else ""
            self.say(f"step {record['step']}/{self._total}  {numbers}{ending}")
        if record["step"] == self._total:
            self.__exit__()

    def sample(self, step: int, question: "Question", reply: "Answer") -> None:
        if step != self._sampled:
            self._sampled = step
            self.say(f"answers {'before training' if step == 0 else f'after step {step}'}:")
        cut = "" if reply.finish == "stop" else " (cut by length)"
        self.say(f"  {_one_line(question.text)} → {_one_line(reply.text)}{cut}")

    def say(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(line))

    def _numbers(self, record: dict[str, Any]) -> str:
        left = (self._total - record["step"]) * (self._seconds or 0.0)
        return (
            f"loss {self._loss:.3f}  {record['samples_per_second']:.1f} samples/s  "
            f"{record['tokens_per_second']:,.0f} tokens/s  {gib(record['memory_bytes'])}  {duration(left)} left"
        )


def _smooth(before: float | None, value: float) -> float:
    return value if before is None else (1 - SMOOTHING) * before + SMOOTHING * value


def _one_line(text: str, limit: int = 160) -> str:
    joined = " ⏎ ".join(part for part in text.strip().splitlines() if part.strip())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"
