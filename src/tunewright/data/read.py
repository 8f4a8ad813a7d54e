"""Read a data file row by row, each with its place: JSON, JSON lines, Excel, and plain text with a row per line.

Every fault of a file is a UsageError that says what, where and how to mend it.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.config.schema import SourceConfig
from tunewright.data.encoding import read_text
from tunewright.data.examples import Place
from tunewright.data.read_excel import read_sheet
from tunewright.data.scan_json import scan_rows
from tunewright.data.suggest import nearest
from tunewright.errors import UsageError

JSON = (".json", ".jsonl")
EXCEL = (".xlsx", ".xlsm")
TEXT = (".txt",)
KNOWN = ", ".join(JSON + EXCEL + TEXT)


def read_rows(source: SourceConfig, base: Path, key: str = "data.train") -> Iterator[tuple[dict[str, Any], Place]]:
    """Stream the rows of one source, at most `max_samples` of them.

    A relative path starts at `base`, the folder of the config. A line of a .txt file becomes `{"text": line}`; cells
    of a sheet are text. `key` is the config key of the source, for messages. Raises UsageError.
    """
    path = find_file(source, base, key)
    numbered = _numbered_rows(path, source, key)
    try:
        first = next(numbered, None)
        if first is None:
            empty = "is empty" if path.stat().st_size == 0 else "holds no rows"
            raise UsageError(f"{source.path} {empty}")
        if source.max_samples is not None:
            numbered = islice(numbered, source.max_samples - 1)
        yield first[0], Place(source.path, first[1])
        for row, line in numbered:
            yield row, Place(source.path, line)
    except OSError as fault:
        raise UsageError(f"{source.path} can't be read: {fault.strerror or fault}") from None


def find_file(source: SourceConfig, base: Path, key: str = "data.train") -> Path:
    """Where the source's file lies. Raises UsageError where there is no file that could be read."""
    path = base / os.path.expanduser(source.path)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            names = _data_files(path)
            inside = f"; it holds {', '.join(names[:5])}" if names else ""
            raise UsageError(f"{key}: {source.path} is a folder, name a file{inside}")
        if path.exists():
            raise UsageError(f"{key}: {source.path} is not a regular file")
        if not path.parent.is_dir():
            raise UsageError(f"{key}: {source.path} does not exist, nor does the folder {path.parent}")
        hint = nearest(path.name, _data_files(path.parent))
        raise UsageError(f"{key}: {source.path} does not exist in {path.parent.resolve()}{hint}")
    except OSError as fault:
        raise UsageError(f"{key}: {source.path} can't be read: {fault.strerror}") from None


def _data_files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in JSON + EXCEL + TEXT)


def _numbered_rows(path: Path, source: SourceConfig, key: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows and 1-based line numbers, by the ending of the file's name."""
    ending = path.suffix.lower()
    if source.sheet is not None and ending not in EXCEL:
        raise UsageError(f"{key}.sheet is for Excel files, which {source.path} is not: remove that key")
    if source.encoding is not None and ending in EXCEL:
        raise UsageError(f"{key}.encoding is for text files, but {source.path} is an Excel file: remove that key")
    if ending in JSON:
        return scan_rows(read_text(path, source.path, source.encoding, key), source.path)
    if ending in EXCEL:
        return read_sheet(path, source.path, source.sheet, key)
    if ending in TEXT:
        return _text_rows(read_text(path, source.path, source.encoding, key))
    if ending == ".xls":
        raise UsageError(f"{source.path} is in the old Excel format: save it as .xlsx")
    kind = f"files ending in {ending}" if ending else "files without an ending"
    raise UsageError(f"{source.path}: {kind} can't be read; use one of {KNOWN}")


def _text_rows(pieces: Iterator[str]) -> Iterator[tuple[dict[str, Any], int]]:
    """A row for each line that is not blank; only \\n and \\r\\n end a line."""
    number, rest = 0, ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            number += 1
            if line.strip():
                yield {"text": line.removesuffix("\r")}, number
    if rest.strip():
        yield {"text": rest.removesuffix("\r")}, number + 1
