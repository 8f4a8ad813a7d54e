"""Pieces of JSON text -> rows with the line each begins on, without ever holding the whole file.

Two forms are read, whatever the file is called: an array of objects, and objects one after another (JSON lines).
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from tunewright.errors import UsageError

KEEP = 1 << 18
CONTEXT = 40  # characters shown on each side of a fault
SLACK = 16  # a fault this close to the end of the buffer may only mean that more text is needed

WRITTEN = re.compile(r"[^ \t\r\n]")

# What the standard decoder says -> what a reader of the file can act on.
EXPECTED = (
    ("Expecting value", "expected a value"),
    ("Expecting property name", "expected a column name in double quotes"),
    ("Expecting ':'", "expected a colon after the column name"),
    ("Expecting ','", "expected a comma or a closing bracket"),
    ("Unterminated string", "expected a closing quote for the text that begins here"),
    (
        "Invalid control character",
        "expected no raw line break, tab or control character inside a text; write \\n or \\t",
    ),
    ("Invalid \\escape", 'expected a known escape after the backslash, such as \\n, \\" or \\\\'),
    ("Invalid \\uXXXX", "expected four hexadecimal digits after \\u"),
)


def scan_rows(pieces: Iterator[str], name: str, keep: int = KEEP) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each object and the 1-based line of its opening brace.

    `name` is how messages call the file, `keep` how many characters already read may wait to be forgotten. Raises
    UsageError with line, column and excerpt where the text is not JSON, or where a row is anything but an object.
    """
    text = _Buffer(pieces, name, keep)
    opening = text.peek()
    if opening == "[":
        yield from _array(text)
    elif opening == "{":
        yield from _sequence(text)
    elif opening:
        text.fail("expected [ or { at the beginning of a JSON file")


def _array(text: "_Buffer") -> Iterator[tuple[dict[str, Any], int]]:
    text.position += 1
    if text.peek() == "]":
        text.position += 1
    else:
        while True:
            opening = text.peek()
            if opening == "]":
                text.fail("expected no comma before the closing bracket")
            if opening != "{":
                text.fail("expected a row as an object { … }")
            yield text.take_object()
            separator = text.peek()
            if separator not in (",", "]"):
                text.fail("expected a comma or the ] that ends the array", after_last_token=True)
            text.position += 1
            if separator == "]":
                break
    if text.peek():
        text.fail("expected nothing after the ] that ends the array")


def _sequence(text: "_Buffer") -> Iterator[tuple[dict[str, Any], int]]:
    while opening := text.peek():
        if opening == ",":
            text.fail(
                "expected the next row without a comma; rows with commas between them need [ and ] around them all"
            )
        if opening != "{":
            text.fail("expected a row as an object { … }")
        yield text.take_object()


class _Buffer:
    """A window on the text: `position` is where reading stands, `token_end` where the token before it ended."""

    def __init__(self, pieces: Iterator[str], name: str, keep: int) -> None:
        self.pieces = pieces
        self.name = name
        self.keep = keep
        self.text = ""
        self.ended = False
        self.position = 0
        self.token_end = 0
        self.counted = 0  # the newlines before this index are in `line`
        self.line = 1
        self.line_start = 0  # index where that line begins; negative once it has left the window
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Skip white space; the next character, or "" at the end of the file."""
        self.token_end = self.position
        while True:
            if found := WRITTEN.search(self.text, self.position):
                self.position = found.start()
                return found.group()
            self.position = len(self.text)
            if not self._extend():
                return ""

    def take_object(self) -> tuple[dict[str, Any], int]:
        """Decode the object that begins at `position`, reading on as far as needed; the object and its line."""
        self._count(self.position)
        line = self.line
        while True:
            try:
                value, self.position = self.decoder.raw_decode(self.text, self.position)
                return value, line
            except json.JSONDecodeError as fault:
                cut = fault.msg.startswith("Unterminated") or fault.pos >= len(self.text) - SLACK
                offset = fault.pos - self.position  # reading on may move the window
                if not (cut and self._extend()):
                    self._explain(fault.msg, self.position + offset)
            except RecursionError:
                self.fail("expected a row that is not nested this deeply")
            except ValueError:  # Python's guard against integers of thousands of digits
                self.fail("expected no number as long as the one in this row; put it in quotes")

    def fail(self, expected: str, after_last_token: bool = False) -> NoReturn:
        """Raise UsageError for the text at `position`, or at the end of the token before it."""
        while not (len(self.text) - self.position > CONTEXT and WRITTEN.search(self.text, self.position)):
            if not self._extend():
                break
        ends = not WRITTEN.search(self.text, self.position)
        if ends or after_last_token:
            self.position = self.token_end
        self._count(self.position)
        column = self.position - self.line_start + 1
        before = self.text[max(self.line_start, self.position - CONTEXT, 0) : self.position].strip()
        after = self.text[self.position : self.position + CONTEXT].split("\n")[0].strip()
        shown = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in f"{before} <here> {after}".strip())
        end = ", but the file ends" if ends else ""
        raise UsageError(f"{self.name}, line {self.line}, column {column}: malformed JSON, {expected}{end}: {shown}")

    def _explain(self, message: str, position: int) -> NoReturn:
        """Fail in our words for what the decoder says about the text at `position`."""
        self.position = position
        self.token_end = len(self.text[:position].rstrip(" \t\r\n"))
        if self.text[position : position + 1] in ("}", "]") and self.text[self.token_end - 1] == ",":
            self.fail("expected no comma before the closing bracket")
        expected = next((ours for theirs, ours in EXPECTED if message.startswith(theirs)), message)
        self.fail(expected, after_last_token=message.startswith("Expecting ','"))

    def _extend(self) -> bool:
        """Read on, at least doubling what is undecoded so that a huge row costs linear time; False at the end."""
        if self.ended:
            return False
        self._drop()
        wanted = len(self.text) - self.position
        parts = [self.text]
        while wanted >= 0 and not self.ended:
            piece = next(self.pieces, "")
            self.ended = not piece
            parts.append(piece)
            wanted -= max(len(piece), 1)
        added = len(parts) > 2 or not self.ended
        self.text = "".join(parts)
        return added

    def _drop(self) -> None:
        """Forget what has been read, except a little that an excerpt may show."""
        needed = min(self.position, self.token_end)
        cut = needed - CONTEXT
        if cut > self.keep:
            self._count(needed)
            self.text = self.text[cut:]
            self.position -= cut
            self.token_end -= cut
            self.counted -= cut
            self.line_start -= cut

    def _count(self, until: int) -> None:
        newlines = self.text.count("\n", self.counted, until)
        if newlines:
            self.line += newlines
            self.line_start = self.text.rfind("\n", self.counted, until) + 1
        self.counted = max(self.counted, until)
