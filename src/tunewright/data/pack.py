"""A few thousand rows -> arrays that can be appended to a store: what each process that prepares data does.

A `Job` is what all chunks of rows have in common, a `Chunk` is rows of one file, a `Pack` what came of them. All three
travel between processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config.schema import DataConfig
from tunewright.data.account import Ends, Notes, RowTally, count, too_long
from tunewright.data.columns import Layout
from tunewright.data.content import to_json
from tunewright.data.cut import fit_many
from tunewright.data.examples import Dialog, Encoded, EncodedSet, Example, FlatSet, Place, Text
from tunewright.data.formats import BadRow, for_stage, read_example
from tunewright.data.split import content_hash
from tunewright.data.stop import StopProof, prove_answers_stop, prove_documents_end
from tunewright.data.template import ChatTemplate, EncodedDialog, Refused, special_spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RUN = np.dtype([("length", "<i4"), ("weight", "<f4")])  # so many tokens in a row with this weight
SEQUENCE = np.dtype([("tokens_end", "<i8"), ("runs_end", "<i8"), ("example", "<i8"), ("trained", "<i4")])
EXAMPLE = np.dtype(
    [("text_end", "<i8"), ("hash", "<u8"), ("line", "<i8"), ("row", "<i4"), ("file", "<i4"), ("source", "<i4")]
)


@dataclass(frozen=True, slots=True)
class Job:
    """`template` is Jinja text, None where raw text is read and there is none; `end_id` ends a raw text."""

    data: DataConfig
    stage: str
    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    stop_ids: tuple[int, ...]
    end_id: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file, which is known as `file`, and of one source, by its number.

    `account` is the number of the account that they count in; `of_line` says which one of its line the first row is.
    """

    source: int
    layout: Layout
    file: str
    lines: list[int]
    rows: list[dict[str, Any]]
    account: int = 0
    of_line: int = 1

    @property
    def places(self) -> Iterator[Place]:
        """Where each row stands."""
        before, of_line = self.lines[0], self.of_line - 1
        for line in self.lines:
            of_line = of_line + 1 if line == before else 1
            before = line
            yield Place(self.file, line, of_line)


@dataclass(frozen=True, slots=True)
class Pack:
    """What came of one chunk.

    Positions and indices in `sequences` and `examples` count from the beginning of the pack. `ids` int32 [tokens],
    `runs` RUN, `sequences` SEQUENCE, `examples` EXAMPLE (its file is to be filled in), `text` the examples' JSON lines,
    `bad` the rows that are no examples, by reason.
    """

    account: int
    file: str
    rows: int
    ids: np.ndarray
    runs: np.ndarray
    sequences: np.ndarray
    examples: np.ndarray
    text: bytes
    bad: dict[str, RowTally]
    notes: Notes
    ends: Ends


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one row: `reason` says why it is left out, None where it is kept; `sequences` may be too long;
    `cut` counts the messages left out so that it fits."""

    reason: str | None
    sequences: Sequence[Encoded] = ()
    cut: int = 0


class Packer:
    """Turns chunks into packs. Raises UsageError where the template can't be used at all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._template = (
            None if job.stage == "pt" else ChatTemplate(job.tokenizer, job.template, job.stop_ids, job.data.reasoning)
        )
        self._stop_ids = job.stop_ids if self._template is None else self._template.stop_ids
        self._spelling = special_spelling(job.tokenizer)

    def pack(self, chunk: Chunk) -> Pack:
        """Read, render, tokenise and weigh the rows of a chunk."""
        examples, bad = self._read(chunk)
        notes = Notes(examples=len(examples))
        kept = self._encode_texts(examples, notes) if self._template is None else self._encode_dialogs(examples, notes)
        sequences = [one for several in kept for one in several]
        owners = np.repeat(np.arange(len(kept)), [len(several) for several in kept])
        flat = EncodedSet.build(sequences, [examples[owner].place for owner in owners])
        proof = self._prove(flat, owners)
        first = None if proof.first is None else (proof.first.sequence, proof.first.token)
        runs, runs_end = _runs(flat)
        contents = [to_json(example) for example in examples]
        return Pack(
            account=chunk.account,
            file=chunk.file,
            rows=len(chunk.rows),
            ids=flat.input_ids,
            runs=runs,
            sequences=_table(
                SEQUENCE,
                tokens_end=flat.offsets[1:],
                runs_end=runs_end,
                example=owners,
                trained=[np.count_nonzero(one.weights) for one in sequences],
            ),
            examples=_table(
                EXAMPLE,
                text_end=np.cumsum([len(content) + 1 for content in contents], dtype=np.int64),
                hash=np.array([content_hash(content) for content in contents], np.uint64),
                line=[example.place.line for example in examples],
                row=[example.place.row for example in examples],
                source=np.full(len(examples), chunk.source),
            ),
            text=b"".join(content + b"\n" for content in contents),
            bad=bad,
            notes=notes,
            ends=Ends(proof.stretches, proof.failing, first),
        )

    def explain(self, chunk: Chunk) -> Outcome:
        """What becomes of the one row of a chunk."""
        examples, bad = self._read(chunk)
        if bad:
            return Outcome(next(iter(bad)))
        if self._template is None:
            (windows,) = self._encode_texts(examples, Notes())
            return Outcome(None, windows)
        (result,) = self._attempt(examples)
        if isinstance(result, Refused):
            return Outcome(result.reason)
        return Outcome(self._fault(result), result.sequences, result.cut)

    def _read(self, chunk: Chunk) -> tuple[list[Example], dict[str, RowTally]]:
        examples: list[Example] = []
        bad: dict[str, RowTally] = {}
        for place, row in zip(chunk.places, chunk.rows, strict=True):
            try:
                example = read_example(row, chunk.layout, self._job.data.system, place)
                examples.append(for_stage(example, self._job.stage))
            except BadRow as reason:
                count(bad, str(reason), place)
        return examples, bad

    def _encode_texts(self, examples: Sequence[Example], notes: Notes) -> list[Sequence[Encoded]]:
        """The windows of each text."""
        texts = [example for example in examples if isinstance(example, Text)]
        words = [text.text for text in texts]
        kept: list[Sequence[Encoded]] = list(
            encode_texts(words, self._job.tokenizer, self._job.end_id, self._job.data.max_length)
        )
        for text, windows in zip(texts, kept, strict=True):
            if len(windows) > 1:
                notes.cut.add(text.place)
            if self._spelling.search(text.text):
                notes.spells_special.add(text.place)
        return kept

    def _attempt(self, examples: Sequence[Example]) -> Iterator[EncodedDialog | Refused]:
        assert self._template is not None
        dialogs = [example for example in examples if isinstance(example, Dialog)]
        return fit_many(self._template, dialogs, self._job.data.max_length, self._job.data.too_long)

    def _encode_dialogs(self, examples: Sequence[Example], notes: Notes) -> list[Sequence[Encoded]]:
        """The sequences of each dialog: none of one that can't be trained on."""
        results = self._attempt(examples)
        return [self._keep(example.place, result, notes) for example, result in zip(examples, results, strict=True)]

    def _keep(self, place: Place, result: EncodedDialog | Refused, notes: Notes) -> Sequence[Encoded]:
        if isinstance(result, Refused):
            notes.refuse(result.reason, place)
            return []
        notes.measure(result.longest, result.uncut or result.longest, place)
        fault = self._fault(result)
        if fault is not None:
            notes.leave_out(fault, place)
            return []
        notes.straddling += result.straddling
        if result.spells_special:
            notes.spells_special.add(place)
        if result.cut:
            notes.cut.add(place)
        return result.sequences

    def _fault(self, result: EncodedDialog) -> str | None:
        """Why a dialog gives no sequence, None where it does."""
        if result.longest > self._job.data.max_length:
            return too_long(self._job.data.max_length)
        trained = any(np.count_nonzero(sequence.weights) for sequence in result.sequences)
        return None if trained else "no token of it is trained"

    def _prove(self, flat: FlatSet, owners: np.ndarray) -> StopProof:
        """The stop proof, over the very arrays that go into the store."""
        if self._template is not None:
            return prove_answers_stop(flat, self._stop_ids)
        last_windows = np.flatnonzero(np.diff(owners, append=-1))
        return prove_documents_end(flat, last_windows.tolist(), self._stop_ids)


def encode_texts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", eos_id: int, max_length: int
) -> Iterator[list[Encoded]]:
    """The windows of each document, for pre-training.

    A document is its tokens as the tokenizer wraps them by default (with bos where it adds one) and one `eos_id`. Each
    window of at most `max_length` tokens begins with the last token of the one before and all but its first token
    have weight 1, so every token of the document but its first is predicted exactly once.
    """
    if not texts:
        return
    for ids in tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]:
        document = np.array(ids if ids and ids[-1] == eos_id else [*ids, eos_id], np.int32)
        starts = range(0, max(len(document) - 1, 1), max_length - 1)
        yield [_window(document[start : start + max_length]) for start in starts]


def _window(ids: np.ndarray) -> Encoded:
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0.0  # nothing stands before the first token that could predict it
    return Encoded(ids, weights)


def _runs(flat: FlatSet) -> tuple[np.ndarray, np.ndarray]:
    """The weights as runs of equal ones that end with their sequence, and where the runs of each sequence end."""
    begins = np.ones(len(flat.weights), bool)
    begins[1:] = flat.weights[1:] != flat.weights[:-1]
    begins[flat.offsets[:-1]] = True
    starts = np.flatnonzero(begins)
    runs = _table(RUN, length=np.diff(starts, append=len(begins)), weight=flat.weights[starts])
    return runs, np.searchsorted(starts, flat.offsets[1:])


def _table(dtype: np.dtype, **columns: np.ndarray | list[Any]) -> np.ndarray:
    table = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        table[name] = column
    return table
