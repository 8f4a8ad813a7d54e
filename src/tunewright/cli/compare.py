"""Put several runs side by side: the settings that differ, losses, rates, speed and memory.

tunewright compare DIR DIR… [--plot FILE.png] [--json]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli.output import number, print_json, print_table
from tunewright.errors import UsageError
from tunewright.units import duration, gib

if TYPE_CHECKING:
    from tunewright.evaluate.comparison import RunResult


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR…", help="Two or more run folders.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw their loss curves over each other to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put several runs side by side."""
    from tunewright.evaluate.comparison import compare_runs, distinct_names
    from tunewright.runs.folder import RunFolder

    if len(folders) < 2:
        raise UsageError("compare needs two runs or more; `tunewright runs` lists the runs here")
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise UsageError("compare: the same run is named twice; name each run once")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UsageError(f"--plot: there is no folder {plot.parent}; make it first, or choose another file")
    runs = [RunFolder.open(folder) for folder in folders]
    names = distinct_names(folders)
    results = compare_runs(runs)
    if plot is not None:
        from tunewright.evaluate.plots import plot_runs

        plot_runs({name: run.metrics() for name, run in zip(names, runs, strict=True)}, plot)
    if as_json:
        print_json([result.as_json() for result in results])
    else:
        print_table(["", *names], _rows(results))
        if plot is not None:
            print(f"\nloss curves: {plot}")


def _rows(results: "list[RunResult]") -> list[list[str]]:
    settings = [[key, *(_value(result.settings[key]) for result in results)] for key in results[0].settings]
    outcome = [
        ["state", *(result.state for result in results)],
        ["steps", *("" if result.steps is None else f"{result.steps:,}" for result in results)],
        ["training loss", *(number(result.training_loss) for result in results)],
        ["validation loss", *(number(result.validation_loss) for result in results)],
        ["stop rate", *(_share(result.stop_rate) for result in results)],
        ["loop rate", *(_share(result.loop_rate) for result in results)],
        ["samples/s", *(number(result.samples_per_second, 2) for result in results)],
        ["training time", *("" if result.seconds is None else duration(result.seconds) for result in results)],
        [
            "peak memory",
            *("" if result.peak_memory_bytes is None else gib(result.peak_memory_bytes) for result in results),
        ],
    ]
    return [*settings, *(row for row in outcome if any(row[1:]))]


def _value(value: Any) -> str:
    """A config value as YAML would have it."""
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
