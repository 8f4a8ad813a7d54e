"""Bytes of a text file -> pieces of text, or one sentence that names the bad byte and what to do about it.

UTF-8 is read unless a byte-order mark or `encoding` in the config says otherwise. Nothing is ever guessed: a file
that is not what it should be is refused, with a hint when it reads well as GBK.
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from tunewright.errors import UsageError

CHUNK = 1 << 20  # bytes per read

# UTF-32 stands before UTF-16: the mark of little-endian UTF-16 is a prefix of its own.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BARE_UTF16 = {(False, True): "utf-16-le", (True, False): "utf-16-be"}


def read_text(path: Path, name: str, encoding: str | None, key: str) -> Iterator[str]:
    """Yield the text of `path` in pieces of about a megabyte, without its byte-order mark; line ends stay as they are.

    `name` is how messages call the file, `key` the config key of its source (`data.train`), `encoding` what that key
    declares. Raises UsageError for an unknown encoding and at the first byte that does not decode.
    """
    with path.open("rb") as file:
        codec = _choose(file.read(4), name, encoding, key)
        file.seek(0)
        decoder = codecs.getincrementaldecoder(codec)()
        line, column = 1, 1  # of the next character, for the message about a bad byte
        first = True
        while True:
            raw = file.read(CHUNK)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as fault:
                good = bytes(fault.object[: fault.start]).decode(fault.encoding, errors="ignore")
                line, column = _advance(line, column, good.removeprefix("\ufeff") if first else good)
                byte = fault.object[fault.start]
                at = f"{name}, line {line}, column {column}: byte 0x{byte:02x} is not {codec}"
                raise UsageError(f"{at}{_advice(path, encoding, key)}") from None
            except UnicodeError as fault:  # codecs that report no position, such as UTF-16 that ends in mid-character
                raise UsageError(
                    f"{name}, after line {line}: not {codec} ({fault}){_advice(path, encoding, key)}"
                ) from None
            if first and piece:
                piece, first = piece.removeprefix("\ufeff"), False
            line, column = _advance(line, column, piece)
            if piece:
                yield piece
            if not raw:
                return


def _choose(head: bytes, name: str, encoding: str | None, key: str) -> str:
    """The codec to read with, from the declared encoding and the first four bytes."""
    marked = next((codec for mark, codec in MARKS if head.startswith(mark)), None)
    if encoding is None:
        bare = BARE_UTF16.get((head[0] == 0, head[1] == 0)) if len(head) == 4 and not marked else None
        if bare:
            raise UsageError(f"{name} looks like UTF-16 without a byte-order mark: set {key}.encoding: {bare}")
        return marked or "utf-8"
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        canonical = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise UsageError(
            f"{key}.encoding: {encoding!r} is no text encoding known here; common ones are utf-8, gb18030, big5, utf-16"
        ) from None
    if marked and not canonical.startswith(marked):
        raise UsageError(
            f"{name} begins with the byte-order mark of {marked}, but {key}.encoding says {encoding}: remove that key"
        )
    return canonical


def _advice(path: Path, encoding: str | None, key: str) -> str:
    if encoding is not None:
        return f", which {key}.encoding names: set the encoding that the file was saved with"
    if _reads_as_gbk(path):
        return f". This looks like GBK: set {key}.encoding: gb18030"
    return f": save the file as UTF-8, or name its encoding in {key}.encoding"


def _reads_as_gbk(path: Path) -> bool:
    """True when all of the file decodes as gb18030 and nearly all that is not ASCII is in the GB2312 part of it."""
    decoder = codecs.getincrementaldecoder("gb18030")()
    foreign = common = 0
    with path.open("rb") as file:
        while True:
            raw = file.read(CHUNK)
            try:
                piece = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError:
                return False
            beyond = [character for character in piece if character > "\x7f"]
            foreign += len(beyond)
            pairs = "".join(beyond).encode("gbk", errors="ignore")
            common += sum(lead >= 0xA1 and trail >= 0xA1 for lead, trail in zip(pairs[::2], pairs[1::2], strict=True))
            if not raw:
                return foreign > 0 and common >= 0.9 * foreign


def _advance(line: int, column: int, text: str) -> tuple[int, int]:
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))
