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
    max_shard_size: Annotated[str | None, typer.Option(help="Largest weight file, as 500MB; 2GB unless named.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Step number or folder of a checkpoint of the run.")] = None,
    dtype: Annotated[
        StoredType | None, typer.Option(help="Type of the weights; base, unless named, keeps the base model's.")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write the adapter alone, in PEFT form.")
    ] = False,
) -> None:
    """Write a merged model that other programs load, and prove that it is the same."""
    if adapter_only and (dtype or max_shard_size):
        option = "--dtype" if dtype else "--max-shard-size"
        raise UsageError(f"{option}: --adapter-only writes the adapter as it is; leave one of the two out")
    largest = max_shard_size or "2GB"
    if not _SIZE.fullmatch(largest):
        raise UsageError(f"--max-shard-size: {largest!r} is no size; write it as 500MB or 2GB")
    from tunewright.export.write import export_adapter, export_model
    from tunewright.models.cache import to_stderr
    from tunewright.runs.folder import RunFolder

    folder = RunFolder.open(run)
    if adapter_only:
        done = export_adapter(folder, destination.absolute(), checkpoint)
    else:
        done = export_model(folder, destination.absolute(), checkpoint, largest, dtype or StoredType.base, to_stderr)
    for name, size in done.files.items():
        print(f"{size:>14,}  {name}")
    if done.proof is not None:
        print(f"Proven: {done.proof}.")
    print(f"Written to {destination}{'' if adapter_only else f'; talk to it: tunewright chat {destination}'}")
