"""Delimited text -> rows of text with the line each begins on. The first written row names the columns.

Quotes work as spreadsheets write them: a cell may stand in double quotes and then hold delimiters and line ends, and
a quote inside is written twice.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain

from tunewright.data.lines import TABLE_LINE_END, split_lines
from tunewright.data.tables import name_cells, name_columns, repeated_name
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr

LONGEST_CELL = 1 << 24  # characters; a quote that is never closed must not swallow a file into memory
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}  # as `delimiter` in the config calls them
CALLED = {character: word for word, character in DELIMITERS.items()}
LOOK_AT = 1 << 16  # characters from which the delimiter is recognised
MOST_ROWS = 50  # of them


def scan_table(
    pieces: Iterator[str], name: str, delimiter: str | None, usual: str, notify: Notify = to_stderr
) -> Iterator[tuple[dict[str, str | None], int]]:
    """Yield each row that is not blank as {column: text} with the 1-based line it begins on.

    `name` is how messages call the file, `delimiter` what the config declares, `usual` what stands for its ending;
    `notify` is told where the file turns out to use another. Raises UsageError for a quote that is not closed, a row
    with more or fewer cells than columns, and unclear column names.
    """
    # The module's own limit of 131,072 is for the whole process, so it is set and stays.
    csv.field_size_limit(LONGEST_CELL)
    lines = split_lines(pieces, TABLE_LINE_END)
    head, length = [], 0
    while length < LOOK_AT and (line := next(lines, "")):
        head.append(line)
        length += len(line)
    declared = _declared(head)
    offset = 1 if declared else 0
    head = head[offset:]
    found = delimiter or declared or _recognise(head, usual, whole=length < LOOK_AT)
    if delimiter is None and found != usual:
        notify(f"{name}: columns are separated by {CALLED[found]}s")
    header: dict[int, str] = {}
    needed = most = 0
    for cells, number in _records(chain(head, lines), name, found, offset):
        if not header:
            header = name_columns(cells)
            needed, most = max(header) + 1, len(cells)
            if repeated := repeated_name(header):
                raise UsageError(f"{name}, line {number}: {repeated}")
        else:
            if len(cells) < needed or any(cell.strip() for cell in cells[most:]):
                raise UsageError(_ragged(name, number, len(cells), most, found))
            yield name_cells(cells, header), number


def _records(lines: Iterable[str], name: str, delimiter: str, offset: int) -> Iterator[tuple[list[str], int]]:
    """The cells of every row that is not blank, and its first line; `offset` lines stand before the first."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = offset + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as fault:
            raise UsageError(_malformed(str(fault), name, start, offset + reader.line_num, delimiter)) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield cells, start


def _declared(head: list[str]) -> str | None:
    """The delimiter of a first line `sep=;`, as Excel writes and honours it."""
    first = head[0].rstrip("\r\n") if head else ""
    return first[4] if len(first) == 5 and first.startswith("sep=") and first[4] in CALLED else None


def _recognise(head: list[str], usual: str, whole: bool) -> str:
    """The delimiter by which all of the first rows have the same number of cells, the usual one where several do."""
    widths = {candidate: _widths(head, candidate, whole) for candidate in dict.fromkeys([usual, *CALLED])}
    several = [candidate for candidate, found in widths.items() if found and found[0] > 1]
    even = [candidate for candidate in several if len(set(widths[candidate])) == 1]
    return next(iter(even or several), usual)


def _widths(head: list[str], delimiter: str, whole: bool) -> list[int]:
    """Cells of each of the first rows; a last row that the end of `head` may have cut does not count."""
    widths: list[int] = []
    reader = csv.reader(head, delimiter=delimiter)
    try:
        for cells in reader:
            if cells and len(widths) < MOST_ROWS:
                widths.append(len(cells))
    except csv.Error:
        pass  # the reader proper says what is wrong, with the line
    return widths if whole or len(widths) in (1, MOST_ROWS) else widths[:-1]


def _ragged(name: str, line: int, cells: int, columns: int, delimiter: str) -> str:
    counts = f"{cells} cell{'s' * (cells != 1)}, but the first row has {columns}"
    return (
        f'{name}, line {line}: {counts}: a cell that holds a {CALLED[delimiter]} or a line end must stand in "quotes"'
    )


def _malformed(fault: str, name: str, start: int, line: int, delimiter: str) -> str:
    """What is wrong in the row that begins on line `start`, as far as `line`, in our words."""
    if "unexpected end" in fault:
        return (
            f"{name}, line {start}: a quote opens in this row and is never closed: "
            "close it, or write a quote that belongs to the text twice"
        )
    if "field limit" in fault:
        return (
            f"{name}, line {start}: a cell of this row is longer than {LONGEST_CELL:,} characters: "
            "close its quote, or write a quote that belongs to the text twice"
        )
    if "expected after" in fault:
        return (
            f"{name}, line {line}: text goes on after a closing quote: "
            "write a quote that belongs to the text twice, and the cell in quotes"
        )
    return f"{name}, line {line}: malformed row ({fault})"
