"""Data files -> examples for training and validation, with an account of everything that was left out and why."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.config.schema import DataConfig, SourceConfig
from tunewright.data.columns import SAMPLE, choose_layout
from tunewright.data.examples import Example, Place
from tunewright.data.find import find_named_files
from tunewright.data.formats import BadRow, for_stage, read_example
from tunewright.data.read import read_files
from tunewright.data.registry import expand_registry
from tunewright.data.split import content, split
from tunewright.errors import UsageError

SHOWN_PLACES = 5
MOST_BAD = 10  # at most one row in so many may be bad


@dataclass(slots=True)
class Dropped:
    """Rows left out for one reason: how many, and where the first few stand."""

    reason: str
    count: int = 0
    first: list[Place] = field(default_factory=list)

    def add(self, place: Place) -> None:
        self.count += 1
        if len(self.first) < SHOWN_PLACES:
            self.first.append(place)


@dataclass(slots=True)
class SourceReport:
    """How one file was read. `columns` maps a key of `data.train.columns` to the column's name; `guessed` says that
    neither the config nor a known form gave these names; `ignored` are the columns that nothing is read from."""

    path: str
    format: str
    columns: dict[str, str]
    rows: int
    guessed: bool
    ignored: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Loaded:
    """All data of a run.

    `train` and `validation` keep the order of the files. `rows` counts what was read, left out or not. `duplicates`
    counts rows of the training files that equal an earlier one; `overlap` counts examples of a validation file that
    are trained on too. `sha256` is that of the files' bytes, one after another.
    """

    train: list[Example]
    validation: list[Example]
    dropped: list[Dropped]
    sources: list[SourceReport]
    duplicates: int
    rows: int
    sha256: str
    overlap: int = 0


def load_examples(data: DataConfig, stage: str, seed: int, base: Path) -> Loaded:
    """Read every source, leave out bad rows, fill in `data.system` and hold out validation examples.

    Relative paths start at `base`; `seed` decides which examples are held out. Raises UsageError for every fault of a
    file, and when more than a tenth of one is bad or nothing is left.
    """
    sources = expand_registry(data, base)
    keys = ["data.train"] if len(sources) == 1 else [f"data.train.{index}" for index in range(len(sources))]
    files = [_load_file(source, data, stage, base, key) for source, key in zip(sources, keys, strict=True)]
    examples = [example for file in files for example in file.examples]
    known = {content(example) for example in examples}
    overlap = 0
    if isinstance(data.validation, SourceConfig):
        held_out = _load_file(data.validation, data, stage, base, "data.validation")
        files.append(held_out)
        train, validation = examples, held_out.examples
        overlap = sum(content(example) in known for example in validation)
    else:
        train, validation = split(examples, data.validation, seed)
    return Loaded(
        train=train,
        validation=validation,
        dropped=_merge([dropped for file in files for dropped in file.dropped]),
        sources=[file.report for file in files],
        duplicates=len(examples) - len(known),
        rows=sum(file.report.rows for file in files),
        sha256=_hash([path for file in files for path in file.paths]),
        overlap=overlap,
    )


@dataclass(slots=True)
class _File:
    paths: list[Path]
    examples: list[Example]
    dropped: list[Dropped]
    report: SourceReport


def _load_file(source: SourceConfig, data: DataConfig, stage: str, base: Path, key: str) -> _File:
    files = find_named_files(source, base, key)
    rows = list(read_files(files, source, key))
    columns = dict.fromkeys(name for row, _ in rows for name in row)
    layout = choose_layout([row for row, _ in rows[:SAMPLE]], source, stage, key)
    examples: list[Example] = []
    dropped: dict[str, Dropped] = {}
    for row, place in rows:
        try:
            examples.append(for_stage(read_example(row, layout, data.system, place), stage))
        except BadRow as bad:
            reason = str(bad)
            dropped.setdefault(reason, Dropped(reason)).add(place)
    _refuse_too_many(source, list(dropped.values()), len(examples), data.drop_bad_rows, key)
    used = set(layout.columns.values())
    report = SourceReport(
        path=source.path,
        format=layout.format,
        columns=layout.columns,
        rows=len(rows),
        guessed=layout.guessed,
        ignored=[name for name in columns if name not in used],
    )
    return _File([file.path for file in files], examples, list(dropped.values()), report)


def _refuse_too_many(source: SourceConfig, dropped: list[Dropped], kept: int, drop_bad_rows: bool, key: str) -> None:
    bad = sum(item.count for item in dropped)
    rows = bad + kept
    if kept and (drop_bad_rows or bad * MOST_BAD <= rows):
        return
    share = "more than a tenth" if kept else "nothing is left"
    reasons = [
        f"  {item.count} × {item.reason}: {places(item)}" for item in sorted(dropped, key=lambda item: -item.count)
    ]
    advice = (
        "Mend them, or leave them out with data.drop_bad_rows: true" if kept else f"Mend them, or check {key}.columns"
    )
    counts = f"{bad} of {rows} row{'s' * (rows > 1)} {'is' if bad == 1 else 'are'} bad"
    raise UsageError("\n".join([f"{source.path}: {counts}, {share}", *reasons, advice]))


def places(dropped: Dropped) -> str:
    """`rows.json:3, :7, :12, …`: the file is named once where it stays the same."""
    parts, file = [], None
    for place in dropped.first:
        parts.append(f":{place.line}" if place.file == file else str(place))
        file = place.file
    return ", ".join(parts) + (", …" if dropped.count > len(dropped.first) else "")


def _merge(dropped: Sequence[Dropped]) -> list[Dropped]:
    """One entry for each reason over all files, the most frequent first."""
    merged: dict[str, Dropped] = {}
    for item in dropped:
        total = merged.setdefault(item.reason, Dropped(item.reason))
        total.count += item.count
        total.first = [*total.first, *item.first][:SHOWN_PLACES]
    return sorted(merged.values(), key=lambda item: -item.count)


def _hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
