"""Bytes and lines of a file, piece by piece: decompressed on the way, and never the whole of it in memory."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunewright.data.kinds import compression_of
from tunewright.errors import UsageError

CHUNK = 1 << 20  # bytes per read

LINE_END = re.compile(r"\n")
TABLE_LINE_END = re.compile(r"\r\n?|\n")  # a lone \r ends a line too, as old spreadsheets for the Mac wrote it


def read_bytes(path: Path, name: str) -> Iterator[bytes]:
    """Yield the content in pieces of up to a megabyte, unpacked where the name ends in .gz or .zst.

    `name` is how messages call the file. Raises UsageError where compressed data is damaged or cut off, OSError where
    the file cannot be opened.
    """
    packed = compression_of(path.name)
    if packed == ".gz":
        yield from _gunzip(path, name)
    elif packed == ".zst":
        yield from _unzstd(path, name)
    else:
        with path.open("rb") as file:
            while raw := file.read(CHUNK):
                yield raw


def _gunzip(path: Path, name: str) -> Iterator[bytes]:
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
        while True:
            try:
                raw = unpacked.read(CHUNK)
            except EOFError:
                raise UsageError(f"{name} is cut off, its compressed data ends too early: fetch it again") from None
            except (gzip.BadGzipFile, zlib.error) as fault:
                raise UsageError(_damaged(name, "gzip", fault)) from None
            if not raw:
                return
            yield raw


def _unzstd(path: Path, name: str) -> Iterator[bytes]:
    import pyarrow as pa

    with path.open("rb") as file:
        if not file.read(1):
            raise UsageError(f"{name} is empty")
        file.seek(0)
        with pa.PythonFile(file, mode="r") as packed, pa.CompressedInputStream(packed, "zstd") as unpacked:
            while True:
                try:
                    raw = unpacked.read(CHUNK)
                except (pa.ArrowException, OSError) as fault:
                    if "truncated" in str(fault).lower():
                        cut = f"{name} is cut off, its compressed data ends too early: fetch it again"
                        raise UsageError(cut) from None
                    raise UsageError(_damaged(name, "zstd", fault)) from None
                if not raw:
                    return
                yield raw


def _damaged(name: str, form: str, fault: Exception) -> str:
    return f"{name} is no sound {form} file ({' '.join(str(fault).split())}): fetch or compress it again"


def split_lines(pieces: Iterable[str], line_end: re.Pattern[str] = LINE_END) -> Iterator[str]:
    """Yield each line with its ending, whatever the borders of the pieces; the last one may have none."""
    parts: list[str] = []  # of a line that goes on, joined once so that a huge line costs linear time
    held = ""  # a \r at the end of a piece, which may be half of \r\n
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        text = text.removesuffix(held)
        start = 0
        for found in line_end.finditer(text):
            parts.append(text[start : found.end()])
            yield parts[0] if len(parts) == 1 else "".join(parts)
            parts.clear()
            start = found.end()
        if start < len(text):
            parts.append(text[start:])
    parts.append(held)
    if rest := "".join(parts):
        yield rest
