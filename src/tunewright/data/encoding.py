"""Bytes of a text file -> pieces of text, or one sentence that names the bad byte and what to do about it.

UTF-8 is read unless a byte-order mark or `encoding` in the config says otherwise. One other encoding is recognised,
and only where there is no doubt: Chinese text as GB18030 (which contains GBK and GB2312). A file that is not what it
should be is refused.
"""

import codecs
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from tunewright.data.lines import read_bytes
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr

# UTF-32 stands before UTF-16: the mark of little-endian UTF-16 is a prefix of its own.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BARE_UTF16 = {(False, True): "utf-16-le", (True, False): "utf-16-be"}

# The most frequent characters of written Chinese, in both scripts' common part. They make up a third to a half of
# Chinese text; Korean and Japanese bytes, which decode as GBK without a fault too, hit them in one case of a hundred.
FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
    "用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实，。"
)
CERTAIN = 64  # fewer characters than this are no ground to judge from


def read_text(path: Path, name: str, encoding: str | None, key: str, notify: Notify = to_stderr) -> Iterator[str]:
    """Yield the text of `path` in pieces of about a megabyte, without its byte-order mark; line ends stay as they are.

    `name` is how messages call the file, `key` the config key of its source (`data.train`), `encoding` what that key
    declares; `notify` is told of an encoding that was recognised. Raises UsageError for an unknown encoding and at the
    first byte that does not decode.
    """
    pieces = read_bytes(path, name)
    head = b""
    while len(head) < 4 and (piece := next(pieces, b"")):
        head += piece
    codec = _choose(head[:4], name, encoding, key)
    decoder = codecs.getincrementaldecoder(codec)()
    line, column = 1, 1  # of the next character, for the message about a bad byte
    first, plain = True, True  # the first piece; nothing but ASCII so far, which reads the same in GB18030
    raw = head
    while True:
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as fault:
            verdict = _reads_as_chinese(path, name) if encoding is None and codec == "utf-8" else "no"
            if plain and verdict == "certain":
                notify(
                    f"{name} is not UTF-8 but Chinese text in GB18030 (GBK), and is read as that; "
                    f"{key}.encoding: gb18030 says so without a notice"
                )
                codec = "gb18030"
                decoder = codecs.getincrementaldecoder(codec)()
                continue
            good = bytes(fault.object[: fault.start]).decode(fault.encoding, errors="ignore")
            line, column = _advance(line, column, good.removeprefix("\ufeff") if first else good)
            at = f"{name}, line {line}, column {column}: byte 0x{fault.object[fault.start]:02x} is not {codec}"
            raise UsageError(f"{at}{_advice(verdict, encoding, key)}") from None
        except UnicodeError as fault:  # codecs that report no position, such as UTF-16 that ends in mid-character
            raise UsageError(
                f"{name}, after line {line}: not {codec} ({fault}){_advice('no', encoding, key)}"
            ) from None
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        plain = plain and raw.isascii()
        line, column = _advance(line, column, text)
        if text:
            yield text
        if not raw:
            return
        raw = next(pieces, b"")


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


def _advice(verdict: str, encoding: str | None, key: str) -> str:
    if encoding is not None:
        return f", which {key}.encoding names: set the encoding that the file was saved with"
    if verdict != "no":
        return f". This looks like GBK: set {key}.encoding: gb18030"
    return f": save the file as UTF-8, or name its encoding in {key}.encoding"


def _reads_as_chinese(path: Path, name: str) -> Literal["certain", "likely", "no"]:
    """`likely` when all of the file decodes as GB18030 and nearly all that is not ASCII is in the GB2312 part of it;
    `certain` when there is enough of it and its most frequent characters are those of Chinese."""
    decoder = codecs.getincrementaldecoder("gb18030")()
    foreign = common = frequent = 0
    for raw in chain(read_bytes(path, name), [b""]):  # the empty piece tells the decoder of the end
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError:
            return "no"
        beyond = [character for character in text if character > "\x7f"]
        foreign += len(beyond)
        pairs = "".join(beyond).encode("gbk", errors="ignore")
        common += sum(lead >= 0xA1 and trail >= 0xA1 for lead, trail in zip(pairs[::2], pairs[1::2], strict=True))
        frequent += sum(character in FREQUENT for character in beyond)
    if not foreign or common < 0.9 * foreign:
        return "no"
    return "certain" if foreign >= CERTAIN and common >= 0.98 * foreign and frequent >= 0.2 * foreign else "likely"


def _advance(line: int, column: int, text: str) -> tuple[int, int]:
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))
