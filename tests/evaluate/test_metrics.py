"""Every metric against its definition written out the slow way."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.evaluate.metrics import (
    DISTINCT_BUDGET,
    answer_limit,
    distinct,
    evaluate_loss,
    evaluate_replies,
    length_quantiles,
    loop_period,
    seq_rep,
)
from tunewright.forest.score import Scores


def brute_force_loop(ids: list[int]) -> int | None:
    """Try every block and every number of repeats, building the tail that a loop would have."""
    for period in range(1, 65):
        block = ids[len(ids) - period :]
        for repeats in range(3, len(ids) // period + 1):
            tail = block * repeats
            if len(tail) >= 12 and len(block) == period and ids[len(ids) - len(tail) :] == tail:
                return period
    return None


replies = st.lists(st.integers(0, 3), max_size=60)


@given(replies)
@settings(max_examples=300)
def test_loop_period_equals_brute_force_on_noise(ids: list[int]) -> None:
    assert loop_period(ids) == brute_force_loop(ids)


@given(
    start=replies,
    block=st.lists(st.integers(0, 5), min_size=1, max_size=70),
    repeats=st.integers(1, 14),
    cut=st.integers(0, 69),
)
@settings(max_examples=300)
def test_loop_period_equals_brute_force_on_loops(start: list[int], block: list[int], repeats: int, cut: int) -> None:
    ids = start + block * repeats + block[: cut % len(block)]
    found = loop_period(ids)
    assert found == brute_force_loop(ids)
    if repeats >= 3 and repeats * len(block) >= 12 and len(block) <= 64:
        assert found in range(1, len(block) + 1)


@pytest.mark.parametrize(("period", "repeats"), [(1, 12), (2, 6), (3, 4), (4, 3), (64, 3)])
def test_fewest_repeats_that_are_a_loop(period: int, repeats: int) -> None:
    block = list(range(100, 100 + period))
    assert loop_period([1, 2, *block * repeats]) == period
    assert loop_period([1, 2, *block * (repeats - 1)]) is None


def test_no_loop() -> None:
    assert loop_period([]) is None
    assert loop_period([7] * 40 + [8]) is None  # it got out again
    assert loop_period(list(range(65)) * 3) is None  # longer than the longest period looked for


@given(replies, st.integers(1, 5))
def test_seq_rep(ids: list[int], n: int) -> None:
    grams = [tuple(ids[i : i + n]) for i in range(len(ids)) if i + n <= len(ids)]
    assert seq_rep(ids, n) == (1 - len(set(grams)) / len(grams) if grams else 0.0)


def test_seq_rep_by_hand() -> None:
    assert seq_rep([1, 2, 3, 4, 1, 2, 3, 4], 4) == pytest.approx(1 - 4 / 5)
    assert seq_rep([1, 2, 3], 4) == 0.0


def test_distinct_looks_at_exactly_the_budget() -> None:
    assert distinct([[1, 2], [2, 1], [9, 9]], 1, budget=4) == pytest.approx(2 / 4)
    assert distinct([[1, 2], [2, 1]], 2, budget=4) == pytest.approx(1.0)  # no bigram across replies
    assert distinct([[1, 1, 1, 1], [5]], 2, budget=4) == pytest.approx(1 / 3)
    assert distinct([[1, 2, 3]], 1, budget=4) is None
    longer = [[1, 2, 3, 4]] * 200
    assert distinct(longer, 1) == distinct(longer[: DISTINCT_BUDGET // 4], 1)


def scored(nll: list[float], targets: list[int], correct: list[bool], weights: list[float] | None = None) -> Scores:
    """Scored tokens of one sequence; each of weight 1 unless said."""
    return Scores(
        nll=np.array(nll, dtype=np.float64),
        correct=np.array(correct, dtype=bool),
        weights=np.ones(len(nll)) if weights is None else np.array(weights),
        sequence=np.zeros(len(nll), dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
    )


def test_loss_weighs_tokens_not_batches() -> None:
    metrics = evaluate_loss(scored([2.0, 4.0, 0.5], [5, 6, 1], [False, False, True]), stop_ids=(1, 2), text_bytes=10)
    assert metrics.validation_loss == pytest.approx(6.5 / 3)
    assert metrics.perplexity == pytest.approx(math.exp(6.5 / 3))
    assert metrics.bits_per_byte == pytest.approx(6.0 / (math.log(2) * 10))
    assert metrics.supervised_tokens == 3
    assert metrics.stop_probability_median == pytest.approx(math.exp(-0.5))
    assert metrics.stop_argmax_share == 1.0


def test_loss_weighs_tokens_as_training_does() -> None:
    tokens = scored([2.0, 4.0, 0.5], [5, 6, 1], [False, False, True], weights=[1.0, 0.25, 0.25])
    metrics = evaluate_loss(tokens, stop_ids=(1, 2), text_bytes=10)
    assert metrics.validation_loss == pytest.approx((2.0 + 1.0 + 0.125) / 1.5)
    assert metrics.perplexity == pytest.approx(math.exp(3.125 / 1.5))
    assert metrics.bits_per_byte == pytest.approx(6.0 / (math.log(2) * 10)), "every byte of the text counts"
    assert metrics.supervised_tokens == 3


def test_stop_probability_is_a_median_over_answers() -> None:
    tokens = scored((-np.log([0.9, 0.2, 0.6])).tolist(), [1, 2, 1], [True, False, False])
    metrics = evaluate_loss(tokens, (1, 2))
    assert metrics.stop_probability_median == pytest.approx(0.6)
    assert metrics.stop_argmax_share == pytest.approx(1 / 3)
    assert metrics.bits_per_byte is None


def test_loss_without_stop_tokens_and_without_tokens() -> None:
    metrics = evaluate_loss(scored([1000.0], [5], [False]), (1,), text_bytes=1)
    assert (metrics.stop_probability_median, metrics.stop_argmax_share) == (None, None)
    assert metrics.perplexity == math.inf
    with pytest.raises(ValueError, match="no supervised token"):
        evaluate_loss(scored([], [], []), (1,))


def test_reply_rates() -> None:
    metrics = evaluate_replies([[1, 2, 3, 4, 5], [7] * 30, [1, 2] * 9, []], [True, False, False, True])
    assert (metrics.prompts, metrics.stops, metrics.loops) == (4, 2, 2)
    assert (metrics.stop_rate, metrics.truncation_rate, metrics.loop_rate) == (0.5, 0.5, 0.5)
    assert metrics.seq_rep_4_mean == pytest.approx((0 + 26 / 27 + 13 / 15 + 0) / 4)
    assert metrics.distinct_1 is None
    assert metrics.reply_tokens["max"] == 30
    with pytest.raises(ValueError, match="no reply"):
        evaluate_replies([], [])


def test_length_quantiles() -> None:
    assert length_quantiles([[0] * n for n in range(101)]) == {"p5": 5, "p50": 50, "p95": 95, "max": 100}


def test_answer_limit() -> None:
    assert answer_limit([10] * 50) == 40
    assert answer_limit([3]) == 32
    assert answer_limit([400]) == 512
