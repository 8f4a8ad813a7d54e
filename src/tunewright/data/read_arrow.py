"""Parquet and Arrow files -> rows with their row numbers, a few at a time however large the file.

Arrow is read in both its forms, file and stream. Times become ISO 8601 text and decimals text, as in a sheet.
"""

import datetime
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.errors import UsageError

ROWS = 1024  # rows made into Python objects at once
ARROW_FILE = b"ARROW1"


def read_parquet(path: Path, name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row of a Parquet file with its 1-based number. Raises UsageError where it is damaged."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        yield from _rows(_parquet_batches(file, name), name)


def read_arrow(path: Path, name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row of an Arrow (Feather) file or stream with its 1-based number. Raises UsageError."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        yield from _rows(_arrow_batches(file, name), name)


def _parquet_batches(file: Any, name: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _readable(name, "Parquet"):
        # Pages are read as they are needed: a file written as one huge row group stays small in memory.
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        _refuse_repeated(table.schema_arrow.names, name)
        yield from table.iter_batches(batch_size=ROWS, use_threads=False)


def _arrow_batches(file: Any, name: str) -> Iterator[Any]:
    import pyarrow as pa

    beginning = file.read(len(ARROW_FILE))
    file.seek(0)
    if not beginning:
        return
    with _readable(name, "Arrow"):
        if beginning == ARROW_FILE:
            table = pa.ipc.open_file(file)
            _refuse_repeated(table.schema.names, name)
            for index in range(table.num_record_batches):
                yield table.get_batch(index)
        else:
            stream = pa.ipc.open_stream(file)
            _refuse_repeated(stream.schema.names, name)
            yield from stream


def _rows(batches: Iterator[Any], name: str) -> Iterator[tuple[dict[str, Any], int]]:
    number = 0
    for batch in batches:
        strange = [field.name for field in batch.schema if not _is_plain(field.type)]
        with _readable(name, "Arrow"):
            batch.validate(full=True)  # an offset beyond the end would end the whole process, not raise
        for start in range(0, batch.num_rows, ROWS):
            with _readable(name, "Arrow"):
                rows = batch.slice(start, ROWS).to_pylist(maps_as_pydicts="lossy")
            for row in rows:
                number += 1
                for column in strange:
                    row[column] = _plain(row[column])
                yield row, number


@contextmanager
def _readable(name: str, form: str) -> Iterator[None]:
    """Whatever the library says of a damaged file becomes one sentence."""
    import pyarrow as pa

    try:
        yield
    except (
        pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError, NotImplementedError,
    ) as fault:  # fmt: skip
        detail = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        raise UsageError(f"{name} is no readable {form} file ({detail}): fetch or write it again") from None


def _refuse_repeated(names: list[str], name: str) -> None:
    repeated = next((title for title in names if names.count(title) > 1), None)
    if repeated is not None:
        raise UsageError(f"{name}: two columns are named {repeated!r}: rename one of them")


def _is_plain(kind: Any) -> bool:
    """Whether values of an Arrow type come out as text, numbers, truth values, lists and mappings."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    return bool(text or number or types.is_boolean(kind) or types.is_null(kind))


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case datetime.datetime():
            return value.isoformat(sep=" ")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case None | str() | bool() | int() | float() | bytes():
            return value
        case numbers.Real():  # half precision
            return float(value)
        case _:  # decimals, durations, UUIDs
            return str(value)
