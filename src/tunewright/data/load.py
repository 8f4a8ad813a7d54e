"""Data files -> chunks of rows, with the form of each file decided from its first rows.

Nothing is held but the chunk at hand and those first rows, however long the files are. A column that comes later is
read where that changes nothing about the rows before it, and refused where it would have.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from tunewright.config.schema import DataConfig, SourceConfig
from tunewright.data.account import SourceAccount, SourceReport
from tunewright.data.column_names import USUAL
from tunewright.data.columns import Layout, choose_layout, widened
from tunewright.data.examples import Place
from tunewright.data.find import DataFile, find_named_files
from tunewright.data.first_rows import SAMPLE
from tunewright.data.pack import Chunk
from tunewright.data.read import read_files
from tunewright.data.registry import expand_registry
from tunewright.data.store import stores_root
from tunewright.data.values import is_empty
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr, write_aside

CHUNK_ROWS = 1000
CHUNK_VOLUME = 4 << 20  # characters
MUCH = 32 << 20  # bytes; less is hashed in no time

Row = tuple[dict[str, Any], Place]


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a run: `number` among them all, `key` in the config or registry; `held_out` marks the validation
    file."""

    number: int
    key: str
    config: SourceConfig
    files: list[DataFile]
    held_out: bool


def find_sources(data: DataConfig, base: Path) -> list[Source]:
    """All sources with their files, in order; relative paths start at `base`. Raises UsageError where one is not."""
    training = expand_registry(data, base)
    own = range(len(data.train))
    keys = ["data.train"] if len(own) == 1 else [f"data.train.{index}" for index in own]
    keys += [f"{data.registry}: {name}" for name in data.use]
    named = list(zip(keys, training, strict=True))
    for key, source in named:
        if source.weight != 1 and source.num_samples is not None:
            raise UsageError(f"{key}: weight and num_samples both say how much of it an epoch takes: remove one")
    if isinstance(data.validation, SourceConfig):
        if data.validation.weight != 1 or data.validation.num_samples is not None:
            what = "num_samples" if data.validation.weight == 1 else "weight"
            limit = "data.validation.max_samples limits what is read"
            raise UsageError(f"data.validation.{what} is for data to train on: remove it; {limit}")
        named.append(("data.validation", data.validation))
    return [
        Source(number, key, source, find_named_files(source, base, key), number >= len(training))
        for number, (key, source) in enumerate(named)
    ]


def read_sources(
    sources: Sequence[Source], stage: str | None, notify: Notify = to_stderr
) -> Iterator[SourceAccount | Chunk]:
    """For each way in which files of a source are read an account (no row counted yet), then their rows in chunks.

    A chunk holds rows of one file only. What is found on the way, as columns that nothing is read from, is added to the
    account. `stage` as in `choose_layout`. Raises UsageError.
    """
    accounts = 0
    for source in sources:
        ways: list[_Way] = []
        rows = read_files(source.files, source.config, source.key, notify)
        for file, its_rows in groupby(rows, key=lambda row: row[1].file):
            head = list(islice(its_rows, SAMPLE))
            reader = _FileReader(source, stage, file, head, ways[0].layout if ways else None)
            way = next((way for way in ways if way.takes(reader.layout)), None)
            if way is None:
                way = _way(accounts, file if ways else source.config.path, reader.layout)
                ways.append(way)
                accounts += 1
                yield SourceAccount(source.key, way.report, source.held_out, source.number)
            for part in _chunks(chain(head, its_rows)):
                reader.look(part, way)
                lines, of_line = [place.line for _, place in part], part[0][1].row
                yield Chunk(source.number, way.layout, file, lines, [row for row, _ in part], way.account, of_line)


@dataclass(slots=True)
class _Way:
    """One way in which files of a source are read, and the number of its account."""

    account: int
    layout: Layout
    report: SourceReport

    def takes(self, layout: Layout) -> bool:
        """Read the columns of another layout too, where that is all that it has more."""
        wider = widened(self.layout, layout)
        if wider is not None:
            self.layout, self.report.columns = wider, wider.columns
        return wider is not None


def _way(account: int, path: str, layout: Layout) -> _Way:
    return _Way(account, layout, SourceReport(path, layout.format, layout.columns, 0, layout.guessed, kind=layout.kind))


class _FileReader:
    """How one file is read, and what in it is not.

    Raises UsageError where the first file of a source fits nothing; of a later one `otherwise` is its layout then, and
    its rows are bad one by one.
    """

    def __init__(
        self, source: Source, stage: str | None, file: str, head: Sequence[Row], otherwise: Layout | None
    ) -> None:
        self._config = source.config.model_copy(update={"path": file})  # so that messages name the file
        self._stage, self._key = stage, source.key
        self._head = [row for row, _ in head]
        self._seen = {name for row in self._head for name, value in row.items() if not is_empty(value)}
        self.layout = self._choose(self._head, otherwise)

    def look(self, part: Sequence[Row], way: _Way) -> None:
        """Note the columns that these rows have and nothing is read from. Raises UsageError for one that comes late and
        would have decided how all rows are read."""
        used = set(way.layout.columns.values())
        for row, place in part:
            if row.keys() <= used:
                continue
            for name in [name for name, value in row.items() if name not in used and not is_empty(value)]:
                if name not in self._seen:
                    self._seen.add(name)
                    self._meet(name, row, place, way)
                    used = set(way.layout.columns.values())
                if name not in used:
                    count, first = way.report.ignored.get(name, (0, place))
                    way.report.ignored[name] = count + 1, first

    def _meet(self, name: str, row: dict[str, Any], place: Place, way: _Way) -> None:
        """Decide about a column that the first rows lack: had this row been one of them, would it be read?"""
        if name.strip().casefold() not in USUAL:
            return
        if way.takes(self._choose([*self._head[: SAMPLE - 1], row], way.layout)):
            return
        named = ", ".join(f"{role}: {column}" for role, column in way.layout.columns.items())
        raise UsageError(
            f"{place}: the column {name!r} first stands here, and with it the rows before would have been read "
            f"differently: move this row to the top of its file, or leave the column unread, {self._key}.guess: "
            f"false and {self._key}.columns: {{{named}}}"
        )

    def _choose(self, rows: Sequence[dict[str, Any]], otherwise: Layout | None) -> Layout:
        try:
            return choose_layout(rows, self._config, self._stage, self._key)
        except UsageError:
            if otherwise is None:
                raise
            return otherwise


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Neighbouring rows of one file, so many that they are worth a call and so few that they take little memory."""
    part: list[Row] = []
    volume = 0
    for row, place in rows:
        if part and (len(part) == CHUNK_ROWS or volume > CHUNK_VOLUME):
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
        return sum([len(part) if isinstance(part, str) else _volume(part) for part in value.values()])
    return sum(map(_volume, value)) if isinstance(value, list) else 0


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 of the bytes of all files, one after another, in hex.

    That of much data is kept in the cache under size and time of each file, so that it is read only once. Raises
    UsageError where a file can't be read.
    """
    try:
        return _hash(paths)
    except OSError as fault:
        raise UsageError(f"{fault.filename} can't be read: {fault.strerror or fault}") from None


def _hash(paths: Sequence[Path]) -> str:
    stats = [path.stat() for path in paths]
    known = [(str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ino) for path, s in zip(paths, stats, strict=True)]
    memo = stores_root() / "hashes" / hashlib.sha256(repr(known).encode()).hexdigest()
    much = sum(stat.st_size for stat in stats) > MUCH
    with suppress(OSError):
        if much:
            return memo.read_text()
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    # A file changed again within the clock's grain would look the same: only times well past can be relied on.
    if much and all(time.time() - stat.st_mtime > 2 for stat in stats):
        with suppress(OSError):  # where nothing can be kept, it is read each time
            write_aside(memo, digest.hexdigest().encode())
    return digest.hexdigest()
