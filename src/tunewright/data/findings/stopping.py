"""Whether template, tokenizer and stop tokens fit together: why tuned models run on, or answer another prompt.

The stop proof itself (every trained stretch ends with a stop token) is `data/stop.py`; here is what it rests on.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.encode import Prepared
from tunewright.data.examples import Dialog, Encoded, Message, Text
from tunewright.data.findings.found import Found, Tally, count_of
from tunewright.data.template import ChatTemplate, EncodedDialog
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS = 32  # rows whose prompt is made once more
# What looks like a control token, whatever the vocabulary: <|im_end|>, <｜User｜>, <start_of_turn>, </s>.
_MARKER = re.compile(r"<[|｜][^<>|｜\s]{1,60}[|｜]>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad)>")
_PROBE = (Message("system", "s"), Message("user", "q"), Message("assistant", "a"))


def look_at_stopping(
    prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", stated_eos: Sequence[int]
) -> list[Found]:
    """`stated_eos` are the ids by which the model's own files say that an answer ends."""
    found = [_padding(prepared, tokenizer), *_stated(prepared, tokenizer, stated_eos)]
    template = prepared.template
    if template is None or (prepared.train_examples and not isinstance(prepared.train_examples[0], Dialog)):
        return found
    return [*found, *_one_prompt(prepared, tokenizer, template), _markers(tokenizer, template), *_prompting(template)]


def _padding(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase") -> Found:
    """The classic: padding masked by its id, which is the stop token's, so that no answer ever ends."""
    pad = tokenizer.pad_token_id
    if pad is not None and pad in prepared.stop_ids:
        name = tokenizer.convert_ids_to_tokens(pad)
        return Found("padding", "fine", f"{name} pads and stops; padding is told by length, so the stop stays trained")
    return Found("padding", "fine", "padding is told by length, never by a token's id")


def _stated(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", stated_eos: Sequence[int]) -> list[Found]:
    names = {id: str(tokenizer.convert_ids_to_tokens(id)) for id in prepared.stop_ids if id < len(tokenizer)}
    unknown = [id for id in prepared.stop_ids if id >= len(tokenizer)]
    found = []
    if unknown:
        found.append(
            Found(
                "unknown_stop",
                "error",
                f"the model's files name the stop id {unknown[0]}, but the tokenizer has {len(tokenizer):,} tokens",
                "tokenizer and model are of different releases; fetch both again",
                len(unknown),
            )
        )
    turn_end = None if prepared.template is None else prepared.template.turn_end
    if turn_end is not None and stated_eos and turn_end not in stated_eos:
        stated = " ".join(names[id] for id in dict.fromkeys(stated_eos) if id in names)
        found.append(
            Found(
                "stop_tokens",
                "note",
                f"the model's files stop at {stated}, but the template ends answers with {names[turn_end]}",
                "tunewright stops at both and writes both into what it exports; other programs that read the base "
                "model's files would run on",
            )
        )
    else:
        found.append(Found("stop_tokens", "fine", f"answers stop at {' '.join(names.values())}"))
    return found


def _one_prompt(prepared: Prepared, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> list[Found]:
    """The prompt that chat makes must be, token for token, what stood before the answer in training."""
    other = Tally()
    looked = 0
    for example, encoded in _last_sequences(prepared, template):
        begin = _last_answer(encoded)
        if begin is None:
            continue
        looked += 1
        try:
            prompt = template.prompt_ids(example.messages[:-1], example.tools)
        except UsageError as error:
            other.add(example.place, str(error))
            continue
        if prompt != encoded.input_ids[:begin].tolist():
            seen = tokenizer.decode(encoded.input_ids[max(0, begin - 8) : begin].tolist())
            other.add(example.place, f"trained after {seen!r}, asked after {tokenizer.decode(prompt[-8:])!r}")
    if other.count:
        return [
            Found(
                "one_prompt",
                "warning",
                f"{other.count} of {looked} prompts have other tokens in chat than in training",
                "the first characters of the answer melt with the end of the prompt, or the template writes a turn "
                "differently once it is answered",
                other.count,
                other.first,
                other.samples,
            )
        ]
    same = f"chat asks with the very tokens that were trained ({looked} prompts made again)"
    return [Found("one_prompt", "fine", same)] if looked else []


def _last_sequences(prepared: Prepared, template: ChatTemplate) -> Iterator[tuple[Dialog, Encoded]]:
    """Of the first rows those whose last turn is trained, with the sequence it is trained in.

    Rows that lost turns are passed over: what is trained there is the answer of another turn.
    """
    ends = np.flatnonzero(np.diff(prepared.train.rows, append=-1))[:_PROMPTS].tolist()
    for index in ends:
        example, encoded = prepared.train_examples[index], prepared.train[index]
        if not isinstance(example, Dialog) or not example.messages[-1].train:
            continue
        (whole,) = template.attempt_many([example])
        if isinstance(whole, EncodedDialog) and np.array_equal(whole.sequences[-1].input_ids, encoded.input_ids):
            yield example, encoded


def _last_answer(encoded: Encoded) -> int | None:
    """Where the last trained stretch begins."""
    trained = encoded.weights > 0
    begins = np.flatnonzero(trained & ~np.concatenate([[False], trained[:-1]]))
    return int(begins[-1]) if len(begins) else None


def _markers(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> Found:
    """A template written for another tokenizer: its markers fall into pieces of text."""
    try:
        text = template.render(_PROBE)
    except UsageError:
        text = template.render(_PROBE[1:])  # takes no system prompt
    broken = [
        (marker, pieces)
        for marker in dict.fromkeys(_MARKER.findall(text))
        if (pieces := len(tokenizer(marker, add_special_tokens=False)["input_ids"])) > 1
    ]
    if not broken:
        return Found("markers", "fine", "every marker that the template writes is one token")
    marker, pieces = broken[0]
    return Found(
        "markers",
        "warning",
        f"the template writes {marker}, which this tokenizer has no token for: it becomes {pieces} pieces of text",
        "the template belongs to another model; take the model's own (data.template: auto) or one written for it",
        len(broken),
    )


def _prompting(template: ChatTemplate) -> list[Found]:
    found = []
    if template.prompt_is_silent:
        found.append(
            Found(
                "silent_prompt",
                "warning",
                "the chat template has no generation prompt, so the model must write the header of its answer itself",
                "add {% if add_generation_prompt %} with the header to the template",
            )
        )
    if "strftime_now" in template.source:
        found.append(
            Found(
                "date_in_prompt",
                "warning",
                "the chat template writes today's date into every prompt, so tomorrow's tokens will differ",
                "write the date as a fixed text into the template",
            )
        )
    return found


def look_at_spelling(prepared: Prepared) -> list[Found]:
    """What the template saw while it encoded: spelled special tokens, answers that melt with their prompt."""
    found = []
    spelling = prepared.spells_special
    if spelling.count and isinstance(prepared.train_examples[0], Text):
        found.append(
            Found(
                "special_tokens",
                "warning",
                f"the text of {count_of(spelling.count, 'row')} spells special tokens, which will be read as such",
                "take the markers out of the text, unless they are meant",
                spelling.count,
                spelling.first,
            )
        )
    elif spelling.count:
        found.append(
            Found(
                "special_tokens",
                "note",
                f"the text of {count_of(spelling.count, 'row')} spells special tokens; they are read as plain text, "
                "so none of them ends a turn or begins one",
                "nothing, if the text is about such markers; otherwise take them out",
                spelling.count,
                spelling.first,
            )
        )
    else:
        found.append(Found("special_tokens", "fine", "no text spells a special token"))
    if prepared.straddling:
        found.append(
            Found(
                "straddling",
                "warning",
                f"{prepared.straddling:,} × the first characters of an answer make one token with the end of the "
                "prompt; such a token is not trained",
                "begin answers without white space, or end the template's prompt with a token of its own",
                prepared.straddling,
            )
        )
    return found
