"""What `tunewright check` says about the data of a run, as plain data: counts, lengths, stop proof, coloured tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunewright.data.account import RowTally, SourceReport
from tunewright.data.encode import Prepared, stop_failure
from tunewright.data.examples import Encoded, Place
from tunewright.data.findings.answers import look_at_ranks
from tunewright.data.findings.find import Looked, look
from tunewright.data.findings.found import Found
from tunewright.data.findings.scripts import ScriptShares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["masked", "trained", "stop"]

_BINS = 24  # of the length histogram
_LONGEST_PIECE = 8  # tokens; a character takes four bytes at most, two may interlock


@dataclass(frozen=True, slots=True)
class Piece:
    """A token as text; several tokens where only together they make a character."""

    text: str
    kind: Kind
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """One sequence as coloured tokens."""

    place: Place
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens per sequence. `histogram` counts sequences in equal bins from `min` to `max`."""

    min: int
    median: int
    p95: int
    p99: int
    max: int
    histogram: list[int]


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of some of the rows, and where the first of them stand. Those not `counted_above` add up to all."""

    what: str
    count: int
    first: list[Place]
    counted_above: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the data say before training.

    `train` and `validation` count sequences: for pt these are windows. `account` says what became of every row,
    `findings` everything that was looked at, the worst first; `warnings` are the sentences of those not fine.
    """

    stage: str
    sources: list[SourceReport]
    rows: int
    examples: int
    train: int
    validation: int
    dropped: list[RowTally]
    duplicates: int
    cut: int
    tokens: int
    supervised_tokens: int
    lengths: Lengths
    stop_ids: list[int]
    stop_tokens: list[str]
    stop_proof: bool
    stop_message: str
    warnings: list[str]
    account: list[Fate]
    findings: list[Found]
    scripts: ScriptShares
    first: Shown
    failing: Shown | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; places are written as `file:line`."""
        plain = asdict(self)
        told: dict[str, Sequence[RowTally | Fate | Found]] = {
            "dropped": self.dropped,
            "account": self.account,
            "findings": self.findings,
        }
        for name, items in told.items():
            for item, one in zip(plain[name], items, strict=True):
                item["first"] = [str(place) for place in one.first]
        for item, found in zip(plain["findings"], self.findings, strict=True):
            for plain_sample, sample in zip(item["samples"], found.samples, strict=True):
                plain_sample["place"] = str(sample.place)
                plain_sample["other"] = None if sample.other is None else str(sample.other)
        for name, shown in (("first", self.first), ("failing", self.failing)):
            if shown is not None:
                plain[name]["place"] = str(shown.place)
        return plain


def gather_facts(
    stage: str,
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    stated_eos: Sequence[int] = (),
    known: Sequence[Found] = (),
) -> Facts:
    """Look at prepared data; needs no model.

    `stated_eos` are the ids that the model's own files end an answer with, `known` is what was found in these files.
    """
    sides = (prepared.train, prepared.validation)
    looked = look(prepared, tokenizer, stated_eos, [*known, *look_at_ranks(prepared.loaded, stage)])
    loaded, proof = prepared.loaded, prepared.stop_proof
    subject = "answer" if stage == "sft" else "document"
    proven = f"all {proof.stretches:,} {subject}s end with a token that generation stops at"
    failing = proof.first
    return Facts(
        stage=stage,
        sources=loaded.sources,
        rows=loaded.rows,
        examples=loaded.rows - sum(item.count for item in prepared.dropped),
        train=len(prepared.train),
        validation=len(prepared.validation),
        dropped=prepared.dropped,
        duplicates=loaded.duplicates,
        cut=prepared.cut.count,
        tokens=sum(int(side.lengths.sum()) for side in sides),
        supervised_tokens=sum(side.supervised_tokens for side in sides),
        lengths=_lengths(np.concatenate([side.lengths for side in sides])),
        stop_ids=list(prepared.stop_ids),
        stop_tokens=[str(tokenizer.convert_ids_to_tokens(id)) for id in prepared.stop_ids],
        stop_proof=proof.holds,
        stop_message=proven if proof.holds else stop_failure(prepared, tokenizer),
        warnings=[found.message for found in looked.found if found.level != "fine"],
        account=_account(prepared, looked),
        findings=looked.found,
        scripts=looked.scripts,
        first=Shown(prepared.train.places[0], color_tokens(prepared.train[0], tokenizer, prepared.stop_ids)),
        failing=None
        if failing is None
        else Shown(failing.place, color_tokens(failing.encoded, tokenizer, prepared.stop_ids)),
    )


def color_tokens(encoded: Encoded, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int]) -> list[Piece]:
    """Each token as text with what training does to it.

    Tokens are decoded with their neighbour before, since some tokenizers strip what stands at the beginning, and
    joined until they make whole characters.
    """
    ids = encoded.input_ids.tolist()
    pieces: list[Piece] = []
    before = begin = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[before:end]))
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) and end - begin < _LONGEST_PIECE:
            continue
        known = str(tokenizer.decode(ids[before:begin]))
        kind: Kind = "masked" if encoded.weights[end - 1] == 0 else "stop" if ids[end - 1] in stop_ids else "trained"
        pieces.append(Piece(text[len(known) :], kind, tuple(ids[begin:end])))
        before, begin = begin, end
    return pieces


def _lengths(lengths: np.ndarray) -> Lengths:
    median, p95, p99 = np.percentile(lengths, [50, 95, 99], method="inverted_cdf")
    counts, _ = np.histogram(lengths, bins=_BINS)
    return Lengths(int(lengths.min()), int(median), int(p95), int(p99), int(lengths.max()), counts.tolist())


def _account(prepared: Prepared, looked: Looked) -> list[Fate]:
    """What became of every row."""
    fates = [Fate("trained on", looked.trained, looked.first_trained)]
    if looked.held_out:
        fates.append(Fate("held out for validation", looked.held_out, looked.first_held_out))
    fates += [Fate(f"left out: {item.reason}", item.count, item.first) for item in prepared.dropped]
    if prepared.cut.count:
        fates.append(Fate(prepared.cut.reason, prepared.cut.count, prepared.cut.first, counted_above=True))
    duplicates = next(found for found in looked.found if found.name == "duplicates")
    if duplicates.count:
        fates.append(Fate("equal to an earlier one", duplicates.count, list(duplicates.first), counted_above=True))
    return fates
