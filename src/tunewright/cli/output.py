"""Plain tables, JSON and moments for verbs: the same in a terminal, a log and a pipe."""

import time
from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Aligned columns; Chinese counts as two cells, columns with nothing in them are left out."""
    used = [column for column in range(len(head)) if any(row[column] for row in rows)]
    table = [[head[column] for column in used], *([row[column] for column in used] for row in rows)]
    widths = [max(cells(line[column]) for line in table) for column in range(len(used))]
    for line in table:
        padded = [text + " " * (width - cells(text)) for text, width in zip(line, widths, strict=True)]
        print((indent + "  ".join(padded)).rstrip())


def cells(text: str) -> int:
    """Terminal cells that a text takes."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def print_json(value: Any) -> None:
    """One indented JSON document on standard output."""
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def moment(seconds: float | None) -> str:
    """Local date and minute of a time in seconds since 1970, empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
