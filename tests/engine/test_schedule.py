"""Learning rates by step: warm-up, then the schedule, as in the formula."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.engine.schedule import learning_rate_factor

SCHEDULES = ["cosine", "linear", "constant"]


def factors(total: int, warmup: float, schedule: str) -> list[float]:
    return [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]


@given(st.integers(1, 300), st.floats(0, 0.99), st.sampled_from(SCHEDULES))
def test_rises_to_the_peak_once_and_never_leaves_its_bounds(total: int, warmup: float, schedule: str) -> None:
    found = factors(total, warmup, schedule)
    assert all(0 < factor <= 1 for factor in found)  # no step is wasted on a rate of zero
    assert max(found) == 1
    peak = found.index(1)
    assert all(a < b for a, b in pairwise(found[: peak + 1]))
    assert all(a >= b for a, b in pairwise(found[peak:]))


def test_warm_up_is_linear_over_its_share() -> None:
    assert factors(10, 0.4, "constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert factors(100, 0.03, "constant")[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_shapes_after_warm_up() -> None:
    assert factors(8, 0, "cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    assert factors(8, 0, "linear") == pytest.approx([1 - step / 8 for step in range(8)])
    assert factors(10, 0.2, "cosine")[2] == 1  # warm-up ends at the peak, where the cosine begins
    assert learning_rate_factor(8, 8, 0, "cosine") == pytest.approx(0)
    assert learning_rate_factor(8, 8, 0, "linear") == 0


def test_a_single_step_runs_at_the_full_rate() -> None:
    for schedule in SCHEDULES:
        assert factors(1, 0.03, schedule) == factors(1, 0, schedule) == [1]
