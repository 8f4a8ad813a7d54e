"""Rows -> a file of JSON lines that is there in whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from tunewright.errors import RunError, UsageError


@contextmanager
def write_lines(target: Path, replace: bool) -> Iterator[Callable[[dict[str, Any]], object]]:
    """A function that writes one row; the file appears under its name when all is written.

    Raises UsageError where `target` exists and is not to be replaced, or does not end in .jsonl, and RunError when it
    cannot be written.
    """
    if target.suffix.lower() != ".jsonl":
        raise UsageError(f"{target}: rows are written as JSON lines: name a file that ends in .jsonl")
    if target.exists() and not replace:
        raise UsageError(f"{target} exists already: name another file, or replace it with --force")
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with aside.open("xb") as file:
            yield lambda row: file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        os.replace(aside, target)
    except OSError as fault:
        raise RunError(f"cannot write {target}: {fault.strerror or fault}") from fault
    finally:
        with suppress(OSError):  # it was renamed, or never made
            aside.unlink()
