"""Forests against their definition, by brute force over random sequences with many shared prefixes."""

import itertools
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forest.paths import path_rows
from tunewright.data.examples import Encoded
from tunewright.forest.build import (
    Forest,
    build_forest,
    common_prefix,
    distinct_tokens,
    group_by_budget,
    split_over_processes,
)

# Few ids, so that prefixes are shared; some whose little-endian bytes would sort in another order.
IDS = st.sampled_from([0, 1, 2, 255, 256, 70_000])
WEIGHTS = st.sampled_from([0.0, 0.0, 1.0, 0.5, 2.0])
SEQUENCES = st.lists(st.lists(st.tuples(IDS, WEIGHTS), min_size=1, max_size=9), min_size=1, max_size=12)

Pairs = list[tuple[int, float]]


def encode(pairs: Pairs) -> Encoded:
    ids, weights = zip(*pairs, strict=True)
    return Encoded(np.array(ids, np.int32), np.array(weights, np.float32))


def grown(sequences: list[Pairs]) -> list[Encoded]:
    """The sequences, and each that follows another once more behind a beginning of that one."""
    joined = [a[: len(b) % (len(a) + 1)] + b for a, b in itertools.pairwise(sequences)]
    return [encode(pairs) for pairs in [*sequences, *joined]]


def prefixes(sequences: list[Encoded]) -> set[tuple[int, ...]]:
    return {tuple(one.input_ids[: end + 1].tolist()) for one in sequences for end in range(len(one))}


def row_prefixes(forest: Forest) -> list[tuple[int, ...]]:
    """The ids from the root to each row, by walking up the segments."""
    found = []
    for row in range(len(forest)):
        segment = int(forest.segment[row])
        path = path_rows(forest, segment)
        path = path[: row - forest.start[segment] - forest.length[segment] + 1 or None]
        assert path[-1] == row
        found.append(tuple(forest.input_ids[path].tolist()))
    return found


@given(SEQUENCES)
def test_rows_are_the_distinct_prefixes(lists: list[Pairs]) -> None:
    sequences = grown(lists)
    forest = build_forest(sequences)
    found = row_prefixes(forest)
    assert len(found) == len(set(found)) == len(forest)
    assert set(found) == prefixes(sequences)
    assert forest.position_ids.tolist() == [len(prefix) - 1 for prefix in found]
    assert len(forest) == distinct_tokens(sequences)


@given(SEQUENCES)
def test_every_sequence_can_be_read_back(lists: list[Pairs]) -> None:
    sequences = grown(lists)
    forest = build_forest(sequences)
    row_of = {prefix: row for row, prefix in enumerate(row_prefixes(forest))}
    for sequence in sequences:
        last = row_of[tuple(sequence.input_ids.tolist())]
        rows = path_rows(forest, int(forest.segment[last]))[: len(sequence)]
        assert forest.input_ids[rows].tolist() == sequence.input_ids.tolist()
        assert forest.position_ids[rows].tolist() == list(range(len(sequence)))


@given(SEQUENCES)
def test_segments_are_maximal_unbranched_stretches(lists: list[Pairs]) -> None:
    sequences = grown(lists)
    forest = build_forest(sequences)
    found = row_prefixes(forest)
    children = Counter(prefix[:-1] for prefix in found)
    assert forest.length.sum() == len(forest)
    assert forest.length.min() >= 1
    assert forest.start.tolist() == [0, *np.cumsum(forest.length)[:-1].tolist()]
    for row, prefix in enumerate(found):
        begins = len(prefix) == 1 or children[prefix[:-1]] > 1
        assert (row == forest.start[forest.segment[row]]) == begins
    for segment, parent in enumerate(forest.parent):
        first = found[forest.start[segment]]
        if parent < 0:
            assert len(first) == 1
        else:
            assert found[forest.start[parent] + forest.length[parent] - 1] == first[:-1]


@settings(max_examples=25)  # every pair of rows
@given(SEQUENCES)
def test_tour_intervals_are_ancestry(lists: list[Pairs]) -> None:
    forest = build_forest(grown(lists))
    found = row_prefixes(forest)
    for i, own in enumerate(found):
        for j, other in enumerate(found):
            a, b = forest.segment[j], forest.segment[i]
            sees = a <= b < forest.tout[a] and (forest.position_ids[j] <= forest.position_ids[i])
            assert sees == (own[: len(other)] == other)


@given(SEQUENCES)
def test_edges_are_those_of_the_sequences(lists: list[Pairs]) -> None:
    sequences = grown(lists)
    forest = build_forest(sequences)
    found = row_prefixes(forest)
    edges = Counter(
        (int(sequence), found[row], int(target), float(weight))
        for sequence, row, target, weight in zip(
            forest.edge_sequence, forest.edge_row, forest.edge_target, forest.edge_weight, strict=True
        )
    )
    expected = Counter(
        (index, tuple(one.input_ids[:at].tolist()), int(one.input_ids[at]), float(one.weights[at]))
        for index, one in enumerate(sequences)
        for at in range(1, len(one))
        if one.weights[at]
    )
    assert edges == expected


def test_types_and_order_of_a_small_forest() -> None:
    """Two sequences with one branch, and one that stands twice, written out by hand."""
    sequences = [encode([(5, 0.0), (6, 0.0), (7, 1.0)]), encode([(5, 0.0), (6, 0.0), (4, 2.0)])]
    forest = build_forest([*sequences, sequences[0]])
    arrays = asdict(forest)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [5, 6, 4, 7],
        "position_ids": [0, 1, 2, 2],
        "segment": [0, 0, 1, 2],
        "parent": [-1, 0, 0],
        "start": [0, 2, 3],
        "length": [2, 1, 1],
        "tout": [3, 2, 3],
        "edge_row": [1, 1, 1],
        "edge_target": [4, 7, 7],
        "edge_weight": [2.0, 1.0, 1.0],
        "edge_sequence": [1, 0, 2],
    }
    assert arrays.pop("edge_weight").dtype == np.float64
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


@given(SEQUENCES, st.integers(1, 40))
def test_groups_are_a_partition_within_the_budget(lists: list[Pairs], budget: int) -> None:
    sequences = grown(lists)
    groups = group_by_budget(sequences, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sequences)))
    for group in groups:
        rows = len(build_forest([sequences[index] for index in group]))
        assert rows <= budget or len(group) == 1
    assert len(group_by_budget(sequences, 10**6)) == 1


@given(SEQUENCES, st.integers(1, 5))
def test_processes_share_every_sequence_once_and_about_equally(lists: list[Pairs], count: int) -> None:
    sequences = grown(lists)
    parts = split_over_processes(sequences, count)
    assert len(parts) == count
    assert sorted(index for part in parts for index in part) == list(range(len(sequences)))
    total, longest = distinct_tokens(sequences), max(len(one) for one in sequences)
    for part in parts:
        # Nobody gets more than a fair share, two sequences cut at its ends, and the prefix that the cut repeats.
        assert distinct_tokens([sequences[index] for index in part]) <= total / count + 2 * longest
    assert parts == split_over_processes(sequences, count)


@given(st.lists(IDS, min_size=1, max_size=6), st.lists(IDS, min_size=1, max_size=6))
def test_common_prefix(first: list[int], second: list[int]) -> None:
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    pair = [encode([(id, 0.0) for id in ids]) for ids in (first, second)]
    assert common_prefix(*pair) == common_prefix(*pair[::-1]) == expected


def test_nothing_to_build_is_refused() -> None:
    empty = Encoded(np.zeros(0, np.int32), np.zeros(0, np.float32))
    for sequences in ([], [encode([(1, 1.0)]), empty]):
        with pytest.raises(ValueError, match="at least one"):
            build_forest(sequences)
    assert distinct_tokens([]) == 0
    assert group_by_budget([], 5) == []
    assert split_over_processes([], 2) == [[], []]
