"""Which examples make which step: decided by (seed, epoch, index) alone.

Epochs are shuffled independently and laid end to end; step s takes the examples
[s·batch, (s+1)·batch) of that line. So a step can be named without running the ones before it,
nothing is dropped, and resuming needs the step number only.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tunewright.config.schema import TrainConfig
from tunewright.data.examples import EncodedSet
from tunewright.data.mix import Part, epoch_order, epoch_size


@dataclass(frozen=True, slots=True)
class Sampler:
    """Order of training over `num_examples` examples for `epochs` passes, which may be fractional.

    With `parts` an epoch takes from each as data/mix.py says, `num_examples` in all.
    `max_steps`, where it is set, decides alone: so many whole steps, over a part of an epoch or over many.
    """

    num_examples: int
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None
    parts: tuple[Part, ...] = ()

    @classmethod
    def over(cls, encoded: EncodedSet, settings: TrainConfig) -> "Sampler":
        """The order in which a run with these settings trains on a set."""
        counts = (epoch_size(encoded.parts, settings.seed), settings.batch_size, settings.epochs)
        return cls(*counts, settings.seed, settings.max_steps, encoded.parts)

    @property
    def total_samples(self) -> int:
        if self.max_steps is not None:
            return self.max_steps * self.batch_size
        return max(1, round(self.num_examples * self.epochs))

    @property
    def total_steps(self) -> int:
        return math.ceil(self.total_samples / self.batch_size)

    def step(self, step: int) -> list[int]:
        """Example indices of the 0-based `step`; the last one may be smaller."""
        first = step * self.batch_size
        last = min(first + self.batch_size, self.total_samples)
        indices: list[int] = []
        for epoch in range(first // self.num_examples, -(-last // self.num_examples)):
            order = self._epoch(epoch)
            begin = max(first - epoch * self.num_examples, 0)
            indices.extend(order[begin : last - epoch * self.num_examples].tolist())
        return indices

    def step_totals(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` (one for each example) over the examples of every step, [total_steps]."""
        epochs = range(math.ceil(self.total_samples / self.num_examples))
        order = np.concatenate([self._epoch(epoch) for epoch in epochs])[: self.total_samples]
        totals: np.ndarray = np.add.reduceat(values[order], np.arange(0, self.total_samples, self.batch_size))
        return totals

    def epoch_of(self, step: int) -> float:
        """Passes over the data that are done once `step` steps are."""
        return min(step * self.batch_size, self.total_samples) / self.num_examples

    def _epoch(self, epoch: int) -> np.ndarray:
        return _order(self.parts or (Part(self.num_examples),), self.seed, epoch)


@lru_cache(maxsize=2)  # a step may lie in two epochs; a million examples take long to shuffle
def _order(parts: tuple[Part, ...], seed: int, epoch: int) -> np.ndarray:
    order = epoch_order(parts, seed, epoch)
    order.flags.writeable = False
    return order
