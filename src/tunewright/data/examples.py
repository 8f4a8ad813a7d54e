"""Plain data that flows from files to the forest: messages, the five kinds of example, and encoded sequences."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import numpy as np

from tunewright.data.mix import Part

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from; `line` is the 1-based line of a text file, or row of a sheet or table.

    `row` is which one of that line it is: JSON may have all of its rows on one.
    """

    file: str
    line: int
    row: int = 1

    @property
    def at(self) -> str:
        """`7`, or `7#3` for the third row of that line."""
        return f"{self.line}#{self.row}" if self.row > 1 else str(self.line)

    def __str__(self) -> str:
        return f"{self.file}:{self.at}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An assistant's call of a tool; `arguments` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    `weight` is the loss weight of an assistant turn's tokens, 0 for one that is not trained. `reasoning` is what a
    thinking model writes before its answer; it is kept apart so that the template places it. A `tool` message holds
    what a tool returned, `name` says which.
    """

    role: Role
    content: str
    weight: float = 1.0
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None

    @property
    def train(self) -> bool:
        """Whether loss is put on this turn."""
        return self.role == "assistant" and self.weight > 0


def opening(system: str | None) -> tuple[Message, ...]:
    """How a dialog begins: with the system prompt, where there is one."""
    return (Message("system", system),) if system else ()


@dataclass(frozen=True, slots=True)
class Dialog:
    """A supervised example: optional system message, then turns of which the last is the assistant's.

    `tools` is a JSON list of the tools the assistant may call, as text, or None.
    """

    messages: tuple[Message, ...]
    place: Place
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A pre-training example."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt (ends with a user or tool turn) with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    place: Place
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt with one answer that is known to be good or bad (KTO)."""

    prompt: tuple[Message, ...]
    answer: Message
    good: bool
    place: Place
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without an answer, for reinforcement learning."""

    messages: tuple[Message, ...]
    place: Place
    tools: str | None = None


Example = Dialog | Text | Preference | Labelled | Prompt


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sequence. `input_ids` int32 [n]; `weights` float32 [n], the weight of predicting token i (0 = masked)."""

    input_ids: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


class EncodedSet(ABC):
    """Many sequences, in memory or in a store on disk."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Encoded: ...

    @property
    @abstractmethod
    def places(self) -> Sequence[Place]:
        """Where the row of each sequence stands."""

    @property
    def rows(self) -> np.ndarray:
        """Of each sequence the number of the row it comes from, int64 [len]; a row may give several, one by one."""
        return np.arange(len(self))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Stretches of it that share an epoch by weights; all of it in one unless something else is wished."""
        return (Part(len(self)),)

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """Tokens per sequence, int64 [len]."""

    @property
    @abstractmethod
    def supervised_tokens(self) -> int:
        """Tokens with a weight."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that is trained on, in order."""

    @staticmethod
    def build(items: Iterable[Encoded], places: Sequence[Place]) -> "FlatSet":
        """A set in memory."""
        items = list(items)
        return FlatSet(
            input_ids=np.concatenate([i.input_ids for i in items]) if items else np.zeros(0, np.int32),
            weights=np.concatenate([i.weights for i in items]) if items else np.zeros(0, np.float32),
            offsets=np.cumsum([0, *map(len, items)], dtype=np.int64),
            places=places,
        )


@dataclass(slots=True)
class FlatSet(EncodedSet):
    """Sequences in memory, one behind the other.

    `input_ids` int32 [total], `weights` float32 [total], `offsets` int64 [len + 1].
    """

    input_ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    places: Sequence[Place] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Encoded:
        start, end = self.offsets[index], self.offsets[index + 1]
        return Encoded(self.input_ids[start:end], self.weights[start:end])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))

    @property
    def digest(self) -> str:
        digest = sha256()
        for array in (self.input_ids, self.weights, self.offsets):
            digest.update(array.tobytes())
        return digest.hexdigest()
