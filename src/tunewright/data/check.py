"""What `tunewright check` says about the data of a run, as plain data: counts, lengths, stop proof, coloured tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunewright.data.encode import Prepared, stop_failure
from tunewright.data.examples import Encoded, Place
from tunewright.data.load import Dropped, SourceReport

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
class Facts:
    """Everything the data say before training. `train` and `validation` count sequences: for pt these are windows."""

    stage: str
    sources: list[SourceReport]
    rows: int
    examples: int
    train: int
    validation: int
    dropped: list[Dropped]
    duplicates: int
    cut_documents: int
    tokens: int
    supervised_tokens: int
    lengths: Lengths
    stop_ids: list[int]
    stop_tokens: list[str]
    stop_proof: bool
    stop_message: str
    warnings: list[str]
    first: Shown
    failing: Shown | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; places are written as `file:line`."""
        plain = asdict(self)
        for item, dropped in zip(plain["dropped"], self.dropped, strict=True):
            item["first"] = [str(place) for place in dropped.first]
        for name, shown in (("first", self.first), ("failing", self.failing)):
            if shown is not None:
                plain[name]["place"] = str(shown.place)
        return plain


def gather_facts(stage: str, prepared: Prepared, tokenizer: "PreTrainedTokenizerBase") -> Facts:
    """Look at prepared data; needs no model."""
    sides = (prepared.train, prepared.validation)
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
        cut_documents=prepared.cut_documents,
        tokens=sum(len(side.input_ids) for side in sides),
        supervised_tokens=sum(side.supervised_tokens for side in sides),
        lengths=_lengths(np.concatenate([side.lengths for side in sides])),
        stop_ids=list(prepared.stop_ids),
        stop_tokens=[str(tokenizer.convert_ids_to_tokens(id)) for id in prepared.stop_ids],
        stop_proof=proof.holds,
        stop_message=proven if proof.holds else stop_failure(prepared, tokenizer),
        warnings=_warnings(prepared),
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
        pieces.append(Piece(text[len(known) :], kind))
        before, begin = begin, end
    return pieces


def _lengths(lengths: np.ndarray) -> Lengths:
    median, p95, p99 = np.percentile(lengths, [50, 95, 99], method="inverted_cdf")
    counts, _ = np.histogram(lengths, bins=_BINS)
    return Lengths(int(lengths.min()), int(median), int(p95), int(p99), int(lengths.max()), counts.tolist())


def _warnings(prepared: Prepared) -> list[str]:
    """What is no fault, but worth a look before training."""
    warnings = []
    spelling = prepared.spells_special
    if spelling:
        warnings.append(
            f"the text of {len(spelling):,} {'row' if len(spelling) == 1 else 'rows'} spells special tokens, "
            f"which dialogs hold as plain text and documents as those tokens; first at {spelling[0]}"
        )
    if prepared.straddling:
        warnings.append(
            f"{prepared.straddling:,} × the first characters of an answer make one token with the end of the prompt; "
            "such a token is not trained"
        )
    if prepared.template is not None and prepared.template.prompt_is_silent:
        warnings.append(
            "the chat template has no generation prompt, so the model must write the header of its answer itself"
        )
    if prepared.template is not None and "strftime_now" in prepared.template.source:
        warnings.append("the chat template writes today's date into every prompt, so tomorrow's tokens will differ")
    if prepared.loaded.overlap:
        warnings.append(f"{prepared.loaded.overlap:,} × a validation example is trained on too")
    return warnings
