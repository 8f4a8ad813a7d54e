"""Answers that teach something unwanted: hardly anything, the same thing over and over, or to stop too early.

And answers that teach nothing at all: the worse ones of ranked rows.
"""

from collections.abc import Sequence

import numpy as np

from tunewright.data.account import Loaded
from tunewright.data.findings.characters import DIGIT
from tunewright.data.findings.found import Found, Tally, are, count_of
from tunewright.data.findings.rows import Batch, Characters, Row
from tunewright.data.loops import loop_period

_SHORT = 16  # characters up to which an answer is searched for a letter
_GRAM = 4
_SUSPICIOUS = 5  # repeated 4-grams of tokens, from which the text itself is looked at
_PIECE = 12  # bytes: two words of an alphabet, four Chinese characters
_LONG_ENOUGH = 48  # bytes of an answer from which repeated pieces are counted


class ShortAnswers:
    """Answers of one character, or without a letter or digit."""

    def __init__(self) -> None:
        self._short = Tally()
        self._wordless = Tally()

    def add(self, batch: Batch) -> None:
        for row in batch.rows:
            for answer in row.answers:
                if len(answer) <= _SHORT or not answer.strip():
                    self._judge(row, answer.strip())

    def _judge(self, row: Row, answer: str) -> None:
        if len(answer) <= 1:
            self._short.add(row.place, row.text)
        elif not _has_words(answer):
            self._wordless.add(row.place, row.text)

    def result(self) -> list[Found]:
        found = []
        for name, tally, what in (
            ("short_answers", self._short, "one character or nothing"),
            ("wordless_answers", self._wordless, "without a letter or digit"),
        ):
            if tally.count:
                message = f"{count_of(tally.count, 'answer')} {are(tally.count)} {what}"
                advice = "such answers teach the model to say next to nothing; take the rows out unless that is meant"
                found.append(Found(name, "note", message, advice, tally.count, tally.first, tally.samples))
        return found or [Found("short_answers", "fine", "no answer is empty, one character or without a word")]


def _has_words(text: str) -> bool:
    classes = Characters.of([text]).classes
    return bool(((classes > 0) & (classes <= DIGIT)).any())


class RepeatingAnswers:
    """Answers that repeat themselves, and answers with a stop token before their end."""

    def __init__(self, stop_ids: Sequence[int]) -> None:
        self._stop_ids = np.array(sorted(stop_ids), np.int64)
        self._repeating = Tally()
        self._early = Tally()

    def add(self, batch: Batch) -> None:
        sequences = [encoded for row in batch.rows for encoded in row.sequences]
        if not sequences:
            return
        owner = np.repeat(np.arange(len(batch.rows)), [sum(map(len, row.sequences)) for row in batch.rows])
        ids = np.concatenate([encoded.input_ids for encoded in sequences])
        trained = np.concatenate([encoded.weights for encoded in sequences]) > 0
        goes_on = np.zeros(len(ids), bool)  # the next token is trained too, in the same sequence
        goes_on[:-1] = trained[:-1] & trained[1:]
        goes_on[np.cumsum([len(encoded) for encoded in sequences]) - 1] = False
        stops = np.isin(ids, self._stop_ids)
        for number in np.unique(owner[stops & goes_on]).tolist():
            self._early.add(batch.rows[number].place, batch.rows[number].text)
        spoken = trained & ~stops
        stretch = np.cumsum(~np.concatenate([[False], goes_on[:-1]]))[spoken]
        suspicious = owner[spoken][_repeated_grams(ids[spoken], stretch) >= _SUSPICIOUS]
        for number in np.unique(suspicious).tolist():
            if any(map(repeats_itself, batch.rows[number].answers)):
                self._repeating.add(batch.rows[number].place, batch.rows[number].answer)

    def result(self) -> list[Found]:
        repeating, early = self._repeating, self._early
        found = []
        if repeating.count:
            message = f"the {'answer' if repeating.count == 1 else 'answers'} of {count_of(repeating.count, 'row')} "
            message += "repeats itself" if repeating.count == 1 else "repeat themselves"
            advice = "a model trained on loops learns to loop; shorten or remove these rows"
            found.append(
                Found(
                    "repeating_answers", "warning", message, advice, repeating.count, repeating.first, repeating.samples
                )
            )
        else:
            found.append(Found("repeating_answers", "fine", "no answer repeats itself"))
        if early.count:
            have = "has" if early.count == 1 else "have"
            message = f"{count_of(early.count, 'row')} {have} a stop token inside an answer: generation would end there"
            advice = "take the stop token out of the answer's text, or use a template that stops at another token"
            found.append(Found("early_stops", "warning", message, advice, early.count, early.first, early.samples))
        else:
            found.append(Found("early_stops", "fine", "no stop token stands inside an answer"))
        return found


def look_at_ranks(loaded: Loaded, stage: str) -> list[Found]:
    """Rows with a better and a worse answer, where the stage learns the better one alone."""
    if stage != "sft" or not loaded.ranked:
        return []
    message = (
        f"{count_of(loaded.ranked, 'row')} {'ranks' if loaded.ranked == 1 else 'rank'} a better and a worse answer: "
        "method.stage sft learns the better one alone"
    )
    advice = "nothing is to be done where the better answers are worth copying; else take those rows out"
    return [Found("ranked_answers", "note", message, advice, loaded.ranked)]


def repeats_itself(answer: str) -> bool:
    """Whether an answer ends in a loop of characters, or more than half of its pieces of 12 bytes stood before.

    Characters and bytes, not tokens: where a tokenizer knows no Chinese, three laughs are a loop of nine tokens.
    """
    text = answer.strip()
    if loop_period(text) is not None:
        return True
    content = text.encode(errors="surrogatepass")
    pieces = len(content) - _PIECE + 1
    if len(content) < _LONG_ENOUGH:
        return False
    return 2 * len({content[begin : begin + _PIECE] for begin in range(pieces)}) < pieces


def _repeated_grams(ids: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """For each token how many 4-grams of its stretch stood in that stretch before, int64 [tokens]."""
    if len(ids) < _GRAM:
        return np.zeros(len(ids), np.int64)
    grams = (stretch[: 1 - _GRAM].astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    for offset in range(_GRAM):
        grams = (grams ^ ids[offset : len(ids) - _GRAM + 1 + offset].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        grams ^= grams >> np.uint64(29)
    inside = stretch[: 1 - _GRAM] == stretch[_GRAM - 1 :]
    first = stretch[: 1 - _GRAM][inside]
    order = np.argsort(grams[inside])
    ordered = grams[inside][order]
    repeated = first[order[1:]][ordered[1:] == ordered[:-1]]
    counts = np.bincount(repeated, minlength=int(stretch[-1]) + 1)
    return np.asarray(counts[stretch])
