"""`tunewright runs [DIR] [--json]`: the runs in a folder, newest first."""

from pathlib import Path
from typing import Annotated

import typer

from tunewright.cli.output import moment, number, print_json, print_table
from tunewright.errors import UsageError


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs, newest first."""
    from tunewright.runs.index import list_runs

    if not folder.exists() and folder != Path("runs"):
        raise UsageError(f"there is no folder {folder}")
    found = list_runs(folder)
    if as_json:
        print_json([run.as_dict() for run in found])
        return
    if not found:
        print(f"no runs in {folder}")
        return
    head = ["run", "state", "step", "train loss", "validation loss", "samples/s", "method", "model", "data", "started"]
    rows = [
        [
            run.path,
            run.state,
            f"{run.step}/{run.total_steps}",
            number(run.train_loss),
            number(run.validation_loss),
            number(run.samples_per_second, 2),
            run.tuning,
            run.model,
            run.data,
            moment(run.started),
        ]
        for run in found
    ]
    print_table(head, rows)
    for run in found:
        if run.state in ("died", "failed", "unreadable") and run.reason:
            print(f"{run.path} {run.state}: {run.reason}")
