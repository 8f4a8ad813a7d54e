"""From files to what a run trains on: examples, through the chat template, to token ids with loss weights.

`prepare` is the whole way. For sft an example that does not fit `data.max_length` is left out, counted, and told with
its place; for pt long documents are cut into windows instead. Nothing is handed over before the stop proof holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunewright.config.schema import DataConfig, RunConfig
from tunewright.data.cut import fit_many, longest
from tunewright.data.examples import Dialog, Encoded, EncodedSet, Example, Place, Text
from tunewright.data.load import MOST_BAD, Dropped, Loaded, load_examples, places
from tunewright.data.stop import StopProof, prove_answers_stop, prove_documents_end
from tunewright.data.template import ChatTemplate, EncodedDialog, Refused, special_spelling, template_source
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000  # documents tokenised per call


@dataclass
class Prepared:
    """What a run trains and validates on; `…_examples` run parallel to the sets.

    `dropped` is everything left out, by the reader and here. `straddling` counts tokens that begin before an answer
    and end in it (masked), `spells_special` are the places whose text spells a special token. For pt an example
    stands once per window, `cut_documents` counts the documents that needed several, and `template` is None where
    the tokenizer has none. For sft a dialog stands once per sequence its template needs (mostly one), `cut_dialogs`
    are the places of those that lost turns so that they fit.
    """

    train: EncodedSet
    validation: EncodedSet
    loaded: Loaded
    dropped: list[Dropped]
    template: ChatTemplate | None
    train_examples: list[Example]
    validation_examples: list[Example]
    stop_ids: tuple[int, ...]
    stop_proof: StopProof
    straddling: int = 0
    spells_special: list[Place] = field(default_factory=list)
    cut_documents: int = 0
    cut_dialogs: list[Place] = field(default_factory=list)


def prepare(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    base: Path,
    require_stop: bool = True,
) -> Prepared:
    """Read, render, tokenise and weigh the data of a config; relative paths are looked up from `base`.

    Raises UsageError for unreadable data, an unusable template, a `max_length` nothing fits in, too many rows left
    out and, unless `require_stop` is False (`check` shows the proof itself), data that cannot teach the model to stop.
    """
    data, stage = config.data, config.method.stage
    source = template_source(tokenizer, data.template, base, config.model.name, data.reasoning)
    template = None if stage == "pt" and source is None else ChatTemplate(tokenizer, source, stop_ids, data.reasoning)
    loaded = load_examples(data, stage, config.train.seed, base)
    if stage == "pt":
        prepared = _prepare_texts(data, loaded, tokenizer, stop_ids, template)
    else:
        assert template is not None
        prepared = _prepare_dialogs(data, loaded, template)
    if require_stop and not prepared.stop_proof.holds:
        raise UsageError(stop_failure(prepared, tokenizer))
    return prepared


def stop_failure(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The sentence that says why the stop proof fails, where first, and what to do."""
    proof = prepared.stop_proof
    stops = " ".join(str(tokenizer.convert_ids_to_tokens(id)) for id in prepared.stop_ids) or "none at all"
    if proof.first is None:
        return "nothing in these data is trained to an end, so the model could not learn to stop"
    tail = str(tokenizer.decode(proof.first.encoded.input_ids[: proof.first.token + 1].tolist()))[-24:]
    return (
        f"{proof.failing:,} of {proof.stretches:,} trained stretches do not end with a token that generation stops at "
        f"({stops}), so the model would learn to run on; first at {proof.first.place}, which ends in {tail!r}. "
        "Let the chat template write the stop token after each answer (data.template: path.jinja)"
    )


def encode_texts(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", eos_id: int, max_length: int
) -> Iterator[list[Encoded]]:
    """The windows of each document, for pre-training.

    A document is its tokens as the tokenizer wraps them by default (with bos where it adds one) and one `eos_id`. Each
    window of at most `max_length` tokens begins with the last token of the one before and all but its first token
    have weight 1, so every token of the document but its first is predicted exactly once.
    """
    for begin in range(0, len(texts), _CHUNK):
        batch = tokenizer(list(texts[begin : begin + _CHUNK]), return_attention_mask=False, verbose=False)
        for ids in batch["input_ids"]:
            document = np.array(ids if ids and ids[-1] == eos_id else [*ids, eos_id], np.int32)
            starts = range(0, max(len(document) - 1, 1), max_length - 1)
            yield [_window(document[start : start + max_length]) for start in starts]


def _window(ids: np.ndarray) -> Encoded:
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0.0  # nothing stands before the first token that could predict it
    return Encoded(ids, weights)


def _prepare_dialogs(data: DataConfig, loaded: Loaded, template: ChatTemplate) -> Prepared:
    train, validation = (_attempt(side, template, data) for side in (loaded.train, loaded.validation))
    _require_fitting(data, [*train, *validation])
    dropped = [*loaded.dropped, *_left_out(data, [*train, *validation])]
    _refuse_many(data, loaded.rows, dropped, [*train, *validation])
    kept_train, kept_validation = _kept(data, train), _kept(data, validation)
    if not kept_train:
        raise UsageError("no training example is left: all that could be used are held out; lower data.validation")
    train_set, validation_set = _build(kept_train), _build(kept_validation)
    kept = [*kept_train, *kept_validation]
    return Prepared(
        train=train_set,
        validation=validation_set,
        loaded=loaded,
        dropped=dropped,
        template=template,
        train_examples=[dialog for dialog, item in kept_train for _ in item.sequences],
        validation_examples=[dialog for dialog, item in kept_validation for _ in item.sequences],
        stop_ids=template.stop_ids,
        stop_proof=prove_answers_stop(train_set, template.stop_ids)
        + prove_answers_stop(validation_set, template.stop_ids),
        straddling=sum(item.straddling for _, item in kept),
        spells_special=[dialog.place for dialog, item in kept if item.spells_special],
        cut_dialogs=[dialog.place for dialog, item in kept if item.cut],
    )


_Attempt = tuple[Dialog, EncodedDialog | Refused]


def _attempt(examples: Sequence[Example], template: ChatTemplate, data: DataConfig) -> list[_Attempt]:
    dialogs = [example for example in examples if isinstance(example, Dialog)]
    return list(zip(dialogs, fit_many(template, dialogs, data.max_length, data.too_long), strict=True))


def _reason(data: DataConfig, result: EncodedDialog | Refused) -> str | None:
    """Why a dialog is left out, None where it is kept."""
    if isinstance(result, Refused):
        return result.reason
    if longest(result) > data.max_length:
        return f"longer than data.max_length = {data.max_length}"
    return None if any(item.weights.any() for item in result.sequences) else "no token of it is trained"


def _left_out(data: DataConfig, attempts: Sequence[_Attempt]) -> list[Dropped]:
    dropped: dict[str, Dropped] = {}
    for dialog, result in attempts:
        reason = _reason(data, result)
        if reason is not None:
            dropped.setdefault(reason, Dropped(reason)).add(dialog.place)
    return sorted(dropped.values(), key=lambda item: -item.count)


def _kept(data: DataConfig, attempts: Sequence[_Attempt]) -> list[tuple[Dialog, EncodedDialog]]:
    return [(dialog, r) for dialog, r in attempts if isinstance(r, EncodedDialog) and _reason(data, r) is None]


def _build(kept: Sequence[tuple[Dialog, EncodedDialog]]) -> EncodedSet:
    sequences = [(sequence, dialog.place) for dialog, item in kept for sequence in item.sequences]
    return EncodedSet.build((sequence for sequence, _ in sequences), [place for _, place in sequences])


def _require_fitting(data: DataConfig, attempts: Sequence[_Attempt]) -> None:
    encoded = [(dialog, longest(result)) for dialog, result in attempts if isinstance(result, EncodedDialog)]
    if not encoded:
        first = next((dialog.place, result.reason) for dialog, result in attempts if isinstance(result, Refused))
        raise UsageError(
            f"none of the {len(attempts):,} dialogs can be trained on; first {first[0]}: {first[1]}. "
            "Give another template in `data.template: path.jinja`"
        )
    dialog, shortest = min(encoded, key=lambda item: item[1])
    if shortest > data.max_length:
        raise UsageError(
            f"data.max_length is {data.max_length}, but the shortest example, {dialog.place}, has {shortest} "
            f"tokens; set data.max_length to {_fitting(attempts)} to keep 99 % of the examples"
        )


def _refuse_many(data: DataConfig, rows: int, dropped: Sequence[Dropped], attempts: Sequence[_Attempt]) -> None:
    """More than a tenth left out is more often a mistake than a wish."""
    count = sum(item.count for item in dropped)
    if data.drop_bad_rows or count * MOST_BAD <= rows:
        return
    reasons = [f"  {item.count} × {item.reason}: {places(item)}" for item in dropped]
    fitting = _fitting(attempts)
    raised = f"raise data.max_length to {fitting}, which 99 % of the dialogs keep to"
    mending = raised if fitting > data.max_length else "mend them"
    advice = f"{mending[0].upper()}{mending[1:]}, or leave them out with data.drop_bad_rows: true"
    summary = f"{count:,} of {rows:,} rows would be left out, more than a tenth"
    raise UsageError("\n".join([summary, *reasons, advice]))


def _fitting(attempts: Sequence[_Attempt]) -> int:
    """The length that 99 % of the examples keep to."""
    lengths = [longest(result) for _, result in attempts if isinstance(result, EncodedDialog)]
    return int(np.percentile(lengths, 99, method="inverted_cdf"))


def _prepare_texts(
    data: DataConfig,
    loaded: Loaded,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    template: ChatTemplate | None,
) -> Prepared:
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stops = template.stop_ids if template is not None else tuple(dict.fromkeys([*stop_ids, *eos]))
    if not stops:
        raise UsageError("this model names no end-of-text token (eos), so documents could not be told apart")
    sides = [
        _window_documents(
            [example for example in side if isinstance(example, Text)], data, tokenizer, [*eos, *stops][0]
        )
        for side in (loaded.train, loaded.validation)
    ]
    (train, train_examples, train_ends), (validation, validation_examples, validation_ends) = sides
    spelling = special_spelling(tokenizer)
    return Prepared(
        train=train,
        validation=validation,
        loaded=loaded,
        dropped=loaded.dropped,
        template=template,
        train_examples=train_examples,
        validation_examples=validation_examples,
        stop_ids=stops,
        stop_proof=prove_documents_end(train, train_ends, stops)
        + prove_documents_end(validation, validation_ends, stops),
        spells_special=[
            text.place
            for side in (loaded.train, loaded.validation)
            for text in side
            if isinstance(text, Text) and spelling.search(text.text)
        ],
        cut_documents=sum(int(np.count_nonzero(np.diff(ends, prepend=-1) > 1)) for *_, ends in sides),
    )


def _window_documents(
    texts: Sequence[Text], data: DataConfig, tokenizer: "PreTrainedTokenizerBase", eos_id: int
) -> tuple[EncodedSet, list[Example], list[int]]:
    """The windows of all documents, the document of each window, and the index of each document's last window."""
    encoded: list[Encoded] = []
    examples: list[Example] = []
    ends: list[int] = []
    documents = encode_texts([text.text for text in texts], tokenizer, eos_id, data.max_length)
    for text, windows in zip(texts, documents, strict=True):
        encoded.extend(windows)
        examples.extend([text] * len(windows))
        ends.append(len(encoded) - 1)
    return EncodedSet.build(encoded, [example.place for example in examples]), examples, ends
