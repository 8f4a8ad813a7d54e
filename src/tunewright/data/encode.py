"""From files to what a run trains on: examples, through the chat template, to token ids with loss weights.

`prepare` is the whole way, taken once for the same data and settings: what comes of it is kept (see store.py). What
does not fit `data.max_length` is cut between turns (see cut.py) or, for pt, into windows; an answer that is too long
alone is left out, counted, and told with its place. Nothing is handed over before the stop proof holds.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config.schema import RunConfig, SourceConfig
from tunewright.data.account import Loaded, RowTally, refuse_too_much
from tunewright.data.examples import EncodedSet, Example
from tunewright.data.load import Source, find_sources, hash_files, read_sources
from tunewright.data.pack import Job
from tunewright.data.stop import Failure, StopProof
from tunewright.data.store import Store, open_store
from tunewright.data.template import ChatTemplate
from tunewright.data.template_source import template_source
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where the rows are is told by the sources; the rest is decided when the store is open.
OUTSIDE = {"registry", "use", "hub", "train", "validation", "template", "drop_bad_rows"}

CUT = {"sft": "cut between turns to fit data.max_length", "pt": "cut into windows of data.max_length"}


@dataclass
class Prepared:
    """What a run trains and validates on; `…_examples` run parallel to the sets.

    All four are read from disk as they are looked at. `dropped` is everything left out, by the reader and here.
    `straddling` counts tokens that begin before an answer and end in it (masked), `spells_special` are the rows whose
    text spells a special token, `cut` those that lost turns so that they fit, or for pt became several windows. For pt
    an example stands once per window, for sft once per sequence its template needs (mostly one). `template` is None
    where raw text is learnt and the tokenizer has none.
    """

    train: EncodedSet
    validation: EncodedSet
    loaded: Loaded
    dropped: list[RowTally]
    template: ChatTemplate | None
    train_examples: Sequence[Example]
    validation_examples: Sequence[Example]
    stop_ids: tuple[int, ...]
    stop_proof: StopProof
    straddling: int
    spells_special: RowTally
    cut: RowTally


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
    data = config.data
    job, template = make_job(config, tokenizer, stop_ids, base)
    sources = find_sources(data, base)
    sha256 = hash_files([file.path for one in sources for file in one.files])
    store = open_store(_key(job, sources, sha256), read_sources(sources, job.stage), job)
    account = store.account
    refuse_too_much(account, data.max_length, data.drop_bad_rows)
    size = None if isinstance(data.validation, SourceConfig) else data.validation
    held_out = store.held_out(size, config.train.seed)
    train, validation = store.sides(held_out, [source.config for source in sources if not source.held_out])
    if not len(train):
        raise UsageError("no training example is left: all that could be used are held out; lower data.validation")
    prepared = Prepared(
        train=train,
        validation=validation,
        loaded=account.loaded(sha256),
        dropped=account.dropped,
        template=template,
        train_examples=train.examples,
        validation_examples=validation.examples,
        stop_ids=job.stop_ids,
        stop_proof=_stop_proof(store),
        straddling=account.notes.straddling,
        spells_special=account.notes.spells_special,
        cut=replace(account.notes.cut, reason=CUT[job.stage]),
    )
    if require_stop and not prepared.stop_proof.holds:
        raise UsageError(stop_failure(prepared, tokenizer))
    return prepared


def make_job(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int], base: Path
) -> tuple[Job, ChatTemplate | None]:
    """How rows become tokens, and the template, None where raw text is learnt and the tokenizer has none.

    Raises UsageError where the template is unusable, and where nothing could tell the end of a text.
    """
    data, stage = config.data, config.method.stage
    source = template_source(tokenizer, data.template, base, config.model.name, data.reasoning)
    template = None if stage == "pt" and source is None else ChatTemplate(tokenizer, source, stop_ids, data.reasoning)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stops = template.stop_ids if template is not None else tuple(dict.fromkeys([*stop_ids, *eos]))
    if not stops:
        raise UsageError("this model names no end-of-text token (eos), so documents could not be told apart")
    return Job(data, stage, tokenizer, source, stops, [*eos, *stops][0]), template


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


def _stop_proof(store: Store) -> StopProof:
    """The proof made while the store was built, over everything in it."""
    ends = store.account.ends
    if ends.first is None:
        return StopProof(ends.stretches, ends.failing)
    sequence, token = ends.first
    place = store.place(int(store.sequences["example"][sequence]))
    return StopProof(ends.stretches, ends.failing, Failure(place, store.encoded(sequence), sequence, token))


def _key(job: Job, sources: Sequence[Source], sha256: str) -> str:
    """The name of the store that holds what comes of these sources: a hash of everything that decides it."""
    settings = job.data.model_dump(mode="json", exclude=OUTSIDE)
    # Names and sizes of files too: places name them, and their bytes are hashed one after another.
    read = [
        (
            source.config.model_dump(mode="json", exclude={"weight", "num_samples"}),
            source.held_out,
            [(file.name, file.path.stat().st_size) for file in source.files],
        )
        for source in sources
    ]
    facts = [
        sha256,
        read,
        settings,
        job.stage,
        job.template,
        job.stop_ids,
        job.end_id,
        _tokenizer(job.tokenizer),
        _code(),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Everything a tokenizer does, as text."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, tokenizer.name_or_path, tokenizer.get_vocab()], sort_keys=True)
    whole: str = tokenizer.backend_tokenizer.to_str()
    # Its head is how texts were cut and padded last, which is said anew for each call.
    return whole[whole.index('"added_tokens"') :] + json.dumps(tokenizer.special_tokens_map, default=str)


@cache
def _code() -> str:
    """The code that fills a store: this package's, and the versions of those it calls."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for name in ("jinja2", "tokenizers", "transformers"):
        digest.update(version(name).encode())
    return digest.hexdigest()
