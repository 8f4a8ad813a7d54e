"""Sources with weights: every epoch takes its share, over epochs nothing is left out, plain ones stay as they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.mix import Part, epoch_order, epoch_size
from tunewright.data.sampler import Sampler

parts = st.lists(st.builds(Part, st.integers(0, 30), st.floats(0.01, 4), st.none() | st.integers(1, 70)), max_size=4)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 99), st.integers(0, 5))
def test_without_weights_it_is_the_plain_shuffle(sizes: list[int], seed: int, epoch: int) -> None:
    total = sum(sizes)
    order = epoch_order([Part(size) for size in sizes], seed, epoch)
    assert epoch_size([Part(size) for size in sizes], seed) == total
    if total:
        sampler = Sampler(num_examples=total, batch_size=total, epochs=epoch + 1, seed=seed)
        assert order.tolist() == sampler.step(epoch)


@given(parts, st.integers(0, 99), st.integers(0, 5))
def test_every_part_gives_its_share(mixed: list[Part], seed: int, epoch: int) -> None:
    order = epoch_order(mixed, seed, epoch)
    assert len(order) == epoch_size(mixed, seed)
    begin = 0
    for number, part in enumerate(mixed):
        counts = np.bincount(order, minlength=begin + part.size)[begin : begin + part.size]
        assert counts.sum() == part.share(number, seed)
        if part.size:
            assert counts.max() - counts.min() <= 1  # as evenly as it goes
        begin += part.size
    assert (order == epoch_order(mixed, seed, epoch)).all()


@given(st.integers(1, 30), st.floats(0.05, 3), st.integers(0, 99), st.integers(1, 12))
def test_over_epochs_all_come_equally_often(size: int, weight: float, seed: int, epochs: int) -> None:
    part = Part(size, weight)
    seen = np.concatenate([epoch_order([part], seed, epoch) for epoch in range(epochs)])
    counts = np.bincount(seen, minlength=size)
    assert counts.sum() == epochs * part.share(0, seed)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("weight", "share"), [(1, 10), (0.5, 5), (0.25, 2), (0.26, 3), (0.001, 1), (2, 20), (1.55, 16)]
)
def test_share(weight: float, share: int) -> None:
    assert Part(10, weight).share(0, 1) == share
    assert Part(0, weight).share(0, 1) == 0


def test_num_samples_are_drawn_once() -> None:
    part = Part(100, num_samples=7)
    first, second = (sorted(epoch_order([part], 3, epoch).tolist()) for epoch in (0, 5))
    assert first == second
    assert len(set(first)) == 7
    assert first != sorted(epoch_order([part], 4, 0).tolist())
    many = np.bincount(epoch_order([Part(3, num_samples=8)], 3, 0))
    assert sorted(many) == [2, 3, 3]


def test_parts_draw_independently() -> None:
    """Two sources of the same size give different positions, and epochs differ in order."""
    order = epoch_order([Part(100, 0.5), Part(100, 0.5)], 1, 0)
    left, right = sorted(order[order < 100]), sorted(order[order >= 100] - 100)
    assert left != right
    assert order.tolist() != epoch_order([Part(100, 0.5), Part(100, 0.5)], 2, 0).tolist()


counts = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@given(counts, st.integers(1, 30), st.integers(0, 99))
def test_num_samples_count_examples(counts: list[int], wanted: int, seed: int) -> None:
    """Of examples with several sequences all are drawn or none, as often as the example is."""
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    part = Part(len(owners), num_samples=wanted, owners=owners.tobytes())
    drawn = np.bincount(epoch_order([part], seed, 3), minlength=len(owners))
    each = [set(drawn[owners == example].tolist()) for example in range(len(counts))]
    assert all(len(times) == 1 for times in each)
    assert sum(times.pop() for times in each) == wanted
    assert epoch_size([part], seed) == drawn.sum()


@given(counts, st.floats(0.05, 3), st.integers(0, 99), st.integers(1, 12))
def test_sequences_of_weighted_examples_come_equally_often(
    counts: list[int], weight: float, seed: int, epochs: int
) -> None:
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    part = Part(len(owners), weight, owners=owners.tobytes())
    orders = [epoch_order([part], seed, epoch) for epoch in range(epochs)]
    assert {len(order) for order in orders} == {epoch_size([part], seed)}
    seen = np.bincount(np.concatenate(orders), minlength=len(owners))
    assert seen.max() - seen.min() <= 1
