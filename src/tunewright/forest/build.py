"""Build token forests: the sequences of (part of) one step merged by shared prefixes.

A forest is the trie of the sequences' token ids, laid out flat in depth-first order, so that
every distinct token is computed once. See `Forest` for the arrays.

The trie never exists as objects: sequences are sorted, and the longest common prefix of each
with its predecessor says which of its tokens are new. All else follows from those numbers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.data.examples import Encoded

IntArray = np.ndarray
FloatArray = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """T distinct tokens in S segments with E loss edges; all integer arrays are int64.

    `input_ids`, `position_ids` (depth in the tree), `segment` are [T]. Segments are numbered in
    depth-first order, which makes a segment's number its Euler-tour entry `tin`; `tout` [S] is one
    past its last descendant. `parent` (-1 for roots), `start` (first row) and `length` are [S].

    Loss edges: the token in row `edge_row` predicts `edge_target` with `edge_weight` (float64), for
    the sequence `edge_sequence` (its index among the sequences the forest was built from). [E]

    Row i sees row j exactly if `segment[j] <= segment[i] < tout[segment[j]]` and
    `position_ids[j] <= position_ids[i]`.
    """

    input_ids: IntArray
    position_ids: IntArray
    segment: IntArray
    parent: IntArray
    start: IntArray
    length: IntArray
    tout: IntArray
    edge_row: IntArray
    edge_target: IntArray
    edge_weight: FloatArray
    edge_sequence: IntArray

    def __len__(self) -> int:
        return len(self.input_ids)


def build_forest(sequences: Sequence[Encoded]) -> Forest:
    """Merge the sequences by shared prefixes. Raises ValueError on an empty list or an empty sequence."""
    if not sequences or min(len(sequence) for sequence in sequences) == 0:
        raise ValueError("a forest needs at least one sequence, and every sequence at least one token")
    order = _sorted_order(sequences)
    tokens, positions, parents = [], [], []
    rows_of_previous = np.zeros(0, np.int64)
    previous: Encoded | None = None
    edge_rows, edge_targets, edge_weights, edge_sequences = [], [], [], []
    num_rows = 0
    for index in order:
        sequence = sequences[index]
        shared = 0 if previous is None else common_prefix(previous, sequence)
        new = np.arange(num_rows, num_rows + len(sequence) - shared, dtype=np.int64)
        rows = np.concatenate([rows_of_previous[:shared], new])
        tokens.append(sequence.input_ids[shared:])
        positions.append(np.arange(shared, len(sequence), dtype=np.int64))
        parents.append(rows[shared - 1 : -1] if shared else np.concatenate([[-1], rows[:-1]]))

        predicted = np.flatnonzero(sequence.weights[1:]) + 1
        edge_rows.append(rows[predicted - 1])
        edge_targets.append(sequence.input_ids[predicted].astype(np.int64))
        edge_weights.append(sequence.weights[predicted].astype(np.float64))
        edge_sequences.append(np.full(len(predicted), index, np.int64))

        num_rows += len(new)
        rows_of_previous, previous = rows, sequence

    parent_row = np.concatenate(parents)
    segment, start, parent = _segments(parent_row)
    length = np.diff(np.append(start, num_rows))
    return Forest(
        input_ids=np.concatenate(tokens).astype(np.int64),
        position_ids=np.concatenate(positions),
        segment=segment,
        parent=parent,
        start=start,
        length=length,
        tout=_tour_exits(parent),
        edge_row=np.concatenate(edge_rows),
        edge_target=np.concatenate(edge_targets),
        edge_weight=np.concatenate(edge_weights),
        edge_sequence=np.concatenate(edge_sequences),
    )


def group_by_budget(sequences: Sequence[Encoded], max_tokens: int) -> list[list[int]]:
    """Split a step into groups of sequence indices whose forests have at most `max_tokens` rows each.

    Neighbours in sorted order share the most, so groups are cut from that order. A sequence that is
    longer than the budget stands alone: no sequence is ever split.
    """
    groups: list[list[int]] = []
    used = 0
    for index in _sorted_order(sequences):
        sequence = sequences[index]
        if groups:
            new = len(sequence) - common_prefix(sequences[groups[-1][-1]], sequence)
            if used + new <= max_tokens:
                groups[-1].append(index)
                used += new
                continue
        groups.append([index])
        used = len(sequence)
    return groups


def split_over_processes(sequences: Sequence[Encoded], count: int) -> list[list[int]]:
    """Share one step among `count` processes: contiguous stretches of the sorted order, of about equal work.

    A process may get nothing when there are fewer sequences than processes.
    """
    order = _sorted_order(sequences)
    new_tokens = [
        len(sequences[index]) - (common_prefix(sequences[order[k - 1]], sequences[index]) if k else 0)
        for k, index in enumerate(order)
    ]
    ends = np.cumsum(new_tokens, dtype=np.float64)
    # The middle of a sequence's stretch decides its process, so that no process is starved by rounding.
    share = np.floor((ends - np.asarray(new_tokens) / 2) * count / ends[-1]).astype(int) if len(order) else []
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, process in zip(order, share, strict=True):
        parts[min(int(process), count - 1)].append(index)
    return parts


def distinct_tokens(sequences: Sequence[Encoded]) -> int:
    """Rows that a forest of these sequences has, without building it."""
    order = _sorted_order(sequences)
    shared = sum(common_prefix(sequences[a], sequences[b]) for a, b in itertools.pairwise(order))
    return sum(len(sequence) for sequence in sequences) - shared


def common_prefix(first: Encoded, second: Encoded) -> int:
    """Number of leading token ids that both sequences have."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first.input_ids[:length] != second.input_ids[:length])
    return int(different[0]) if len(different) else length


def _sorted_order(sequences: Sequence[Encoded]) -> list[int]:
    # Big-endian bytes compare like the ids themselves, at memcmp speed.
    keys = [sequence.input_ids.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(sequences)), key=lambda index: (keys[index], index))


def _segments(parent_row: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """From each row's parent row: segment of each row, first row of each segment, parent of each segment."""
    is_root = parent_row < 0
    children = np.bincount(parent_row[~is_root], minlength=len(parent_row))
    begins = is_root | (children[parent_row] > 1)
    segment = np.cumsum(begins) - 1
    start = np.flatnonzero(begins)
    parent = np.where(is_root[start], -1, segment[parent_row[start]])
    return segment, start, parent


def _tour_exits(parent: IntArray) -> IntArray:
    """One past the last descendant of each segment; children come after their parents in the numbering."""
    exits = np.arange(1, len(parent) + 1, dtype=np.int64)
    for segment in range(len(parent) - 1, -1, -1):
        if parent[segment] >= 0:
            exits[parent[segment]] = max(exits[parent[segment]], exits[segment])
    return exits
