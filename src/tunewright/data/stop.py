"""The stop proof: nothing trains until its data show that the model can learn to stop.

It looks at the very numbers that will be trained on, not at the way they came about: wherever a trained stretch of
tokens ends, its last token must be one that generation stops at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.data.examples import Encoded, FlatSet, Place


@dataclass(frozen=True, slots=True)
class Failure:
    """A sequence that would teach the model to run on.

    `sequence` is its index in the set, `token` the index of the last token of that stretch.
    """

    place: Place
    encoded: Encoded
    sequence: int
    token: int


@dataclass(frozen=True, slots=True)
class StopProof:
    """What was found: `stretches` trained to an end, `failing` of them without a stop token there."""

    stretches: int
    failing: int
    first: Failure | None = None

    @property
    def holds(self) -> bool:
        return self.stretches > 0 and self.failing == 0

    def __add__(self, other: "StopProof") -> "StopProof":
        return StopProof(self.stretches + other.stretches, self.failing + other.failing, self.first or other.first)


def prove_answers_stop(encoded: FlatSet, stop_ids: Sequence[int]) -> StopProof:
    """Every trained stretch (a maximal run of tokens with weight) must end with a stop id."""
    trained = encoded.weights > 0
    goes_on = np.zeros(len(trained), bool)
    goes_on[:-1] = trained[1:]
    goes_on[encoded.offsets[1:] - 1] = False  # the next sequence is not this one's continuation
    return _judge(encoded, np.flatnonzero(trained & ~goes_on), stop_ids)


def prove_documents_end(encoded: FlatSet, last_windows: Sequence[int], stop_ids: Sequence[int]) -> StopProof:
    """Every document, given by the index of its last window, must end with a stop id that is trained."""
    ends = encoded.offsets[np.asarray(last_windows, dtype=np.int64) + 1] - 1
    return _judge(encoded, ends, stop_ids)


def _judge(encoded: FlatSet, ends: np.ndarray, stop_ids: Sequence[int]) -> StopProof:
    stops = np.isin(encoded.input_ids[ends], np.asarray(stop_ids, dtype=np.int64)) & (encoded.weights[ends] > 0)
    failing = ends[~stops]
    if len(failing) == 0:
        return StopProof(len(ends), 0)
    index = int(np.searchsorted(encoded.offsets, failing[0], side="right")) - 1
    first = Failure(encoded.places[index], encoded[index], index, int(failing[0] - encoded.offsets[index]))
    return StopProof(len(ends), len(failing), first)
