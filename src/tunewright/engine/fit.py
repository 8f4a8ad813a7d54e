"""Which forests are computed at once, and how many layers are computed again: the quickest pair that fits.

Smaller forests share fewer prefixes, and each costs something of its own; a layer that is computed again in the
backward keeps only its input and costs its forward once more. Where all fits in one forest, neither is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tunewright.data.examples import Encoded
from tunewright.engine.activations import DecoderMemory, StepMemory
from tunewright.forest.build import distinct_tokens, group_by_budget

# What one more forest costs, in tokens: products of fewer rows, and the operations around them. Measured with
# SmolLM2-135M on a CPU, a step in 1 to 11 forests.
FOREST_COST = 100

Recompute = Literal["auto", "off", "full"] | int


@dataclass(frozen=True, slots=True)
class Flops:
    """Of a step's matrix products: `factor` for each weight of `body` and distinct token, of `head` and loss row.

    Forward and the gradient of the input make a factor of 4, the weight's own gradient one of 6.
    """

    factor: int
    body: int
    head: int
    loss_rows: float

    def step(self, tokens: float) -> float:
        return self.factor * (self.body * tokens + self.head * self.loss_rows)

    def again(self, tokens: float, share: float) -> float:
        """What the forward of this share of the layers costs once more."""
        return 2 * self.body * tokens * share


@dataclass(frozen=True, slots=True)
class Choice:
    """`tokens` computed at once at most, of the `fitting` that fit with `recomputed` layers computed again.

    A step then has so many distinct `rows` in so many `forests`, on average; `cost` compares choices, in FLOPs.
    """

    tokens: int
    recomputed: int
    fitting: int
    rows: float
    forests: float
    flops: float
    again_flops: float
    cost: float


@dataclass
class Fit:
    """What a run takes and may take, in bytes.

    `fixed` are process, weights, gradients and optimizer, `head` the output head's, `memory` the decoder's for `most`
    tokens, the largest step's; `longest` is the longest example, and `steps` are some of the run's.
    """

    fixed: int
    head: int
    memory: DecoderMemory
    most: int
    longest: int
    budget: float
    flops: Flops
    steps: Sequence[list[Encoded]]
    _computed: dict[int, tuple[float, float]] = field(default_factory=dict)

    def at_once(self, tokens: int) -> int:
        """How many of `tokens` a forest really has at most."""
        return min(tokens, max(self.most, self.longest))

    def activations(self, tokens: int, recomputed: int) -> int:
        return self.memory.recomputing(recomputed).kept * tokens // self.most

    def peak(self, tokens: int, recomputed: int) -> int:
        step = self.memory.recomputing(recomputed)
        forward, backward = (count * tokens // self.most for count in (step.forward, step.backward))
        return self.fixed + max(self.head + step.narrowed_forward + forward, step.narrowed_backward + backward)

    def fitting(self, recomputed: int) -> int:
        """The most tokens at once whose peak is within the budget; less than one where nothing fits."""
        step: StepMemory = self.memory.recomputing(recomputed)
        left = self.budget - self.fixed
        forward, backward = left - self.head - step.narrowed_forward, left - step.narrowed_backward
        return int(self.most * min(forward / step.forward, backward / step.backward))

    def quickest(self, recompute: Recompute, forest_tokens: int | None) -> Choice | None:
        """The choice of least cost among those that fit and are as asked; None where there is none."""
        best: Choice | None = None
        for recomputed in range(self.memory.layers + 1) if recompute == "auto" else [self.count(recompute)]:
            choice = self.choice(recomputed, forest_tokens)
            if self.at_once(choice.tokens) > choice.fitting:
                continue
            if best is None or choice.cost < best.cost:
                best = choice
            if forest_tokens is not None or choice.tokens >= self.most:
                break  # more layers would only cost more
        return best

    def choice(self, recomputed: int, forest_tokens: int | None) -> Choice:
        """So many layers computed again, and forests as large as asked, or as fit; whether they do is to be seen."""
        fitting = self.fitting(recomputed)
        tokens = max(self.longest, forest_tokens or min(fitting, int(self.most * 1.25) + self.longest))
        rows, forests = self._forests(self.at_once(tokens))
        share = recomputed / max(1, self.memory.layers)
        flops, again = self.flops.step(rows), self.flops.again(rows, share)
        around = FOREST_COST * (forests - 1) * self.flops.body * (self.flops.factor + 2 * share)
        return Choice(tokens, recomputed, fitting, rows, forests, flops + again, again, flops + again + around)

    def count(self, recompute: Recompute) -> int:
        """Number of layers that a setting other than auto means."""
        return recompute if isinstance(recompute, int) else self.memory.layers if recompute == "full" else 0

    def _forests(self, tokens: int) -> tuple[float, float]:
        """Distinct tokens of a step and its forests, on average, where forests have at most `tokens`."""
        if tokens not in self._computed:
            parts = [[[step[i] for i in group] for group in group_by_budget(step, tokens)] for step in self.steps]
            rows = float(np.mean([sum(map(distinct_tokens, groups)) for groups in parts]))
            self._computed[tokens] = rows, float(np.mean([len(groups) for groups in parts]))
        return self._computed[tokens]
