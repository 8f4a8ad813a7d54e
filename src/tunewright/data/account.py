"""What became of every row: reports of the files, tallies of what was left out, and when that is too much to go on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunewright.data.examples import Place
from tunewright.data.values import LABELLED_BAD
from tunewright.errors import UsageError

SHOWN_PLACES = 5
MOST_BAD = 10  # at most one row in so many may be left out


@dataclass(slots=True)
class RowTally:
    """Rows with one fate, such as left out for one reason: how many, and where the first few stand."""

    reason: str
    count: int = 0
    first: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        self.count += 1
        if len(self.first) < SHOWN_PLACES:
            self.first.append(place)

    def add_all(self, other: "RowTally") -> None:
        """Rows further down the files, with the same fate."""
        self.count += other.count
        self.first = [*self.first, *other.first][:SHOWN_PLACES]


@dataclass(slots=True)
class SourceReport:
    """How one source was read. `columns` maps a key of `data.train.columns` to the column's name; `guessed` says that
    neither the config nor a known form gave these names; `ignored` are the columns that nothing is read from although
    something stands there, each with the number of such rows and the place of the first; `kind` is what a row holds."""

    path: str
    format: str
    columns: dict[str, str]
    rows: int
    guessed: bool
    ignored: dict[str, tuple[int, Place]] = field(default_factory=dict)
    kind: str = "dialog"

    @property
    def unread(self) -> list[str]:
        """The ignored columns in words: where not every row has something there, how many do, and the first."""
        return [
            name if count == self.rows else f"{name} (in {count:,} row{'s' * (count > 1)}, first {first})"
            for name, (count, first) in self.ignored.items()
        ]


@dataclass(slots=True)
class Loaded:
    """How the files of a run were read.

    `rows` counts what was read, left out or not; `dropped` are the rows that are no examples. `duplicates` and
    `overlap` are as in `Account`. `sha256` is that of the files' bytes, one after another. `ranked` counts examples
    with a better and a worse answer.
    """

    dropped: list[RowTally]
    sources: list[SourceReport]
    duplicates: int
    rows: int
    sha256: str
    overlap: RowTally = field(default_factory=lambda: RowTally("equal to a training row"))
    ranked: int = 0


@dataclass(slots=True)
class Ends:
    """The stop proof in numbers; `first` is (sequence, token) of the first stretch that does not stop."""

    stretches: int = 0
    failing: int = 0
    first: tuple[int, int] | None = None

    def add(self, other: "Ends", sequences: int) -> None:
        """`other` counts its sequences from the one with number `sequences` here."""
        self.stretches += other.stretches
        self.failing += other.failing
        if self.first is None and other.first is not None:
            self.first = other.first[0] + sequences, other.first[1]


@dataclass(slots=True)
class Notes:
    """What was noticed on the way from rows to sequences, of some rows or of all.

    `unusable` are examples that gave no sequence, by reason. `lengths` counts those that could be written as tokens,
    kept or not, by their number of tokens before any cut; `shortest` is the first of the shortest, cut where that is
    possible, `refused` the first that could not be written. `cut` and `spells_special` are kept examples that were
    shortened, or whose text spells a special token. `straddling` counts tokens that begin before an answer and end
    in it.
    """

    examples: int = 0
    unusable: dict[str, RowTally] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    shortest: tuple[int, Place] | None = None
    refused: tuple[Place, str] | None = None
    cut: RowTally = field(default_factory=lambda: RowTally("cut to fit data.max_length"))
    spells_special: RowTally = field(default_factory=lambda: RowTally("spells a special token"))
    straddling: int = 0

    def measure(self, length: int, uncut: int, place: Place) -> None:
        """An example of so many tokens, and so many before it was cut."""
        self.lengths[uncut] = self.lengths.get(uncut, 0) + 1
        if self.shortest is None or length < self.shortest[0]:
            self.shortest = length, place

    def refuse(self, reason: str, place: Place) -> None:
        """An example that the template can't write."""
        self.refused = self.refused or (place, reason)
        self.leave_out(reason, place)

    def leave_out(self, reason: str, place: Place) -> None:
        """An example that gives no sequence."""
        count(self.unusable, reason, place)

    def add(self, other: "Notes") -> None:
        """What was noticed further down the files."""
        self.examples += other.examples
        add_all(self.unusable, other.unusable)
        for length, number in other.lengths.items():
            self.lengths[length] = self.lengths.get(length, 0) + number
        if other.shortest is not None and (self.shortest is None or other.shortest[0] < self.shortest[0]):
            self.shortest = other.shortest
        self.refused = self.refused or other.refused
        self.cut.add_all(other.cut)
        self.spells_special.add_all(other.spells_special)
        self.straddling += other.straddling


@dataclass(slots=True)
class SourceAccount:
    """One source and its rows that are no examples, by reason.

    `key` is its key in the config, `held_out` says that it is the validation file. A source whose files are not all
    read alike has several accounts; `number` counts sources.
    """

    key: str
    report: SourceReport
    held_out: bool
    number: int = 0
    bad: dict[str, RowTally] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """Rows that are examples."""
        return self.report.rows - sum(tally.count for tally in self.bad.values())


@dataclass(slots=True)
class Account:
    """Everything that happened to the rows of a store; kept beside it, so that a later start knows too.

    `files` are the names that places refer to, `digest` is the SHA-256 of all sequences.
    `duplicates` counts kept rows that equal an earlier one, of the training files or of the validation file, `overlap`
    those of the validation file that are trained on too.
    """

    files: list[str] = field(default_factory=list)
    sources: list[SourceAccount] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    ends: Ends = field(default_factory=Ends)
    duplicates: int = 0
    overlap: RowTally = field(default_factory=lambda: RowTally("equal to a training row"))
    digest: str = ""

    @property
    def rows(self) -> int:
        """Rows read, of all sources."""
        return sum(source.report.rows for source in self.sources)

    @property
    def dropped(self) -> list[RowTally]:
        """Everything left out, the most frequent reason first: rows that are no examples, then unusable examples."""
        return [*self.loaded("").dropped, *merge(self.notes.unusable.values())]

    def loaded(self, sha256: str) -> Loaded:
        """The part about reading; `sha256` is that of the files."""
        return Loaded(
            dropped=merge(tally for source in self.sources for tally in source.bad.values()),
            sources=[source.report for source in self.sources],
            duplicates=self.duplicates,
            rows=self.rows,
            sha256=sha256,
            overlap=self.overlap,
            ranked=sum(source.examples for source in self.sources if source.report.kind == "preference"),
        )


def count(tallies: dict[str, RowTally], reason: str, place: Place) -> None:
    """Add a row under its reason."""
    tallies.setdefault(reason, RowTally(reason)).add(place)


def add_all(tallies: dict[str, RowTally], others: Mapping[str, RowTally]) -> None:
    """Add the tallies of rows further down the files."""
    for reason, other in others.items():
        tallies.setdefault(reason, RowTally(reason)).add_all(other)


def merge(dropped: Iterable[RowTally]) -> list[RowTally]:
    """One entry for each reason, the most frequent first."""
    merged: dict[str, RowTally] = {}
    for item in dropped:
        merged.setdefault(item.reason, RowTally(item.reason)).add_all(item)
    return sorted(merged.values(), key=lambda item: -item.count)


class Placed(Protocol):
    """Rows of which the first few are told with their places."""

    @property
    def count(self) -> int: ...

    @property
    def first(self) -> Sequence[Place]: ...


def places(rows: Placed) -> str:
    """`rows.json:3, :7, :12, …`: the file is named once where it stays the same."""
    parts, file = [], None
    for place in rows.first:
        parts.append(f":{place.at}" if place.file == file else str(place))
        file = place.file
    return ", ".join(parts) + (", …" if rows.count > len(rows.first) else "")


def too_long(max_length: int) -> str:
    """Why an example is left out that no cut makes fit."""
    return f"longer than data.max_length = {max_length}"


def refuse_too_much(account: Account, max_length: int, drop_bad_rows: bool) -> None:
    """Raise UsageError where too much is left out: of one source, of all, or everything.

    More than a tenth is more often a mistake than a wish, except where rows say themselves that they are not learnt.
    """
    for source in account.sources:
        _refuse_source(source, drop_bad_rows)
    _refuse_unfitting(account.notes, max_length)
    _refuse_many(account, max_length, drop_bad_rows)


def _refuse_source(source: SourceAccount, drop_bad_rows: bool) -> None:
    kept = source.examples
    rows = source.report.rows - (_meant(source.bad.values()) if kept else 0)
    bad = rows - kept
    if kept and (drop_bad_rows or bad * MOST_BAD <= rows):
        return
    share = "more than a tenth" if kept else "nothing is left"
    advice = (
        "Mend them, or leave them out with data.drop_bad_rows: true"
        if kept
        else f"Mend them, or check {source.key}.columns"
    )
    counts = f"{bad} of {rows} row{'s' * (rows > 1)} {'is' if bad == 1 else 'are'} bad"
    raise UsageError(
        "\n".join([f"{source.report.path}: {counts}, {share}", *_reasons(merge(source.bad.values())), advice])
    )


def _refuse_unfitting(notes: Notes, max_length: int) -> None:
    if notes.shortest is None and notes.refused is not None:
        place, reason = notes.refused
        raise UsageError(
            f"none of the {notes.examples:,} dialogs can be trained on; first {place}: {reason}. "
            "Give another template in `data.template: path.jinja`"
        )
    if notes.shortest is not None and notes.shortest[0] > max_length:
        length, place = notes.shortest
        raise UsageError(
            f"data.max_length is {max_length}, but the shortest example, {place}, has {length} "
            f"tokens; set data.max_length to {_fitting(notes)} to keep 99 % of the examples whole"
        )


def _refuse_many(account: Account, max_length: int, drop_bad_rows: bool) -> None:
    dropped = account.dropped
    meant = _meant(dropped)
    count, rows = sum(item.count for item in dropped) - meant, account.rows - meant
    if drop_bad_rows or count * MOST_BAD <= rows:
        return
    fitting = _fitting(account.notes)
    raised = f"raise data.max_length to {fitting}, which 99 % of the dialogs keep to"
    # Those that are cut are too long as well, yet nothing is lost to them that mending other rows would not bring back.
    mending = raised if fitting > max_length and too_long(max_length) in account.notes.unusable else "mend them"
    advice = f"{mending[0].upper()}{mending[1:]}, or leave them out with data.drop_bad_rows: true"
    summary = f"{count:,} of {rows:,} rows would be left out, more than a tenth"
    raise UsageError("\n".join([summary, *_reasons(dropped), advice]))


def _meant(dropped: Iterable[RowTally]) -> int:
    """Rows that are left out because they say so."""
    return sum(item.count for item in dropped if item.reason == LABELLED_BAD)


def _reasons(dropped: Sequence[RowTally]) -> list[str]:
    return [f"  {item.count} × {item.reason}: {places(item)}" for item in dropped]


def _fitting(notes: Notes) -> int:
    """The shortest length that 99 % of the examples keep to."""
    left = sum(notes.lengths.values()) * 0.99
    for length in sorted(notes.lengths):
        left -= notes.lengths[length]
        if left <= 0:
            return length
    return 0
