"""Read data files row by row, each row with its place: JSON, delimited text, Excel, Parquet, Arrow and plain text.

Nothing is kept of rows that have been given out. Every fault of a file is a UsageError that says what, where and how
to mend it.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.config.schema import SourceConfig
from tunewright.data.encoding import read_text
from tunewright.data.examples import Place
from tunewright.data.find import DataFile, find_named_files
from tunewright.data.kinds import CALLED, TEXT_KINDS, ending_of, kind_of, why_not
from tunewright.data.lines import split_lines
from tunewright.data.read_arrow import read_arrow, read_parquet
from tunewright.data.read_csv import DELIMITERS, scan_table
from tunewright.data.read_excel import read_sheet
from tunewright.data.scan_json import scan_rows
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr

Row = dict[str, Any]


def read_rows(
    source: SourceConfig, base: Path, key: str = "data.train", notify: Notify = to_stderr
) -> Iterator[tuple[Row, Place]]:
    """Stream the rows of one source, file after file, at most `max_samples` of them.

    A relative path starts at `base`, the folder of the config. A line of a .txt file becomes `{"text": line}`, a .md
    file as a whole `{"text": content}`; cells of a sheet and of delimited text are text. `key` is the config key of
    the source, for messages; `notify` is told what was recognised rather than declared. Raises UsageError, and
    RunError where a hub cannot be reached.
    """
    return read_files(find_named_files(source, base, key, notify), source, key, notify)


def read_files(
    files: Iterable[DataFile], source: SourceConfig, key: str = "data.train", notify: Notify = to_stderr
) -> Iterator[tuple[Row, Place]]:
    """As `read_rows`, from files that have been found already."""
    files = list(files)
    rows = (row for file in files for row in read_file(file, source, key, notify))
    limited = islice(rows, source.max_samples)
    first = next(limited, None)
    if first is None:
        size = sum(file.path.stat().st_size for file in files)
        raise UsageError(f"{source.path} {'holds no rows' if size else 'is empty'}")
    yield first
    yield from limited


def read_file(
    file: DataFile, source: SourceConfig, key: str = "data.train", notify: Notify = to_stderr
) -> Iterator[tuple[Row, Place]]:
    """All rows of one file; none at all is no fault here."""
    try:
        last = of_line = 0
        columns: Iterable[str] = ()
        for row, line in _numbered_rows(file, source, key, notify):
            if row.keys() != columns:
                _require_characters(row, file.name, line)
                columns = row.keys()
            of_line = of_line + 1 if line == last else 1
            last = line
            yield row, Place(file.name, line, of_line)
    except OSError as fault:
        raise UsageError(f"{file.name} can't be read: {fault.strerror or fault}") from None


def _numbered_rows(file: DataFile, source: SourceConfig, key: str, notify: Notify) -> Iterator[tuple[Row, int]]:
    """Rows and 1-based line numbers, by the ending of the file's name."""
    path, name = file
    kind = kind_of(path.name)
    if kind is None:
        raise UsageError(f"{name} {why_not(path.name)}")
    if source.sheet is not None and kind != "excel":
        raise UsageError(f"{key}.sheet is for Excel files, which {name} is not: remove that key")
    if source.encoding is not None and kind not in TEXT_KINDS:
        raise UsageError(f"{key}.encoding is for text files, but {name} is {CALLED[kind]}: remove that key")
    if source.delimiter != "auto" and kind != "csv":
        raise UsageError(f"{key}.delimiter is for CSV files, but {name} is {CALLED[kind]}: remove that key")
    if kind == "excel":
        return read_sheet(path, name, source.sheet, key)
    if kind == "parquet":
        return read_parquet(path, name)
    if kind == "arrow":
        return read_arrow(path, name)
    text = read_text(path, name, source.encoding, key, notify)
    if kind == "json":
        return scan_rows(text, name)
    if kind == "csv":
        usual = "\t" if ending_of(path.name) == ".tsv" else ","
        return scan_table(text, name, DELIMITERS.get(source.delimiter), usual, notify)
    return _lines(text) if kind == "text" else _document(text)


def _require_characters(row: Row, name: str, line: int) -> None:
    """JSON can write half of a character in a column's name, too, and then it can be neither shown nor kept."""
    for column in row:
        try:
            column.encode()
        except UnicodeEncodeError:
            shown = column.encode(errors="backslashreplace").decode()
            fault = f"the column name '{shown}' holds half of a character (a lone surrogate)"
            raise UsageError(f"{name}:{line}: {fault}: rename that column") from None


def _lines(pieces: Iterator[str]) -> Iterator[tuple[Row, int]]:
    """A row for each line that is not blank; only \\n and \\r\\n end a line."""
    for number, line in enumerate(split_lines(pieces), start=1):
        if line.strip():
            yield {"text": line.removesuffix("\n").removesuffix("\r")}, number


def _document(pieces: Iterator[str]) -> Iterator[tuple[Row, int]]:
    """The whole file as one row."""
    text = "".join(pieces)
    if text.strip():
        yield {"text": text}, 1
