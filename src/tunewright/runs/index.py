"""List the runs under a folder, each with the numbers a reader looks for first; read afresh from the run folders."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import TunewrightError
from tunewright.runs.folder import RunFolder
from tunewright.runs.names import is_run


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run at a glance. `started` is in seconds since 1970; a number is None where the run has none yet."""

    path: str
    state: str
    reason: str | None
    step: int
    total_steps: int
    train_loss: float | None
    validation_loss: float | None
    samples_per_second: float | None
    model: str
    data: str
    tuning: str
    started: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(root: Path) -> list[RunSummary]:
    """Every run in or below `root`, the last started first. A damaged run is listed as `unreadable` with the reason."""
    return sorted((summarise(RunFolder(path)) for path in _find_runs(root)), key=lambda run: -(run.started or 0))


def summarise(run: RunFolder) -> RunSummary:
    """The summary of one run."""
    try:
        status, config, metrics = run.status(), run.config, run.metrics()
    except (TunewrightError, ValueError, OSError) as error:
        started = run.config_path.stat().st_mtime
        return RunSummary(str(run.path), "unreadable", str(error), 0, 0, None, None, None, "", "", "", started)
    return RunSummary(
        path=str(run.path),
        state=status["state"],
        reason=status["reason"],
        step=status["step"],
        total_steps=status["total_steps"],
        train_loss=_last(metrics, "loss"),
        validation_loss=_last(metrics, "validation_loss"),
        samples_per_second=_last(metrics, "samples_per_second"),
        model=config.model.name,
        data=", ".join([*(Path(source.path).name for source in config.data.train), *config.data.use]),
        tuning=f"{config.method.stage} {config.method.tuning}",
        started=status.get("started", run.config_path.stat().st_mtime),
    )


def _find_runs(root: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(root):
        if is_run(Path(folder)):
            names.clear()  # nothing inside a run is another run
            yield Path(folder)
        names[:] = [name for name in names if not name.startswith(".")]


def _last(metrics: list[dict[str, Any]], key: str) -> float | None:
    return next((record[key] for record in reversed(metrics) if record.get(key) is not None), None)
