"""Which examples an epoch goes through when sources have weights: pure functions of (sizes, seed, epoch).

What is trained on are sequences; mostly an example is one, but some templates, and long raw texts, need several. A
source of n training sequences with weight w gives round(w·n) of them to every epoch (one at least). They are dealt from
its examples, shuffled once and laid in a circle with their sequences side by side, each epoch where the one before
stopped: an epoch has none twice before it has all, and over several epochs all come equally often (give or take one).
With `num_samples` a source gives all sequences of that many examples instead, the same in every epoch.

Only training examples are mixed, after validation examples were held out: repeating one never moves it over there.
With weights of 1 the order is that of a plain shuffle of all sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """The training sequences of one source: how many there are, and what an epoch takes.

    `owners` are the bytes of an int32 for each sequence, the number of its example, in rising order; empty where each
    is an example of its own.
    """

    size: int
    weight: float = 1.0
    num_samples: int | None = None
    owners: bytes = b""

    def share(self, number: int, seed: int) -> int:
        """Sequences per epoch, where this is part `number`."""
        if not self.size:
            return 0
        if self.num_samples is None:
            return max(1, round(self.weight * self.size))
        return len(_drawn(self, number, seed, 0)) if self.owners else self.num_samples


def epoch_size(parts: Sequence[Part], seed: int) -> int:
    """Sequences that one epoch goes through."""
    return sum(part.share(number, seed) for number, part in enumerate(parts))


def epoch_order(parts: Sequence[Part], seed: int, epoch: int) -> np.ndarray:
    """Indices int64 [epoch_size] of the sequences of an epoch, in the order of training.

    They count through the sequences of all parts, laid end to end.
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
    owners = np.frombuffer(part.owners, np.int32) if part.owners else np.arange(part.size)
    examples, begins, counts = np.unique(owners, return_index=True, return_counts=True)
    circle = np.random.default_rng([seed, number, part.size]).permutation(len(examples))
    if part.num_samples is not None:
        circle = circle[np.arange(part.num_samples if part.size else 0) % max(len(examples), 1)]
    lengths = counts[circle]
    ends = np.cumsum(lengths)
    sequences = np.repeat(begins[circle] - ends + lengths, lengths) + np.arange(lengths.sum())
    if part.num_samples is None:
        share = part.share(number, seed)
        sequences = sequences[np.arange(epoch * share, (epoch + 1) * share) % max(part.size, 1)]
    return np.sort(sequences)
