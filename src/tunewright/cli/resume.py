"""Go on with an interrupted run.

    tunewright resume DIR

Starts from the newest checkpoint whose files verify, and ends with the bits of an uninterrupted run.
"""

from pathlib import Path
from typing import Annotated

import typer


def resume(folder: Annotated[str, typer.Argument(metavar="DIR", help="The run folder.")]) -> None:
    """Go on with an interrupted run."""
    from tunewright.cli.imports import heavy_imports
    from tunewright.cli.progress import Progress
    from tunewright.cli.train import show_end
    from tunewright.runs.folder import RunFolder

    opened = RunFolder.open(Path(folder))
    with heavy_imports():
        from tunewright.engine.processes import Processes
        from tunewright.engine.start import resume as resume_run
    with Progress(shown=Processes().is_main) as progress:
        run = resume_run(opened, progress)
        show_end(run, progress)
