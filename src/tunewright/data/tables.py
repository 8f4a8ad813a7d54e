"""Rows of cells -> rows by column name: what sheets and delimited text have in common."""

from collections.abc import Sequence


def name_columns(cells: Sequence[str | None]) -> dict[int, str]:
    """Column index -> name, from the first row; cells without a name are left out."""
    return {index: text.strip() for index, text in enumerate(cells) if text and text.strip()}


def repeated_name(header: dict[int, str]) -> str | None:
    """`columns A and C are both named 'q': rename one of them`, or None where all names differ."""
    names = list(header.values())
    repeated = next((title for title in names if names.count(title) > 1), None)
    if repeated is None:
        return None
    where = " and ".join(letters(index) for index, title in header.items() if title == repeated)
    return f"columns {where} are both named {repeated!r}: rename one of them"


def name_cells(cells: Sequence[str | None], header: dict[int, str]) -> dict[str, str | None]:
    """One row by column name; text under no name is kept as `(column F)`, so that it is seen to be unused."""
    row = {title: cells[index] if index < len(cells) else None for index, title in header.items()}
    unnamed = {
        f"(column {letters(i)})": text for i, text in enumerate(cells) if i not in header and text and text.strip()
    }
    return row | unnamed


def letters(index: int) -> str:
    """A column as spreadsheets call it: 0 is A, 25 is Z, 26 is AA."""
    name = ""
    number = index + 1
    while number:
        number, rest = divmod(number - 1, 26)
        name = chr(ord("A") + rest) + name
    return name
