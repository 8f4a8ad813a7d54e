"""One row of the data files, from its text to its tokens: what became of it and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config.schema import DataConfig, RunConfig
from tunewright.data.check import Shown, color_tokens
from tunewright.data.columns import Layout
from tunewright.data.cut import fit_many, longest
from tunewright.data.examples import Dialog, Encoded, Example, Place, Text
from tunewright.data.formats import BadRow, for_stage, read_example
from tunewright.data.load import find_sources, read_sources
from tunewright.data.pack import Chunk, encode_texts
from tunewright.data.template import ChatTemplate, Refused
from tunewright.data.template_source import template_source
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Explained:
    """`number` counts rows from 1 over all files; `reason` says why the row is left out, None where it is kept;
    `shown` are its sequences, also those that are too long."""

    number: int
    place: Place
    row: dict[str, Any]
    reason: str | None
    shown: list[Shown]

    def to_dict(self) -> dict[str, Any]:
        return {
            "row": self.number,
            "place": str(self.place),
            "source": self.row,
            "kept": self.reason is None,
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
    data = config.data
    source = template_source(tokenizer, data.template, base, config.model.name, data.reasoning)
    pretraining = config.method.stage == "pt"
    template = None if pretraining and source is None else ChatTemplate(tokenizer, source, stated_eos, data.reasoning)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stop_ids = tuple(dict.fromkeys([*stated_eos, *eos])) if template is None else template.stop_ids
    return [_explain(config, tokenizer, template, stop_ids, base, which) for which in wanted]


def _explain(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate | None,
    stop_ids: tuple[int, ...],
    base: Path,
    which: str,
) -> Explained:
    number, row, layout, place = _find(config.data, config.method.stage, base, which)
    try:
        example = for_stage(read_example(row, layout, config.data.system, place), config.method.stage)
    except BadRow as bad:
        return Explained(number, place, row, str(bad), [])
    reason, sequences = _encode(example, config, tokenizer, template, stop_ids)
    shown = [Shown(place, color_tokens(encoded, tokenizer, stop_ids)) for encoded in sequences]
    return Explained(number, place, row, reason, shown)


def _encode(
    example: Example,
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate | None,
    stop_ids: tuple[int, ...],
) -> tuple[str | None, list[Encoded]]:
    limit = config.data.max_length
    if isinstance(example, Text):
        eos = stop_ids[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        (windows,) = encode_texts([example.text], tokenizer, eos, limit)
        return None, windows
    assert isinstance(example, Dialog)
    assert template is not None
    (result,) = fit_many(template, [example], limit, config.data.too_long)
    if isinstance(result, Refused):
        return result.reason, []
    length = longest(result)
    reason = f"longer than data.max_length = {limit}: it has {length:,} tokens" if length > limit else None
    return reason, list(result.sequences)


def _find(data: DataConfig, stage: str, base: Path, which: str) -> tuple[int, dict[str, Any], Layout, Place]:
    file, _, at = which.rpartition(":")
    line, _, row_of_line = at.partition("#")
    if not line.isdecimal() or int(line) == 0 or ("#" in at and not (file and row_of_line.isdecimal())):
        raise UsageError(f"--row {which}: give a row's number, or its place as check prints it: FILE:LINE")
    sought = int(line), int(row_of_line or 1)
    number = 0
    last: tuple[int, dict[str, Any], Layout, Place] | None = None
    for row, layout, place in _rows(data, stage, base):
        number += 1
        if not file:
            if number == sought[0]:
                return number, row, layout, place
            continue
        if not _is_named(place.file, file):
            continue
        if last is not None and (place.line, place.row) > sought:
            return last
        last = number, row, layout, place
        if (place.line, place.row) == sought:
            return last
    if last is not None and ".json" in Path(last[3].file).suffixes:
        return last  # the last row of a JSON file may take many lines
    if last is not None:
        raise UsageError(f"--row {which}: the last row of {file} stands at line {last[3].line:,}")
    if file:
        raise UsageError(f"--row {which}: none of the data files is called {file}")
    raise UsageError(f"--row {which}: the data has only {number:,} rows")


def _is_named(path: str, name: str) -> bool:
    return path == name or Path(path).name == name


def _rows(data: DataConfig, stage: str, base: Path) -> Iterator[tuple[dict[str, Any], Layout, Place]]:
    for item in read_sources(find_sources(data, base), stage):
        if isinstance(item, Chunk):
            for row, place in zip(item.rows, item.places, strict=True):
                yield row, item.layout, place
