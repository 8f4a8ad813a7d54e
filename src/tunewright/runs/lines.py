"""JSON lines that grow while a run goes on: appended with one write each, read without a line that a kill cut off."""

import os
from pathlib import Path
from typing import Any

import orjson

from tunewright.errors import RunError
from tunewright.files import write_atomic


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line with a single write; a line that a kill had cut off is removed first."""
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(_line(record))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file, without a cut last one; empty if there is no file. Raises RunError on any other damage."""
    if not path.exists():
        return []
    *whole, _cut = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            records.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise RunError(f"{path}:{number}: this line is damaged: {error}") from error
    return records


def keep_lines(path: Path, step: int) -> None:
    """Forget the lines of later steps than `step`."""
    if path.exists():
        kept = [record for record in read_lines(path) if record.get("step", 0) <= step]
        write_atomic(path, b"".join(map(_line, kept)))


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
