"""`tunewright show RUN|RECIPE|FILE [key=value …]`: a run's summary, or a config with every default filled in."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tunewright.cli.output import moment, number, print_json, print_table
from tunewright.errors import UsageError
from tunewright.units import duration


def show(
    target: Annotated[str, typer.Argument(help="Run folder, recipe or config file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Changes to a config.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's summary, or a recipe or config with every default filled in."""
    if Path(target).is_dir():
        if overrides:
            raise UsageError(
                f"{overrides[0]}: {target} is a run, which nothing changes any more; "
                f"show its config instead: tunewright show {target}/config.yaml {overrides[0]}"
            )
        show_run(Path(target), as_json)
    else:
        show_config(Path(target), overrides or [], as_json)


def show_config(path: Path, overrides: list[str], as_json: bool) -> None:
    """Print the whole config as it would train, and where each value that is no default comes from."""
    from tunewright.config.load import dump_config, non_defaults, read_config

    read = read_config(path, overrides)
    if as_json:
        print_json(read.config.model_dump(mode="json"))
        return
    print(dump_config(read.config))
    print("# Not a default:")
    for setting in non_defaults(read):
        print(f"#   {setting}")


def show_run(path: Path, as_json: bool) -> None:
    """Print state, losses, report and files of a run."""
    import orjson

    from tunewright.runs.folder import RunFolder
    from tunewright.runs.index import summarise

    run = RunFolder.open(path)
    summary = summarise(run)
    metrics = [] if summary.state == "unreadable" else run.metrics()
    seconds = metrics[-1].get("seconds") if metrics else None  # in steps: a pause before a resume is none of it
    report: dict[str, Any] = orjson.loads(run.report_json.read_bytes()) if run.report_json.exists() else {}
    checkpoints = [folder.name for folder in run.checkpoints()]
    if as_json:
        print_json(summary.as_dict() | {"report": report, "checkpoints": checkpoints})
        return
    print(f"{summary.path}: {summary.state}, step {summary.step} of {summary.total_steps}")
    if summary.reason:
        print(f"  {summary.reason}")
    rows = [
        ("model", summary.model),
        ("data", summary.data),
        ("method", summary.tuning),
        ("started", moment(summary.started)),
        ("training time", duration(seconds) if seconds else ""),
        ("train loss", number(summary.train_loss)),
        ("validation loss", number(summary.validation_loss)),
        ("samples/s", number(summary.samples_per_second, 2)),
        ("checkpoints", ", ".join(checkpoints)),
        ("result", next((str(made) for made in (run.adapter_path, run.model_path) if made.exists()), "")),
    ]
    for name, value in rows:
        if value:
            print(f"  {name:<16}{value}")
    print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Base against tuned, one measure a line; nothing where a run has no report yet."""
    base, tuned = report.get("base") or {}, report.get("tuned") or {}
    names = [name for name, value in tuned.items() if isinstance(value, int | float)]
    if names:
        print()
        print_table(["report", "base", "tuned"], [[n, _shown(base.get(n)), _shown(tuned[n])] for n in names], "  ")


def _shown(value: float | None) -> str:
    """A count as it is, any other number with decimals."""
    return f"{value:,}" if isinstance(value, int) else number(value)
