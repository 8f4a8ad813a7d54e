"""An Excel sheet -> rows of text with their row numbers. The first written row names the columns."""

import datetime
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from tunewright.data.suggest import nearest
from tunewright.data.tables import name_cells, name_columns, repeated_name
from tunewright.errors import UsageError

OLD_EXCEL = b"\xd0\xcf\x11\xe0"  # OLE container: an .xls, or an .xlsx behind a password

# What zipfile, the XML parser and openpyxl raise on files that are not, or no longer, workbooks.
BROKEN = (
    zipfile.BadZipFile, zlib.error, ParseError, EOFError, OSError, NotImplementedError, RuntimeError,
    KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError,
)  # fmt: skip


def read_sheet(path: Path, name: str, sheet: str | None, key: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each written row as {column: text or None} with its 1-based row number; blank rows are no rows.

    `name` is how messages call the file, `key` the config key of its source. Numbers are written as Excel shows them
    unformatted (3.0 as 3), dates as ISO 8601; formulas give their last computed value, Excel's error values None.
    Raises UsageError for a broken or locked workbook, a sheet that is not there, and unclear column names.
    """
    from openpyxl import load_workbook

    with path.open("rb") as file:
        if file.read(4) == OLD_EXCEL:
            raise UsageError(f"{name} is locked by a password or an old .xls file: save it as .xlsx without a password")
        file.seek(0)
        try:
            with warnings.catch_warnings():  # about styles and validation rules, which no row depends on
                warnings.simplefilter("ignore", UserWarning)
                book = load_workbook(file, read_only=True, data_only=True)
                sheets = {page.title: page for page in book.worksheets}
        except BROKEN as fault:
            raise UsageError(_broken(name, fault)) from None
        if not sheets:
            raise UsageError(f"{name} has no sheet with cells")
        if sheet is not None and sheet not in sheets:
            there = ", ".join(sheets)
            raise UsageError(f"{key}.sheet: {name} has no sheet {sheet!r}, it has {there}{nearest(sheet, sheets)}")
        page = sheets[sheet] if sheet is not None else next(iter(sheets.values()))
        header: dict[int, str] | None = None
        for number, cells in _rows(page, name):
            if header is None:
                header = name_columns(cells)
                if repeated := repeated_name(header):
                    raise UsageError(f"{name}, row {number}: {repeated}")
            else:
                yield name_cells(cells, header), number
        book.close()


def _rows(page: Any, name: str) -> Iterator[tuple[int, list[str | None]]]:
    """Row number and cell texts of every row that is not blank."""
    try:
        page.reset_dimensions()  # the size a file claims is often wrong, and rows beyond it would be lost
        for number, cells in enumerate(page.iter_rows(), start=1):
            texts = [None if cell.data_type == "e" else _text(cell.value) for cell in cells]
            if any(cell.value is not None and str(cell.value).strip() for cell in cells):
                yield number, texts
    except BROKEN as fault:
        raise UsageError(_broken(name, fault)) from None


def _text(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return str(value).upper()
        case float() if value.is_integer():
            return str(int(value))
        case datetime.datetime() if value.time() == datetime.time():
            return value.date().isoformat()
        case datetime.datetime():
            return value.isoformat(sep=" ")
        case _:
            return str(value)


def _broken(name: str, fault: BaseException) -> str:
    detail = " ".join(str(fault).split()) or type(fault).__name__
    return f"{name} is not a readable Excel workbook ({detail}): open it in Excel and save it again as .xlsx"
