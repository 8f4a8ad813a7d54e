"""Which tokens of a rendered dialog are trained, and with what weight.

A token is trained when it lies wholly inside an answer and not behind the stop token that ends it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunewright.data.examples import Encoded
from tunewright.data.words import Tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """The characters [start, end) of `text` that the model must write; `text` is the dialog up to there."""

    text: str
    start: int
    end: int
    weight: float


class Weigher:
    """Turns answers, which are characters, into loss weights of tokens.

    `added` are the tokenizer's special and otherwise added tokens by id, `stops` the ids that end an answer.
    """

    def __init__(self, added: Mapping[int, str], stops: frozenset[int]) -> None:
        self._added = added
        self._stops = stops

    def within(self, whole: str, answer: Answer) -> Answer | None:
        """`answer` as it stands in `whole`, None where that goes on differently before the answer's stop token."""
        if whole.startswith(answer.text):
            return answer
        end = self._end_of_stop(answer)
        return replace(answer, text=answer.text[:end], end=end) if whole.startswith(answer.text[:end]) else None

    def _end_of_stop(self, answer: Answer) -> int:
        """One past the first stop token of the run of added tokens and whitespace that ends the answer."""
        text, position, end = answer.text, answer.end, answer.end
        while position > answer.start:
            before = max(answer.start, len(text[:position].rstrip()))
            id = next((id for id, token in self._added.items() if text.endswith(token, answer.start, before)), None)
            if id is None:
                break
            end = before if id in self._stops else end
            position = before - len(self._added[id])
        return end

    def weigh(self, text: str, answers: Sequence[Answer], tokens: Tokens) -> tuple[Encoded, int]:
        """The tokens of `text` with their weights, and how many begin before an answer and end inside it."""
        weights = np.zeros(len(tokens.ids), np.float32)
        straddling = 0
        for answer in answers:
            first, last = tokens.border(answer.start), tokens.border(answer.end)
            if first is None or last is None:
                first, last, count = _tokens_inside(tokens, answer.start, answer.end)
                straddling += count
            weights[first : self._stop_after(text, tokens, first, last)] = answer.weight
        return Encoded(tokens.ids, weights), straddling

    def _stop_after(self, text: str, tokens: Tokens, first: int, last: int) -> int:
        """One past the first stop token of the run of added tokens and whitespace that ends [first, last).

        `last` where there is none: then the stop proof fails.
        """
        stop = last
        for i in range(last - 1, first - 1, -1):
            id = int(tokens.ids[i])
            if id in self._stops:
                stop = i + 1
            elif id not in self._added and not text[tokens.spans[0, i] : tokens.spans[1, i]].isspace():
                break
        return stop


def _tokens_inside(tokens: Tokens, start: int, end: int) -> tuple[int, int, int]:
    """[first, last) of the tokens wholly inside the characters [start, end), and how many only end inside.

    Tokens of one character share its span, and some tokenizers trim a token's leading space from it: what no token
    claims belongs to the one after it. Both bounds then never fall, and bisection finds the tokens.
    """
    begins, ends = tokens.spans
    ends = np.maximum.accumulate(ends)
    begins = np.minimum(begins, np.concatenate([[0], ends])[:-1])
    first = int(np.searchsorted(begins, start))
    last = min(int(np.searchsorted(ends, end, side="right")), int(np.searchsorted(begins, end)))
    return first, last, int(np.count_nonzero(ends[:first] > start))
