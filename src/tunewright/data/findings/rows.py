"""The examples of a run as the findings see them: one row after another, training first, then held out."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

import numpy as np

from tunewright.data.content import to_json
from tunewright.data.encode import Prepared
from tunewright.data.examples import Dialog, Encoded, EncodedSet, Example, Labelled, Message, Place, Preference, Text
from tunewright.data.findings.characters import classes_of

_MOST_ROWS, _MOST_CHARACTERS = 1000, 1 << 20  # of a batch: enough for numpy's speed, little memory
_LOOKED_AT = 1 << 20  # characters of a document; so many tell what the rest is like


@dataclass(frozen=True, slots=True)
class Row:
    """One example. `number` counts from 0 over both sides; `answers` are the trained ones; `content` hashes
    all of it, `asked` what stands before the last answer of a dialog; `sequences` is what is trained for it."""

    number: int
    held_out: bool
    place: Place
    question: str
    answers: tuple[str, ...]
    content: int
    asked: int
    sequences: Sequence[Encoded]

    @property
    def answer(self) -> str:
        return "\n".join(self.answers)

    @property
    def text(self) -> str:
        """For a person: question and answer."""
        return f"{self.question} → {self.answer}" if self.question else self.answer


@dataclass(frozen=True, slots=True, eq=False)
class Characters:
    """Many texts in flat arrays: `codes` uint32 and their class uint8 [total], `owner` int64 [total], the text each
    belongs to; `count` texts."""

    codes: np.ndarray
    classes: np.ndarray
    owner: np.ndarray
    count: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Characters":
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return cls(codes, classes_of(codes), np.repeat(np.arange(len(texts)), lengths), len(texts))


class Batch:
    """Up to a thousand rows, with their characters in flat arrays."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    @cached_property
    def questions(self) -> Characters:
        return Characters.of([row.question for row in self.rows])

    @cached_property
    def answers(self) -> Characters:
        return Characters.of([row.answer for row in self.rows])


class Rows:
    """All rows of prepared data; keeps 8 bytes of each, so that a few can be looked at again."""

    def __init__(self, prepared: Prepared) -> None:
        self._sides: list[tuple[EncodedSet, Sequence[Example]]] = [
            (prepared.train, prepared.train_examples),
            (prepared.validation, prepared.validation_examples),
        ]
        self._first = array("q")  # of each row: the number of its first sequence
        self.trained = 0  # rows of the training side, once passed

    def __len__(self) -> int:
        return len(self._first)

    def batches(self) -> Iterator[Batch]:
        """Every row once, in order."""
        batch: list[Row] = []
        characters = 0
        for row in chain(self._walk(0), self._walk(1)):
            batch.append(row)
            characters += len(row.question) + len(row.answer)
            if len(batch) == _MOST_ROWS or characters >= _MOST_CHARACTERS:
                yield Batch(batch)
                batch, characters = [], 0
        if batch:
            yield Batch(batch)

    def place(self, number: int) -> Place:
        side, index = self._locate(number)
        return self._sides[side][0].places[index]

    def again(self, number: int) -> Row:
        """A row once more, without its sequences."""
        side, index = self._locate(number)
        encoded, examples = self._sides[side]
        return _row(number, side == 1, encoded.places[index], examples[index], ())

    def _locate(self, number: int) -> tuple[int, int]:
        index = self._first[number]
        trained = len(self._sides[0][0])
        return (0, index) if index < trained else (1, index - trained)

    def _walk(self, side: int) -> Iterator[Row]:
        encoded, examples = self._sides[side]
        before = len(self._sides[0][0]) if side else 0
        windows: list[Encoded] = []
        first: Example | None = None
        rows = encoded.rows
        for index in range(len(encoded)):
            if first is None or rows[index] != rows[index - 1]:
                if first is not None:
                    yield self._remember(side, before + index - len(windows), first, windows)
                first, windows = examples[index], []
            windows.append(encoded[index])
        if first is not None:
            yield self._remember(side, before + len(encoded) - len(windows), first, windows)

    def _remember(self, side: int, sequence: int, example: Example, windows: Sequence[Encoded]) -> Row:
        number = len(self._first)
        self._first.append(sequence)
        if side == 0:
            self.trained += 1
        return _row(number, side == 1, example.place, example, windows)


def words(message: Message) -> str:
    """All that an assistant writes in a turn: reasoning, answer, calls of tools."""
    if message.reasoning is None and not message.tool_calls:
        return message.content
    calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
    return "\n".join(filter(None, [message.reasoning, message.content, *calls]))


def _row(number: int, held_out: bool, place: Place, example: Example, windows: Sequence[Encoded]) -> Row:
    prompt, answers = _parts(example)
    question = "\n".join(message.content for message in prompt if message.role in ("user", "tool"))
    whole = hash(to_json(example))
    asked = hash(prompt) if isinstance(example, Dialog) else whole
    return Row(number, held_out, place, question, answers, whole, asked, windows)


def _parts(example: Example) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """What is given, and what is to be written."""
    match example:
        case Text():
            return (), (example.text[:_LOOKED_AT],)
        case Dialog():
            trained = tuple(words(message) for message in example.messages if message.train)
            return example.messages[:-1], trained
        case Preference():
            return example.prompt, (words(example.chosen), words(example.rejected))
        case Labelled():
            return example.prompt, (words(example.answer),)
        case _:
            return example.messages, ()


@lru_cache(maxsize=1)
def _lower() -> np.ndarray:
    """Lower case of each character of the basic plane that has one of the same length."""
    lower = [chr(code).lower() for code in range(0xD800)]
    return np.array([ord(text) if len(text) == 1 else code for code, text in enumerate(lower)], np.uint32)


def fold(codes: np.ndarray) -> np.ndarray:
    """Characters in lower case."""
    table = _lower()
    return np.where(codes < len(table), table[np.minimum(codes, len(table) - 1)], codes)
