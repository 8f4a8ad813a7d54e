"""Buckets of the `cpu` backend hold what the dense mask shows, every row once."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.forest.paths import path_rows
from tests.tiny import VOCABULARY, encoded, random_sequences
from tunewright.data.examples import Encoded
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.layout import (
    ALONE_PAIRS,
    BUCKET_COST,
    FEWEST_ROWS,
    KEY_MULTIPLE,
    MOST_ROWS,
    QUERY_MULTIPLE,
    Bucket,
    ForestLayout,
    _cuts,
    _group_by_shape,
)

WINDOWS = [None, 1, 3, 200]


def long_sequences() -> list[Encoded]:
    """A trunk longer than a block of queries, with branches that are longer than two, and many short ones."""
    rng = np.random.default_rng(2)
    trunk = rng.integers(3, VOCABULARY, MOST_ROWS + 22).tolist()
    lengths = (2 * MOST_ROWS + 1, 2 * MOST_ROWS + 14, MOST_ROWS, 1, 5, 5, 9)
    tails = [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]
    return [encoded(trunk + tail, [1.0] * (len(trunk) + len(tail))) for tail in tails]


def forests() -> list[Forest]:
    return [build_forest(random_sequences(seed)) for seed in range(4)] + [build_forest(long_sequences())]


def definition(forest: Forest, window: int | None) -> np.ndarray:
    """Bool [T, T] row by row: the path from the root to a row, cut to the window."""
    mask = np.zeros((len(forest), len(forest)), bool)
    for row in range(len(forest)):
        path = path_rows(forest, int(forest.segment[row]))
        path = path[: int(forest.position_ids[row]) + 1]
        mask[row, path if window is None else path[-window:]] = True
    return mask


@pytest.mark.parametrize("window", WINDOWS)
def test_dense_mask_is_the_path_to_the_root(window: int | None) -> None:
    for forest in forests():
        mask = ForestLayout(forest, torch.device("cpu"), "reference").dense_mask(window)
        assert np.array_equal(mask.numpy(), definition(forest, window))


@pytest.mark.parametrize("window", WINDOWS)
def test_buckets_cover_each_row_once_and_show_what_the_mask_shows(window: int | None) -> None:
    for forest in forests():
        layout = ForestLayout(forest, torch.device("cpu"), "cpu")
        buckets = layout.buckets(window, torch.float32)
        expected = layout.dense_mask(window)
        seen = torch.zeros_like(expected)
        times = torch.zeros(len(forest), dtype=torch.int64)
        for bucket in buckets.buckets:
            n, q = bucket.query_rows.shape
            k, masked = bucket.key_rows.shape[1], bucket.bias.shape[-1]
            assert bucket.bias.shape == (n, q, 1, masked)
            assert bool(((bucket.bias == 0) | (bucket.bias == float("-inf"))).all())
            visible = torch.ones(n, q, k, dtype=torch.bool)
            visible[:, :, k - masked :] = bucket.bias[:, :, 0] == 0
            assert bool(visible.any(dim=-1).all())  # also padded queries, whose softmax would be NaN
            for block, place in itertools.product(range(n), range(q)):
                row = int(bucket.query_rows[block, place])
                keys = bucket.key_rows[block][visible[block, place]]
                assert len(keys) == len(set(keys.tolist()))  # no key counts twice, padding among them
                if is_real(bucket)[block, place]:
                    times[row] += 1
                    seen[row, keys] = True
        assert bool((times == 1).all())
        assert torch.equal(seen, expected)
        everything = torch.cat([bucket.query_rows.reshape(-1) for bucket in buckets.buckets])
        assert torch.equal(everything[buckets.inverse], torch.arange(len(forest)))
        real = torch.cat([is_real(bucket).reshape(-1) for bucket in buckets.buckets])
        assert bool(real[buckets.inverse].all())


def is_real(bucket: Bucket) -> Tensor:
    """Bool [n, q]."""
    return torch.ones_like(bucket.query_rows) == 1 if bucket.query_real is None else bucket.query_real == 1


def test_large_blocks_stand_alone_and_their_masks_are_narrow() -> None:
    buckets = ForestLayout(build_forest(long_sequences())).buckets(None, torch.float32).buckets
    alone = [bucket for bucket in buckets if bucket.query_rows.numel() * bucket.key_rows.shape[1] >= ALONE_PAIRS]
    assert any(len(bucket.query_rows) == 1 and bucket.query_real is None for bucket in alone)
    for bucket in alone:
        q = bucket.query_rows.shape[1]
        assert bucket.bias.shape[-1] < q + 2 * KEY_MULTIPLE or len(bucket.query_rows) > 1


def test_cuts_are_whole_and_grow_with_what_stands_before_them() -> None:
    for begin, end in ((0, 1), (0, 49), (30, 700), (0, 3000)):
        cuts = _cuts(begin, end)
        assert [row for first, last in cuts for row in range(first, last)] == list(range(begin, end))
        assert max(last - first for first, last in cuts) <= MOST_ROWS
    sizes = [last - first for first, last in _cuts(0, 3000)]
    assert sizes[0] <= FEWEST_ROWS < MOST_ROWS / 2 < sizes[-2]


def test_no_other_grouping_costs_less() -> None:
    """Against every way to cut the shapes, in order of their keys, into stretches."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        shapes = [(int(q), int(k)) for q, k in zip(rng.integers(1, 60, 7), rng.integers(1, 900, 7), strict=True)]
        ordered = sorted(shapes, key=lambda shape: (shape[1], shape[0]))
        cuts = itertools.chain.from_iterable(itertools.combinations(range(1, 7), count) for count in range(7))
        cheapest = min(
            sum(padded_cost(ordered[begin:end]) for begin, end in itertools.pairwise([0, *cut, 7])) for cut in cuts
        )
        groups = _group_by_shape(shapes)
        assert sorted(itertools.chain(*groups)) == list(range(7))
        assert sum(padded_cost([shapes[index] for index in group]) for group in groups) == cheapest


def padded_cost(shapes: list[tuple[int, int]]) -> int:
    queries = math.ceil(max(q for q, _ in shapes) / QUERY_MULTIPLE) * QUERY_MULTIPLE
    keys = math.ceil(max(k for _, k in shapes) / KEY_MULTIPLE) * KEY_MULTIPLE
    return BUCKET_COST + len(shapes) * queries * keys


def test_edges_are_sorted_by_row_and_read_loss_rows() -> None:
    forest = build_forest(random_sequences(0))
    layout = ForestLayout(forest, torch.device("cpu"), "cpu")
    rows = layout.loss_rows[layout.edges.row]
    assert bool((layout.edges.row.diff() >= 0).all())
    assert len(layout.loss_rows.unique()) == len(layout.loss_rows)
    found = zip(
        rows.tolist(),
        layout.edges.target.tolist(),
        layout.edges.weight.tolist(),
        layout.edge_sequence.tolist(),
        strict=True,
    )
    expected = zip(forest.edge_row, forest.edge_target, forest.edge_weight, forest.edge_sequence, strict=True)
    assert sorted(found) == sorted((int(r), int(t), float(w), int(s)) for r, t, w, s in expected)
    assert torch.equal(layout.input_ids[0], torch.from_numpy(forest.input_ids))
    assert torch.equal(layout.position_ids[0], torch.from_numpy(forest.position_ids))


def test_masks_and_buckets_are_built_once_per_window() -> None:
    layout = ForestLayout(build_forest(random_sequences(1)), torch.device("cpu"), "cpu")
    assert layout.buckets(3, torch.float32) is layout.buckets(3, torch.float32)
    assert layout.buckets(3, torch.float32) is not layout.buckets(None, torch.float32)
    assert layout.dense_mask(3) is layout.dense_mask(3)
