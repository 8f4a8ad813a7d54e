"""A forest made ready for a device and an attention backend: tensors shared by all layers of one pass.

Masks and index tensors are built once per forest and window, lazily, and dropped with the layout.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunewright.forest.build import Forest
from tunewright.forest.head import Edges

# Queries per block: long enough for good matrix products, short enough that the causal
# half of a long segment that is computed for nothing stays small.
BLOCK_ROWS = 128
# Blocks share a bucket while the padded scores are at most this much larger than the real ones.
PADDING_LIMIT = 1.3


@dataclass(frozen=True, slots=True)
class Bucket:
    """n query blocks padded to `q` rows against their visible keys padded to `k` rows.

    `query_rows` [n, q] and `key_rows` [n, k] index forest rows; padding repeats a real row, and
    `query_real` float32 [n, q] is 1 for the rows that are none. `bias` float32 [n, 1, 1, q, k] is
    0 where visible and -inf elsewhere.
    """

    query_rows: Tensor
    key_rows: Tensor
    query_real: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets of one forest; `inverse` [T] finds each forest row among the concatenated padded query rows."""

    buckets: list[Bucket]
    inverse: Tensor


class ForestLayout:
    """`input_ids` and `position_ids` are int64 [1, T]; `loss_rows` [R] are the rows that `edges` read, in order.

    `edge_sequence` (NumPy, int64 [E]) says which sequence each of `edges` belongs to.
    """

    def __init__(self, forest: Forest, device: torch.device | str = "cpu", backend: str = "cpu") -> None:
        self.forest = forest
        self.backend = backend
        self.device = torch.device(device)
        self.input_ids = self._tensor(forest.input_ids)[None]
        self.position_ids = self._tensor(forest.position_ids)[None]
        # Logits are computed once per row that any edge reads.
        order = np.argsort(forest.edge_row, kind="stable")
        loss_rows, loss_row = np.unique(forest.edge_row[order], return_inverse=True)
        self.loss_rows = self._tensor(loss_rows)
        self.edges = Edges(
            self._tensor(loss_row), self._tensor(forest.edge_target[order]), self._tensor(forest.edge_weight[order])
        )
        self.edge_sequence = forest.edge_sequence[order]
        self._masks: dict[int | None, Tensor] = {}
        self._buckets: dict[int | None, Buckets] = {}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def dense_mask(self, window: int | None = None) -> Tensor:
        """Bool [T, T]: row i sees row j. A window keeps the nearest `window` positions, the own one included."""
        if window not in self._masks:
            forest = self.forest
            segment, tout = self._tensor(forest.segment), self._tensor(forest.tout)
            position = self.position_ids[0]
            ancestor = (segment[None, :] <= segment[:, None]) & (segment[:, None] < tout[segment][None, :])
            distance = position[:, None] - position[None, :]
            visible = ancestor & (distance >= 0)
            self._masks[window] = visible if window is None else visible & (distance < window)
        return self._masks[window]

    def buckets(self, window: int | None = None) -> Buckets:
        """Query blocks grouped by similar shape."""
        if window not in self._buckets:
            self._buckets[window] = self._make_buckets(window)
        return self._buckets[window]

    def _make_buckets(self, window: int | None) -> Buckets:
        blocks = _blocks(self.forest, window)
        groups = _group_by_shape([(len(queries), len(keys)) for queries, keys in blocks])
        buckets, padded_rows = [], []
        for group in groups:
            members = [blocks[index] for index in group]
            query_rows, query_real = _padded([queries for queries, _ in members])
            key_rows, key_real = _padded([keys for _, keys in members])
            position = self.forest.position_ids
            distance = position[query_rows][:, :, None] - position[key_rows][:, None, :]
            visible = (distance >= 0) & key_real[:, None, :]
            if window is not None:
                visible &= distance < window
            bias = np.where(visible, np.float32(0), np.float32("-inf"))[:, None, None]
            buckets.append(Bucket(*map(self._tensor, (query_rows, key_rows, query_real.astype(np.float32), bias))))
            padded_rows.append(np.where(query_real, query_rows, -1).ravel())
        rows = np.concatenate(padded_rows)
        inverse = np.empty(len(self.forest), np.int64)
        inverse[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return Buckets(buckets, self._tensor(inverse))


def _blocks(forest: Forest, window: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut segments into blocks of rows; each with all rows that any of its queries sees, in order of position."""
    blocks = []
    ancestors: dict[int, np.ndarray] = {-1: np.zeros(0, np.int64)}
    for segment, (start, length, parent) in enumerate(zip(forest.start, forest.length, forest.parent, strict=True)):
        path = np.concatenate([ancestors[int(parent)], np.arange(start, start + length)])
        if forest.tout[segment] > segment + 1:
            ancestors[segment] = path
        first = len(path) - length
        for begin in range(first, len(path), BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, len(path))
            oldest = 0 if window is None else max(0, begin - window + 1)
            blocks.append((path[begin:end], path[oldest:end]))
    return blocks


def _group_by_shape(shapes: list[tuple[int, int]]) -> list[list[int]]:
    """Group (queries, keys) shapes so that padding each group to its largest costs little."""
    order = sorted(range(len(shapes)), key=lambda index: (_size_class(shapes[index][0]), shapes[index][1]))
    groups: list[list[int]] = []
    real = widest_q = widest_k = 0
    for index in order:
        q, k = shapes[index]
        if groups and _size_class(q) == _size_class(shapes[groups[-1][0]][0]):
            padded = max(widest_q, q) * max(widest_k, k) * (len(groups[-1]) + 1)
            if padded <= PADDING_LIMIT * (real + q * k):
                groups[-1].append(index)
                real, widest_q, widest_k = real + q * k, max(widest_q, q), max(widest_k, k)
                continue
        groups.append([index])
        real, widest_q, widest_k = q * k, q, k
    return groups


def _size_class(rows: int) -> int:
    """Buckets hold query counts within one class; classes grow by half a power of two."""
    return int(2 * np.log2(rows) + 0.5)


def _padded(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack ragged index arrays to [n, longest], repeating the last entry; and which entries are real."""
    longest = max(len(array) for array in arrays)
    index = np.minimum(np.arange(longest)[None], np.array([len(array) - 1 for array in arrays])[:, None])
    rows = np.stack([array[i] for array, i in zip(arrays, index, strict=True)])
    return rows, np.arange(longest)[None] < np.array([len(array) for array in arrays])[:, None]
