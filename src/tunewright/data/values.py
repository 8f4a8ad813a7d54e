"""Cells of a row -> text, lists, numbers and JSON; `BadRow` is the reason why a row is no example."""

import json
import math
from typing import Any


class BadRow(Exception):
    """A row that is no example; the message is the reason, the same words for rows with the same fault."""


LABELLED_BAD = "its answer is labelled bad"  # no mistake in a row: it says itself that it is not to be learnt


def required(value: Any, what: str) -> str:
    """As `text`, but never empty."""
    found = text(value, what)
    if not found:
        raise BadRow(f"no {what}")
    return found


def text(value: Any, what: str) -> str:
    """A text exactly as it stands, a number written out, "" for what is missing or only white space."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can write one as \\udXXX, but no tokenizer takes it
            raise BadRow(f"the {what} holds half of a character (a lone surrogate)") from None
        return value if value.strip() else ""
    if is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(f"the {what} is not text")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_missing(value: Any) -> bool:
    """None, blank text, and the NaN that pandas writes for an empty cell."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and not value.strip())


def is_empty(value: Any) -> bool:
    """Nothing stands there: missing, or a list or an object without anything in it."""
    return is_missing(value) or value in ([], {})


def truth(value: Any, what: str) -> bool:
    """True or false, also written as 1 or 0, or as words in a table. Raises BadRow for anything else."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in ("true", "false", "1", "0"):
        return value.strip().casefold() in ("true", "1")
    raise BadRow(f"the {what} is not true or false")


def as_list(value: Any) -> Any:
    """The list that a table's cell holds as JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parse_json(value: str, what: str) -> Any:
    """What a JSON text means. Raises BadRow."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"the {what} is not JSON") from None


def json_text(value: Any, what: str) -> str:
    """One spelling of a value: JSON without spaces, keys in their order. Raises BadRow where there is none."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"the {what} is not JSON") from None
    return required(written, what)
