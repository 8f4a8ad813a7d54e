"""A tokenizer that has the tokens of all templates of our table, random dialogs, and what their encodings train."""

from collections.abc import Iterable, Iterator

import numpy as np
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tokenizers import tiny_tokenizer
from tunewright.data.examples import Dialog, Encoded, Message, Place, ToolCall
from tunewright.data.template import ChatTemplate, EncodedDialog
from tunewright.data.template_table import table

HERE = Place("test.json", 1)
TOOLS = '[{"name": "clock", "description": "灯"}]'


def _tokenizer() -> PreTrainedTokenizerFast:
    """Thoughts are written with ordinary tokens."""
    tokenizer = tiny_tokenizer("chatml")
    spellings = dict.fromkeys(token for entry in table().values() for token in entry.tokens)
    tokenizer.add_tokens([AddedToken(token, special="think" not in token, normalized=False) for token in spellings])
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer


TOKENIZER = _tokenizer()
TEMPLATES = {name: ChatTemplate(TOKENIZER, entry.source, ()) for name, entry in table().items()}

contents = st.text(alphabet="ab e答灯😀\n\t 1'", max_size=10)


@st.composite
def dialogs(draw: st.DrawFn, most: int = 3) -> Dialog:
    """Up to so many questions with their answers, some with calls of a tool, thoughts, and weights."""
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, most))):
        messages.append(Message("user", draw(contents)))
        if draw(st.sampled_from([False, False, True])):
            call = ToolCall("clock", '{"zone": "灯"}')
            messages.append(Message("assistant", draw(contents), tool_calls=(call,)))
            messages.append(Message("tool", draw(contents), name="clock"))
        thoughts = draw(st.none() | st.just("hm"))
        messages.append(Message("assistant", draw(contents), draw(st.sampled_from([0.0, 0.5, 1.0])), thoughts))
    return Dialog(tuple(messages), HERE, TOOLS if draw(st.booleans()) else None)


def attempt(template: ChatTemplate, dialog: Dialog) -> EncodedDialog:
    (result,) = template.attempt_many([dialog])
    assert isinstance(result, EncodedDialog), result
    return result


def stretches(sequences: Iterable[Encoded]) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """Each trained stretch: the ids up to its end, where it begins, its weight."""
    for sequence in sequences:
        edges = np.flatnonzero(np.diff(sequence.weights, prepend=0, append=0)).tolist()
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            yield tuple(sequence.input_ids[:end].tolist()), first, float(sequence.weights[first])


def plain(result: EncodedDialog) -> list[tuple[list[int], list[float]]]:
    """The sequences as lists, to be compared."""
    return [(sequence.input_ids.tolist(), sequence.weights.tolist()) for sequence in result.sequences]
