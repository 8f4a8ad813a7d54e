"""One row of the data files, from its text to its tokens: what became of it and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config.schema import DataConfig, RunConfig
from tunewright.data.account import too_long
from tunewright.data.check import Shown, color_tokens
from tunewright.data.encode import make_job
from tunewright.data.examples import Place
from tunewright.data.findings.found import count_of
from tunewright.data.load import find_sources, read_sources
from tunewright.data.pack import Chunk, Outcome, Packer
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Explained:
    """`number` counts rows from 1 over all files; `row` is what stands there, fit for JSON; `fate` is a few words, and
    `reason` those of them that say why it is left out, None where it is kept; `shown` are its sequences, also those
    that are too long."""

    number: int
    place: Place
    row: dict[str, Any]
    fate: str
    reason: str | None
    shown: list[Shown]

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.number,
            "place": str(self.place),
            "source": self.row,
            "kept": self.reason is None,
            "fate": self.fate,
            "reason": self.reason,
            "sequences": [
                [{"text": piece.text, "kind": piece.kind, "ids": list(piece.ids)} for piece in shown.pieces]
                for shown in self.shown
            ],
        }


def explain_rows(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    stated_eos: Sequence[int],
    base: Path,
    wanted: Sequence[str],
) -> list[Explained]:
    """Each of `wanted` is a row's number (1 is the first) or its place as check prints it, FILE:LINE.

    Raises UsageError where there is no such row.
    """
    if not wanted:
        return []
    job, _ = make_job(config, tokenizer, stated_eos, base)
    packer = Packer(job)
    explained = []
    for which in wanted:
        number, place, chunk = _find(config.data, job.stage, base, which)
        outcome = packer.explain(chunk)
        shown = [Shown(place, color_tokens(encoded, tokenizer, job.stop_ids)) for encoded in outcome.sequences]
        reason = _reason(outcome, config.data.max_length)
        fate = _kept(outcome, job.stage) if reason is None else f"left out: {reason}"
        explained.append(Explained(number, place, _plain(chunk.rows[0]), fate, reason, shown))
    return explained


def _reason(outcome: Outcome, max_length: int) -> str | None:
    """Why a row is left out; of one that is too long also how long it is."""
    if outcome.reason != too_long(max_length):
        return outcome.reason
    return f"{outcome.reason}: it has {max(map(len, outcome.sequences)):,} tokens"


def _kept(outcome: Outcome, stage: str) -> str:
    if outcome.cut:
        return f"kept without {count_of(outcome.cut, 'message')}, so that the rest fits data.max_length"
    windows = len(outcome.sequences)
    return f"kept, cut into {windows} windows of data.max_length" if stage == "pt" and windows > 1 else "kept"


def _plain(value: Any) -> Any:
    """A value of a file as JSON can hold it, and a terminal show it: a Parquet column may be binary, a text of a JSON
    file half of a character."""
    match value:
        case None | bool() | float():
            return value
        case int() if -(1 << 63) <= value < 1 << 63:
            return value
        case str():
            return value.encode(errors="backslashreplace").decode()
        case bytes():
            return f"({len(value):,} bytes)"
        case dict():
            return {_plain(str(name)): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return _plain(str(value))  # a date, a decimal number


def _find(data: DataConfig, stage: str, base: Path, which: str) -> tuple[int, Place, Chunk]:
    """The number of a row, its place, and a chunk of it alone."""
    file, _, at = which.rpartition(":")
    line, _, row_of_line = at.partition("#")
    if not line.isdecimal() or int(line) == 0 or ("#" in at and not (file and row_of_line.isdecimal())):
        raise UsageError(f"--row {which}: give a row's number, or its place as check prints it: FILE:LINE")
    sought = int(line), int(row_of_line or 1)
    number = 0
    last: tuple[int, Place, Chunk] | None = None
    for place, chunk in _rows(data, stage, base):
        number += 1
        if not file:
            if number == sought[0]:
                return number, place, chunk
            continue
        if not _is_named(place.file, file):
            continue
        if last is not None and (place.line, place.row) > sought:
            return last
        last = number, place, chunk
        if (place.line, place.row) == sought:
            return last
    if last is not None and ".json" in Path(last[1].file).suffixes:
        return last  # the last row of a JSON file may take many lines
    if last is not None:
        raise UsageError(f"--row {which}: the last row of {file} stands at line {last[1].line:,}")
    if file:
        raise UsageError(f"--row {which}: none of the data files is called {file}")
    raise UsageError(f"--row {which}: the data has only {number:,} rows")


def _is_named(path: str, name: str) -> bool:
    return path == name or Path(path).name == name


def _rows(data: DataConfig, stage: str, base: Path) -> Iterator[tuple[Place, Chunk]]:
    """Each row in a chunk of its own."""
    for item in read_sources(find_sources(data, base), stage):
        if isinstance(item, Chunk):
            for place, row in zip(item.places, item.rows, strict=True):
                yield place, replace(item, lines=[place.line], rows=[row], of_line=place.row)
