"""A forest made ready for a device and an attention backend: tensors shared by all layers of one pass.

Masks and index tensors are built once per forest and window, lazily, and dropped with the layout.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunewright.forest.build import Forest
from tunewright.forest.flex import block_list, block_mask, has_flex, padded
from tunewright.forest.head import Edges

Backend = Literal["reference", "cpu", "flex"]

# Queries per block: a quarter of the keys before them, between these. More make better matrix products, and a larger
# causal half that is computed for nothing.
FEWEST_ROWS, MOST_ROWS = 48, 192
# A block of as many query-key pairs makes good products alone. Others share theirs with blocks of similar shape.
ALONE_PAIRS = 20_000
# Blocks are padded to multiples of these, which the vector units of CPUs like.
QUERY_MULTIPLE, KEY_MULTIPLE = 8, 16
# What one more bucket costs (about forty small operations), in query-key pairs of padding.
BUCKET_COST = 20_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """n query blocks padded to `q` rows against their visible keys padded to `k` rows.

    `query_rows` [n, q] and `key_rows` [n, k] index forest rows; padding repeats a real row, and
    `query_real` [n, q] is 1 for the rows that are none, or None where all are real. `bias` [n, q, 1, m] is 0 where
    visible and -inf elsewhere, for the last m keys; all keys before are visible. Both are of the type of the queries.
    """

    query_rows: Tensor
    key_rows: Tensor
    query_real: Tensor | None
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets of one forest; `inverse` [T] finds each forest row among the concatenated padded query rows."""

    buckets: list[Bucket]
    inverse: Tensor

    @property
    def padded_pairs(self) -> int:
        """Query-key pairs that are computed."""
        return sum(bucket.query_rows.numel() * bucket.key_rows.shape[1] for bucket in self.buckets)


def best_backend(device: torch.device) -> Backend:
    """The fastest backend of a device. The dense mask of `reference` is what works everywhere."""
    if device.type == "cpu":
        return "cpu"
    return "flex" if has_flex(device) else "reference"


class ForestLayout:
    """`input_ids` and `position_ids` are int64 [1, T]; `loss_rows` [R] are the rows that `edges` read, in order.

    For the `flex` backend the forest is a little longer than the given one, by rows that no loss reads.
    `edge_sequence` (NumPy, int64 [E]) says which sequence each of `edges` belongs to.
    `windows` are the sliding windows that attention asked for so far, call by call. `wanted_rows` are the rows that
    the last layer is asked for, or None for all.
    """

    def __init__(self, forest: Forest, device: torch.device | str = "cpu", backend: Backend = "cpu") -> None:
        self.forest = forest = padded(forest) if backend == "flex" else forest
        self.backend = backend
        self.device = torch.device(device)
        self.input_ids = self._tensor(forest.input_ids)[None]
        self.position_ids = self._tensor(forest.position_ids)[None]
        # Logits are computed once per row that any edge reads.
        order = np.argsort(forest.edge_row, kind="stable")
        loss_rows, loss_row = np.unique(forest.edge_row[order], return_inverse=True)
        self.loss_rows = self._tensor(loss_rows)
        self.edges = Edges(
            self._tensor(loss_row),
            self._tensor(forest.edge_target[order]),
            self._tensor(forest.edge_weight[order]),
            np.searchsorted(loss_row, np.arange(len(loss_rows) + 1)),
        )
        self.edge_sequence = forest.edge_sequence[order]
        self.windows: list[int | None] = []
        self.wanted_rows: Tensor | None = None
        self._masks: dict[int | None, Tensor] = {}
        self._buckets: dict[tuple[int | None, torch.dtype], Buckets] = {}
        self._block_masks: dict[int | None, BlockMask] = {}

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            # A copy from other memory would wait for all that the GPU was given before.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

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

    def block_mask(self, window: int | None) -> BlockMask:
        """Which blocks of rows see each other, for the `flex` backend."""
        if window not in self._block_masks:
            self._block_masks[window] = block_mask(block_list(self.forest, window), self._tensor)
        return self._block_masks[window]

    def buckets(self, window: int | None, dtype: torch.dtype) -> Buckets:
        """Query blocks grouped by similar shape, for queries of type `dtype`."""
        if (window, dtype) not in self._buckets:
            self._buckets[window, dtype] = self._make_buckets(window, dtype)
        return self._buckets[window, dtype]

    def _make_buckets(self, window: int | None, dtype: torch.dtype) -> Buckets:
        blocks = _blocks(self.forest, window)
        shapes = [(len(queries), len(keys)) for queries, keys in blocks]
        alone = [index for index, (q, k) in enumerate(shapes) if q * k >= ALONE_PAIRS]
        shared = [index for index, (q, k) in enumerate(shapes) if q * k < ALONE_PAIRS]
        groups = _group_by_shape([shapes[index] for index in shared])
        position = self.forest.position_ids
        buckets, padded_rows = [], []
        for group in [[index] for index in alone] + [[shared[place] for place in group] for group in groups]:
            query_rows, query_real = _padded([blocks[i][0] for i in group], QUERY_MULTIPLE if len(group) > 1 else 1)
            key_rows, key_real = _padded([blocks[i][1] for i in group], KEY_MULTIPLE)
            # Keys stand in order of position, from the root on where no window cuts them off.
            seen_by_all = int(position[query_rows[:, 0]].min()) + 1 if window is None else 0
            seen_by_all = seen_by_all // KEY_MULTIPLE * KEY_MULTIPLE
            distance = position[query_rows][:, :, None] - position[key_rows][:, None, seen_by_all:]
            visible = (distance >= 0) & key_real[:, None, seen_by_all:]
            if window is not None:
                visible &= distance < window
            bias = self._tensor(np.where(visible, np.float32(0), np.float32("-inf"))[:, :, None]).to(dtype)
            real = None if query_real.all() else self._tensor(query_real).to(dtype)
            buckets.append(Bucket(self._tensor(query_rows), self._tensor(key_rows), real, bias))
            padded_rows.append(np.where(query_real, query_rows, -1).ravel())
        rows_in_order = np.concatenate(padded_rows)
        inverse = np.empty(len(self.forest), np.int64)
        inverse[rows_in_order[rows_in_order >= 0]] = np.flatnonzero(rows_in_order >= 0)
        return Buckets(buckets, self._tensor(inverse))


def _blocks(forest: Forest, window: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut segments into blocks; each with all rows that its queries see, in order of position."""
    blocks = []
    ancestors: dict[int, np.ndarray] = {-1: np.zeros(0, np.int64)}
    for segment, (start, length, parent) in enumerate(zip(forest.start, forest.length, forest.parent, strict=True)):
        path = np.concatenate([ancestors[int(parent)], np.arange(start, start + length)])
        if forest.tout[segment] > segment + 1:
            ancestors[segment] = path
        for begin, end in _cuts(len(path) - int(length), len(path)):
            oldest = 0 if window is None else max(0, begin - window + 1)
            blocks.append((path[begin:end], path[oldest:end]))
    return blocks


def _cuts(begin: int, end: int) -> list[tuple[int, int]]:
    """Stretches of the positions from `begin` to `end`, larger ones where more keys stand before them."""
    cuts = []
    while begin < end:
        size = min(MOST_ROWS, max(FEWEST_ROWS, begin // 4))
        count = -(-(end - begin) // size)
        size = min(end - begin, _round_up(-(-(end - begin) // count), QUERY_MULTIPLE))
        cuts.append((begin, begin + size))
        begin += size
    return cuts


def _group_by_shape(shapes: list[tuple[int, int]]) -> list[list[int]]:
    """Group (queries, keys) shapes so that padded pairs and the number of groups together cost least.

    Groups are stretches of the shapes in order of their keys: best[e], the cheapest grouping of the first e,
    follows from all best[b] with b < e.
    """
    order = sorted(range(len(shapes)), key=lambda index: (shapes[index][1], shapes[index][0]))
    queries, keys = (
        np.array([_round_up(shapes[index][side], multiple) for index in order])
        for side, multiple in ((0, QUERY_MULTIPLE), (1, KEY_MULTIPLE))
    )
    best, begin_of = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.int64)
    for end in range(1, len(order) + 1):
        widest_q, widest_k = (np.maximum.accumulate(size[:end][::-1])[::-1] for size in (queries, keys))
        cost = best[:end] + BUCKET_COST + np.arange(end, 0, -1) * widest_q * widest_k
        begin_of[end] = cost.argmin()
        best[end] = cost[begin_of[end]]
    groups: list[list[int]] = []
    end = len(order)
    while end:
        begin = int(begin_of[end])
        groups.append(order[begin:end])
        end = begin
    return groups[::-1]


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(arrays: list[np.ndarray], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack ragged index arrays to [n, length], repeating the last entry; and which entries are real."""
    length = _round_up(max(len(array) for array in arrays), multiple)
    index = np.minimum(np.arange(length)[None], np.array([len(array) - 1 for array in arrays])[:, None])
    rows = np.stack([array[i] for array, i in zip(arrays, index, strict=True)])
    return rows, np.arange(length)[None] < np.array([len(array) for array in arrays])[:, None]
