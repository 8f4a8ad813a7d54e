"""Data files -> chunks of rows, with the form of each source decided from its first rows.

Nothing is held but the chunk at hand, however long the files are.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunewright.config.schema import DataConfig, SourceConfig
from tunewright.data.account import SourceAccount, SourceReport
from tunewright.data.columns import SAMPLE, choose_layout
from tunewright.data.examples import Place
from tunewright.data.find import DataFile, find_named_files
from tunewright.data.pack import Chunk
from tunewright.data.read import read_files
from tunewright.data.registry import expand_registry
from tunewright.data.store import stores_root, write_aside

CHUNK_ROWS = 1000
CHUNK_VOLUME = 4 << 20  # characters
MUCH = 32 << 20  # bytes; less is hashed in no time

Row = tuple[dict[str, Any], Place]


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a run: `number` among them all, `key` in the config; `held_out` marks the validation file."""

    number: int
    key: str
    config: SourceConfig
    files: list[DataFile]
    held_out: bool


def find_sources(data: DataConfig, base: Path) -> list[Source]:
    """All sources with their files, in order; relative paths start at `base`. Raises UsageError where one is not."""
    training = expand_registry(data, base)
    keys = ["data.train"] if len(training) == 1 else [f"data.train.{index}" for index in range(len(training))]
    named = list(zip(keys, training, strict=True))
    if isinstance(data.validation, SourceConfig):
        named.append(("data.validation", data.validation))
    return [
        Source(number, key, source, find_named_files(source, base, key), number >= len(training))
        for number, (key, source) in enumerate(named)
    ]


def read_sources(sources: Sequence[Source], stage: str) -> Iterator[SourceAccount | Chunk]:
    """For each source what is known from its first rows (no row counted yet), then its rows in chunks.

    A chunk holds rows of one file only. Raises UsageError.
    """
    for source in sources:
        yield from _read_source(source, stage)


def _read_source(source: Source, stage: str) -> Iterator[SourceAccount | Chunk]:
    rows = read_files(source.files, source.config, source.key)
    head = list(islice(rows, SAMPLE))
    layout = choose_layout([row for row, _ in head], source.config, stage, source.key)
    columns = dict.fromkeys(name for row, _ in head for name in row)
    used = set(layout.columns.values())
    report = SourceReport(
        path=source.config.path,
        format=layout.format,
        columns=layout.columns,
        rows=0,
        guessed=layout.guessed,
        ignored=[name for name in columns if name not in used],
    )
    yield SourceAccount(source.key, report, source.held_out)
    for part in _chunks(chain(head, rows)):
        file, lines = part[0][1].file, [place.line for _, place in part]
        yield Chunk(source.number, layout, file, lines, [row for row, _ in part])


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Neighbouring rows of one file, so many that they are worth a call and so few that they take little memory."""
    part: list[Row] = []
    volume = 0
    for row, place in rows:
        if part and (len(part) == CHUNK_ROWS or volume > CHUNK_VOLUME or place.file != part[-1][1].file):
            yield part
            part, volume = [], 0
        part.append((row, place))
        volume += _volume(row)
    if part:
        yield part


def _volume(value: Any) -> int:
    """Characters of all texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_volume, value.values()))
    return sum(map(_volume, value)) if isinstance(value, list) else 0


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 of the bytes of all files, one after another, in hex.

    That of much data is kept in the cache under size and time of each file, so that it is read only once.
    """
    stats = [path.stat() for path in paths]
    known = [(str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ino) for path, s in zip(paths, stats, strict=True)]
    memo = stores_root() / "hashes" / hashlib.sha256(repr(known).encode()).hexdigest()
    much = sum(stat.st_size for stat in stats) > MUCH
    if much and memo.is_file():
        return memo.read_text()
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    # A file changed again within the clock's grain would look the same: only times well past can be relied on.
    if much and all(time.time() - stat.st_mtime > 2 for stat in stats):
        write_aside(memo, digest.hexdigest().encode())
    return digest.hexdigest()
