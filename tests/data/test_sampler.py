"""The order of training: each epoch a permutation, every step named by its number alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.sampler import Sampler

SIZES = st.integers(1, 40)
BATCHES = st.integers(1, 17)


def line(sampler: Sampler) -> list[int]:
    return [index for step in range(sampler.total_steps) for index in sampler.step(step)]


@given(SIZES, BATCHES, st.integers(1, 4), st.integers(0, 2**32))
def test_each_epoch_is_a_permutation_and_nothing_is_dropped(examples: int, batch: int, epochs: int, seed: int) -> None:
    sampler = Sampler(examples, batch, epochs, seed)
    order = line(sampler)
    assert len(order) == examples * epochs == sampler.total_samples
    for epoch in range(epochs):
        assert sorted(order[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
    sizes = [len(sampler.step(step)) for step in range(sampler.total_steps)]
    assert all(size == batch for size in sizes[:-1])
    assert 1 <= sizes[-1] <= batch


@given(SIZES, BATCHES, st.floats(0.01, 3.5), st.data())
def test_a_step_needs_its_number_only(examples: int, batch: int, epochs: float, data: st.DataObject) -> None:
    sampler = Sampler(examples, batch, epochs, seed=7)
    order = line(sampler)
    assert len(order) == max(1, round(examples * epochs))
    step = data.draw(st.integers(0, sampler.total_steps - 1))
    fresh = Sampler(examples, batch, epochs, seed=7)
    assert fresh.step(step) == order[step * batch : (step + 1) * batch]


def test_seed_and_epoch_change_the_order() -> None:
    first, second = Sampler(50, 50, 2, seed=1), Sampler(50, 50, 2, seed=2)
    assert first.step(0) != second.step(0)
    assert first.step(0) != first.step(1)
    # Seed and epoch are not added up: epoch 1 of seed 1 is not epoch 0 of seed 2.
    assert first.step(1) != second.step(0)


def test_order_does_not_change_between_versions() -> None:
    """A run must go on after an upgrade as it began."""
    assert Sampler(10, 5, 1, seed=42).step(0) == np.random.default_rng([42, 0]).permutation(10)[:5].tolist()


@given(SIZES, BATCHES, st.integers(1, 30))
def test_max_steps_decides_alone_and_changes_no_step(examples: int, batch: int, steps: int) -> None:
    """Fewer steps than the epochs give, or more: whole steps of the same endless line."""
    set_, endless = Sampler(examples, batch, 0.5, 1, max_steps=steps), Sampler(examples, batch, 600, 1)
    assert set_.total_steps == steps
    assert line(set_) == [index for step in range(steps) for index in endless.step(step)]
    assert {len(set_.step(step)) for step in range(steps)} == {batch}
    assert set_.epoch_of(steps) == steps * batch / examples


@given(SIZES, BATCHES)
def test_epochs_done(examples: int, batch: int) -> None:
    sampler = Sampler(examples, batch, 2, 1)
    assert sampler.epoch_of(0) == 0
    assert sampler.epoch_of(sampler.total_steps) == 2
    done = [sampler.epoch_of(step) for step in range(sampler.total_steps + 1)]
    assert done == sorted(done)
