"""Two tables of questions and answers -> one file of both, joined on a column that they share.

    tunewright data join questions.csv answers.csv --on question_id --prompt content --response content -o OUT.jsonl

The questions wait in a temporary database on disk, so memory does not grow with either table.
"""

import random
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.config.schema import SourceConfig
from tunewright.data.examples import Place
from tunewright.data.read import read_rows
from tunewright.data.suggest import nearest
from tunewright.data.values import BadRow, text
from tunewright.data.write import write_lines
from tunewright.errors import RunError, UsageError
from tunewright.models.cache import Notify, to_stderr

CACHE = -32 * 1024  # KiB of the database kept in memory
LOOK_AT = 1000  # rows that may lack a column before it counts as missing
# CROSS JOIN keeps the order in which the tables are read: all answers in turn, for each its questions by index.
PAIRS = "FROM side1 CROSS JOIN side0 ON side0.key = side1.key"


class Table(NamedTuple):
    """One side of a join: where its rows are, the config key that messages call it by, and its two columns."""

    source: SourceConfig
    key: str
    on: str
    text: str


@dataclass(slots=True)
class Account:
    """What a join did.

    `rows` counts those of each side, questions first; `empty` those of them without a key or text, `single` those
    whose key is not on the other side, each with the place of the first. `pairs` were found, `written` kept.
    """

    rows: list[int] = field(default_factory=lambda: [0, 0])
    empty: list[int] = field(default_factory=lambda: [0, 0])
    first_empty: list[Place | None] = field(default_factory=lambda: [None, None])
    single: list[int] = field(default_factory=lambda: [0, 0])
    first_single: list[Place | None] = field(default_factory=lambda: [None, None])
    pairs: int = 0
    written: int = 0


def join_tables(
    questions: Table,
    answers: Table,
    target: Path,
    most: int | None = None,
    seed: int = 42,
    replace: bool = False,
    notify: Notify = to_stderr,
) -> Account:
    """Write `{"instruction": question, "output": answer}` for every pair of rows with the same key.

    Of more than `most` pairs as many are drawn by `seed`; they stand in the order of the answers. Relative paths start
    at the working directory. Raises UsageError for a column that is not there, no pair at all, and a target that
    exists unless `replace`.
    """
    account = Account()
    with write_lines(target, replace) as write, _database() as database:
        for side, table in enumerate((questions, answers)):
            _store(database, side, table, account, notify)
        for side in (0, 1):
            _count_single(database, side, account)
        account.pairs = database.execute(f"SELECT count(*) {PAIRS}").fetchone()[0]
        if not account.pairs:
            raise UsageError(_no_pair(database, questions, answers))
        drawn = None
        if most is not None and most < account.pairs:
            drawn = iter(sorted(random.Random(seed).sample(range(account.pairs), most)))
        for question, answer in _drawn(database, drawn):
            write({"instruction": question, "output": answer})
            account.written += 1
    return account


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    with (
        tempfile.TemporaryDirectory(prefix="tunewright-join-") as folder,
        closing(sqlite3.connect(Path(folder) / "rows.sqlite", isolation_level=None)) as database,
    ):
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = {CACHE}", "temp_store = FILE"):
            database.execute(f"PRAGMA {setting}")
        try:
            yield database
        except sqlite3.OperationalError as fault:
            full = f"the temporary database in {folder} failed ({fault})"
            raise RunError(f"{full}: free the disk, or set TMPDIR to another folder") from fault


def _store(database: sqlite3.Connection, side: int, table: Table, account: Account, notify: Notify) -> None:
    """Put the rows of one side into the database, and an index on their keys."""
    database.execute(f"CREATE TABLE side{side} (number INTEGER PRIMARY KEY, key TEXT, text TEXT, file TEXT, line INT)")
    database.execute("BEGIN")
    rows = _texts(side, table, account, notify)
    database.executemany(f"INSERT INTO side{side} (key, text, file, line) VALUES (?, ?, ?, ?)", rows)
    database.execute("COMMIT")
    database.execute(f"CREATE INDEX key{side} ON side{side} (key)")


def _texts(side: int, table: Table, account: Account, notify: Notify) -> Iterator[tuple[str, str, str, int]]:
    """Key, text, file and line of every row that has both."""
    seen: dict[str, None] = {}
    for row, place in read_rows(table.source, Path.cwd(), table.key, notify):
        if account.rows[side] < LOOK_AT:
            seen.update(dict.fromkeys(row))
        account.rows[side] += 1
        if account.rows[side] == LOOK_AT:
            _require_columns(table, seen)
        key, words = _text(row.get(table.on), table.on, place).strip(), _text(row.get(table.text), table.text, place)
        if key and words:
            yield key, words, place.file, place.line
        else:
            account.empty[side] += 1
            account.first_empty[side] = account.first_empty[side] or place
    _require_columns(table, seen)


def _require_columns(table: Table, seen: dict[str, None]) -> None:
    for column in (table.on, table.text):
        if column not in seen:
            has = ", ".join(list(seen)[:12])
            raise UsageError(f"{table.source.path} has no column {column!r}, it has {has}{nearest(column, seen)}")


def _text(value: Any, column: str, place: Place) -> str:
    try:
        return text(value, column)
    except BadRow as bad:
        raise UsageError(f"{place}: {bad}") from None


def _count_single(database: sqlite3.Connection, side: int, account: Account) -> None:
    without = f"FROM side{side} WHERE NOT EXISTS (SELECT 1 FROM side{1 - side} WHERE key = side{side}.key)"
    account.single[side] = database.execute(f"SELECT count(*) {without}").fetchone()[0]
    first = database.execute(f"SELECT file, line {without} ORDER BY number LIMIT 1").fetchone()
    account.first_single[side] = Place(*first) if first else None


def _drawn(database: sqlite3.Connection, drawn: Iterator[int] | None) -> Iterator[tuple[str, str]]:
    """The pairs in the order of the answers: those whose numbers are drawn, or all of them."""
    wanted = next(drawn, None) if drawn is not None else None
    pairs = database.execute(f"SELECT side0.text, side1.text {PAIRS} ORDER BY side1.number, side0.number")
    for number, pair in enumerate(pairs):
        if drawn is None:
            yield pair
        elif number == wanted:
            yield pair
            wanted = next(drawn, None)


def _no_pair(database: sqlite3.Connection, questions: Table, answers: Table) -> str:
    keys = [database.execute(f"SELECT key FROM side{side} ORDER BY number LIMIT 1").fetchone() for side in (0, 1)]
    shown = " and ".join(
        f"{table.source.path} begins with {table.on} = {key[0]!r}" if key else f"{table.source.path} holds no key"
        for table, key in zip((questions, answers), keys, strict=True)
    )
    return f"no row of {questions.source.path} has the same {questions.on} as one of {answers.source.path}: {shown}"
