"""Write a merged model that other programs load, and prove that it is the same.

    tunewright export RUN DEST [--max-shard-size 2GB] [--checkpoint N] [--adapter-only]

DEST appears only when the logits of the written files match those of the tuned model.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tunewright.errors import UsageError

_SIZE = re.compile(r"\d+(\.\d+)?[KMGT]I?B", re.IGNORECASE)


class StoredType(StrEnum):
    """Choices of --dtype."""

    base = "base"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write; must not hold anything yet.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, as 500MB or 2GB.")] = "2GB",
    checkpoint: Annotated[str | None, typer.Option(help="Step number or folder of a checkpoint of the run.")] = None,
    dtype: Annotated[StoredType, typer.Option(help="Type of the weights; base keeps the base model's.")] = (
        StoredType.base
    ),
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write the adapter alone, in PEFT form.")
    ] = False,
) -> None:
    """Write a merged model that other programs load, and prove that it is the same."""
    if not _SIZE.fullmatch(max_shard_size):
        raise UsageError(f"--max-shard-size: {max_shard_size!r} is no size; write it as 500MB or 2GB")
    from tunewright.export.write import export_adapter, export_model
    from tunewright.models.cache import to_stderr
    from tunewright.runs.folder import RunFolder

    folder = RunFolder.open(run)
    if adapter_only:
        done = export_adapter(folder, destination.absolute(), checkpoint)
    else:
        done = export_model(folder, destination.absolute(), checkpoint, max_shard_size, dtype.value, to_stderr)
    for name, size in done.files.items():
        print(f"{size:>14,}  {name}")
    if done.proof is not None:
        print(f"Proven: {done.proof}.")
    print(f"Written to {destination}{'' if adapter_only else f'; talk to it: tunewright chat {destination}'}")
