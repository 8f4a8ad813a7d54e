"""Parquet and Arrow: rows with their numbers, values in plain words, damaged files in one sentence."""

import datetime
import decimal
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.reading import complaint, read
from tunewright.data.examples import Place

TURNS = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
TABLE = pa.table(
    {
        "messages": [TURNS, TURNS],
        "n": [1, None],
        "score": [0.5, 1.0],
        "good": [True, False],
        "when": [datetime.datetime(2024, 5, 1, 10, 30), None],
        "day": [datetime.date(2024, 5, 1), None],
        "price": [decimal.Decimal("1.50"), None],
        "half": pa.array([1.5, 2.0]).cast(pa.float16()),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "named": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    }
)
ROWS = [
    {
        "messages": TURNS, "n": 1, "score": 0.5, "good": True, "when": "2024-05-01 10:30:00", "day": "2024-05-01",
        "price": "1.50", "half": 1.5, "kind": "a", "named": {"a": 1},
    },
    {
        "messages": TURNS, "n": None, "score": 1.0, "good": False, "when": None, "day": None,
        "price": None, "half": 2.0, "kind": "b", "named": None,
    },
]  # fmt: skip


def write(path: Path, table: pa.Table, rows_at_once: int | None = None) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_at_once)
    elif "stream" in path.name:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, rows_at_once)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, rows_at_once)
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather", "stream.arrow"])
def test_values_become_plain(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TABLE)
    assert read(path) == [(row, Place(name, number)) for number, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "stream.arrow"])
@pytest.mark.parametrize("rows_at_once", [700, 5000])
def test_rows_are_counted_over_groups_and_batches(tmp_path: Path, name: str, rows_at_once: int) -> None:
    path = write(tmp_path / name, pa.table({"n": list(range(3000))}), rows_at_once)
    assert [(row["n"] + 1, place.line) for row, place in read(path)] == [(n, n) for n in range(1, 3001)]
    assert len(read(path, max_samples=5)) == 5


def test_damaged_files(tmp_path: Path) -> None:
    parquet = write(tmp_path / "rows.parquet", pa.table({"q": [f"number {i}" for i in range(5000)]})).read_bytes()
    stream = write(tmp_path / "stream.arrow", pa.table({"q": [f"number {i}" for i in range(5000)]})).read_bytes()
    again = "): fetch or write it again"
    for name, content, beginning in (
        ("cut.parquet", parquet[:-30], "cut.parquet is no readable Parquet file (Parquet magic bytes not found"),
        ("no.parquet", b"hello", "no.parquet is no readable Parquet file (Parquet file size is 5 bytes"),
        ("holes.parquet", parquet[:400] + b"\xff" * 300 + parquet[700:], "holes.parquet is no readable Parquet file ("),
        ("cut.arrow", stream[:-3000], "cut.arrow is no readable Arrow file (Expected to be able to read"),
        ("no.arrow", b"hello world", "no.arrow is no readable Arrow file (Expected to read"),
        ("no.feather", b"ARROW1 but no more", "no.feather is no readable Arrow file ("),
    ):
        (tmp_path / name).write_bytes(content)
        message = complaint(tmp_path / name)
        assert message.startswith(beginning)
        assert message.endswith(again)


def test_empty_and_unclear_tables(tmp_path: Path) -> None:
    (tmp_path / "empty.arrow").write_bytes(b"")
    assert complaint(tmp_path / "empty.arrow") == "empty.arrow is empty"
    none = pa.table({"q": pa.array([], pa.string())})
    assert complaint(write(tmp_path / "none.parquet", none)) == "none.parquet holds no rows"
    assert complaint(write(tmp_path / "none.arrow", none)) == "none.arrow holds no rows"
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["q", "q"])
    for name in ("twice.parquet", "twice.arrow", "stream-twice.arrow"):
        path = write(tmp_path / name, twice)
        assert complaint(path) == f"{name}: two columns are named 'q': rename one of them"


def test_settings_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", TABLE)
    assert complaint(path, encoding="gbk") == (
        "data.train.encoding is for text files, but rows.parquet is a Parquet file: remove that key"
    )
    assert complaint(path, sheet="A") == (
        "data.train.sheet is for Excel files, which rows.parquet is not: remove that key"
    )


@pytest.mark.parametrize("name", ["rows.arrow", "stream.arrow"])
def test_an_offset_beyond_the_end_is_refused_before_it_is_followed(tmp_path: Path, name: str) -> None:
    """The library ends the process where it follows one."""
    path = write(tmp_path / name, pa.table({"turns": [["x"] * 7, ["y"] * 2]}))
    sound = path.read_bytes()
    assert sound.count(struct.pack("<3i", 0, 7, 9)) == 1
    path.write_bytes(sound.replace(struct.pack("<3i", 0, 7, 9), struct.pack("<3i", 0, 7, 2**31 - 1)))
    assert complaint(path).startswith(f"{name} is no readable Arrow file (")


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    path = write(tmp_path / "rows.arrow", pa.Table.from_arrays([bad], names=["q"]))
    assert complaint(path).startswith(
        "rows.arrow is no readable Arrow file (In column 0: Invalid: Invalid UTF8 sequence"
    )
