"""Delimited text: quotes, line ends inside cells, delimiters, and what is wrong where."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config.schema import SourceConfig
from tunewright.data.read import read_rows
from tunewright.data.read_csv import LONGEST_CELL, scan_table
from tunewright.errors import UsageError


def read(folder: Path, name: str, content: str | bytes, **settings: Any) -> tuple[list[Any], list[str]]:
    """Rows with their lines, and what was said."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    said: list[str] = []
    rows = read_rows(SourceConfig(path=name, **settings), folder, notify=said.append)
    return [(row, place.line) for row, place in rows], said


def test_quotes_line_ends_and_blank_rows(tmp_path: Path) -> None:
    content = '\ufeff q ,a\r\n"你好, ""你""\r\n再见",好\r\n\r\n , \r\n"",""\r\n5" disc,x'
    assert read(tmp_path, "rows.csv", content) == (
        [({"q": '你好, "你"\r\n再见', "a": "好"}, 2), ({"q": '5" disc', "a": "x"}, 7)],
        [],
    )


def test_lone_carriage_returns_end_rows(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, "rows.csv", 'q,a\rx,y\r"z\r2",w\r')
    assert rows == [({"q": "x", "a": "y"}, 2), ({"q": "z\r2", "a": "w"}, 3)]


@pytest.mark.parametrize(
    ("name", "content", "settings", "said"),
    [
        ("rows.csv", "q,a\n1,2\n", {}, []),
        ("rows.tsv", "q\ta\n1\t2\n", {}, []),
        ("rows.csv", "q;a\n1;2\n", {}, ["rows.csv: columns are separated by semicolons"]),
        ("rows.csv", "q|a\n1|2\n", {}, ["rows.csv: columns are separated by bars"]),
        ("rows.tsv", "q,a\n1,2\n", {}, ["rows.tsv: columns are separated by commas"]),
        ("rows.csv", "sep=;\r\nq;a\r\n1;2\r\n", {}, ["rows.csv: columns are separated by semicolons"]),
        ("rows.csv", "q\ta\n1\t2\n", {"delimiter": "tab"}, []),
        ("ROWS.CSV", "q,a\n1,2\n", {}, []),
    ],
)
def test_the_delimiter_is_recognised_and_shown(
    tmp_path: Path, name: str, content: str, settings: dict[str, Any], said: list[str]
) -> None:
    assert read(tmp_path, name, content, **settings) == ([({"q": "1", "a": "2"}, content.count("\n"))], said)


def test_the_delimiter_is_the_one_that_gives_even_rows(tmp_path: Path) -> None:
    content = 'q, for you;a\n"1";2, 3, 4\n5;6\n'
    assert read(tmp_path, "rows.csv", content)[0] == [
        ({"q, for you": "1", "a": "2, 3, 4"}, 2),
        ({"q, for you": "5", "a": "6"}, 3),
    ]


def test_cells_without_a_column_name(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", ",q,a,,\n0,x,y\n1,z,w,,\n2,u,v,beyond,\n")[0] == [
        ({"q": "x", "a": "y", "(column A)": "0"}, 2),
        ({"q": "z", "a": "w", "(column A)": "1"}, 3),
        ({"q": "u", "a": "v", "(column A)": "2", "(column D)": "beyond"}, 4),
    ]


NEVER_CLOSED = (
    "a quote opens in this row and is never closed: close it, or write a quote that belongs to the text twice"
)
GOES_ON = "text goes on after a closing quote: write a quote that belongs to the text twice, and the cell in quotes"
UNQUOTED = 'a cell that holds a comma or a line end must stand in "quotes"'
BAD: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("rows.csv", "", {}, "rows.csv is empty"),
    ("rows.csv", "\n\n", {}, "rows.csv holds no rows"),
    ("rows.csv", "q,a\n", {}, "rows.csv holds no rows"),
    ("rows.csv", "q,a\n,\n", {}, "rows.csv holds no rows"),
    ("rows.csv", "sep=;\n", {}, "rows.csv holds no rows"),
    ("rows.csv", 'q,a\n1,2\n\n3,"4\n5,6\n', {}, f"rows.csv, line 4: {NEVER_CLOSED}"),
    ("rows.csv", '"q,a\n1,2\n', {}, f"rows.csv, line 1: {NEVER_CLOSED}"),
    ("rows.csv", 'q,a\n1,"2" 3\n', {}, f"rows.csv, line 2: {GOES_ON}"),
    ("rows.csv", 'q,a\n"1\n2","3"4"\n', {}, f"rows.csv, line 3: {GOES_ON}"),
    ("rows.tsv", 'q\ta\n"Hi", he said\tho\n', {}, f"rows.tsv, line 2: {GOES_ON}"),
    (
        "rows.csv", "q,a\n1,2\nwell, yes,no\n", {},
        f"rows.csv, line 3: 3 cells, but the first row has 2: {UNQUOTED}",
    ),
    (
        "rows.csv", "q,a\n1\n", {},
        f"rows.csv, line 2: 1 cell, but the first row has 2: {UNQUOTED}",
    ),
    (
        "rows.csv", "q;a\n1;2\n3;4;5\n", {"delimiter": "semicolon"},
        "rows.csv, line 3: 3 cells, but the first row has 2: "
        'a cell that holds a semicolon or a line end must stand in "quotes"',
    ),
    ("rows.csv", "q,a,q\n1,2,3\n", {}, "rows.csv, line 1: columns A and C are both named 'q': rename one of them"),
    (
        "rows.csv", "q,a\né,2\n".encode("latin-1"), {},
        "rows.csv, line 2, column 1: byte 0xe9 is not utf-8: "
        "save the file as UTF-8, or name its encoding in data.train.encoding",
    ),
    (
        "rows.csv", "q,a\n1,2\n", {"sheet": "A"},
        "data.train.sheet is for Excel files, which rows.csv is not: remove that key",
    ),
    (
        "rows.jsonl", "{}", {"delimiter": "tab"},
        "data.train.delimiter is for CSV files, but rows.jsonl is a JSON file: remove that key",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "settings", "message"), BAD)
def test_malformed_tables(
    tmp_path: Path, name: str, content: str | bytes, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, content, **settings)
    assert str(caught.value) == message


def test_a_quote_that_swallows_the_file_is_refused_early() -> None:
    read_pieces = 0

    def pieces() -> Any:
        nonlocal read_pieces
        yield 'q,a\n1,"'
        while True:
            read_pieces += 1
            yield ("x" * 1023 + "\n") * (1 << 10)

    with pytest.raises(UsageError) as caught:
        list(scan_table(pieces(), "rows.csv", None, ","))
    assert str(caught.value) == (
        "rows.csv, line 2: a cell of this row is longer than 16,777,216 characters: "
        "close its quote, or write a quote that belongs to the text twice"
    )
    assert read_pieces <= LONGEST_CELL // (1 << 20) + 2


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=8)


@given(
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.integers(1, 9),
)
def test_what_the_csv_module_writes_is_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, end: str, quoting: Any, size: int
) -> None:
    """Whatever the borders of the pieces in which the text arrives."""
    if quoting == csv.QUOTE_MINIMAL:  # the module leaves a lone \r without quotes, where it would end a row
        rows = [(q.replace("\r", " "), a.replace("\r", " "), more.replace("\r", " ")) for q, a, more in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    starts = []
    writer.writerow(["q", "a", "more"])
    for row in rows:
        starts.append(1 + file.getvalue().replace("\r\n", "\n").replace("\r", "\n").count("\n"))
        writer.writerow(row)
    text = file.getvalue()
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    found = list(scan_table(pieces, "rows.csv", delimiter, ","))
    expected = [
        ({"q": row[0], "a": row[1], "more": row[2]}, start)
        for row, start in zip(rows, starts, strict=True)
        if any(cell.strip() for cell in row)
    ]
    assert found == expected
