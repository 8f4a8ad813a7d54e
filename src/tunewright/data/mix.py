"""Which examples an epoch goes through when sources have weights: pure functions of (sizes, seed, epoch).

A source of n training examples with weight w gives round(w·n) of them to every epoch (one at least). They are dealt
from its examples, shuffled once and laid in a circle, each epoch where the one before stopped: an epoch has none twice
before it has all, and over several epochs all come equally often (give or take one). With `num_samples` a source gives
that many examples instead, the same in every epoch.

Only training examples are mixed, after validation examples were held out: repeating one never moves it over there.
With weights of 1 the order is that of a plain shuffle of all examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """The training examples of one source: how many there are, and how many an epoch takes."""

    size: int
    weight: float = 1.0
    num_samples: int | None = None

    @property
    def share(self) -> int:
        """Examples per epoch."""
        if not self.size:
            return 0
        return self.num_samples if self.num_samples is not None else max(1, round(self.weight * self.size))


def epoch_size(parts: Sequence[Part]) -> int:
    """Examples that one epoch goes through."""
    return sum(part.share for part in parts)


def epoch_order(parts: Sequence[Part], seed: int, epoch: int) -> np.ndarray:
    """Indices int64 [epoch_size] of the examples of an epoch, in the order of training.

    They count through the examples of all parts, laid end to end.
    """
    chosen = []
    begin = 0
    for number, part in enumerate(parts):
        chosen.append(begin + _drawn(part, number, seed, epoch))
        begin += part.size
    everything = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return everything[np.random.default_rng([seed, epoch]).permutation(len(everything))]


def _drawn(part: Part, number: int, seed: int, epoch: int) -> np.ndarray:
    """What one part gives to an epoch, ascending."""
    first = 0 if part.num_samples is not None else epoch * part.share
    circle = np.random.default_rng([seed, number, part.size]).permutation(part.size)
    return np.sort(circle[np.arange(first, first + part.share) % max(part.size, 1)])
