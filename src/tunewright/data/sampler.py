"""Which examples make which step: decided by (seed, epoch, index) alone.

Epochs are shuffled independently and laid end to end; step s takes the examples
[s·batch, (s+1)·batch) of that line. So a step can be named without running the ones before it,
nothing is dropped, and resuming needs the step number only.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sampler:
    """Order of training over `num_examples` examples for `epochs` passes, which may be fractional.

    `max_steps`, where it is set, decides alone: so many whole steps, over a part of an epoch or over many.
    """

    num_examples: int
    batch_size: int
    epochs: float
    seed: int
    max_steps: int | None = None

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
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
