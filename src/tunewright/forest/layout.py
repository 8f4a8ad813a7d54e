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
FEWEST_ROWS, MOST_ROWS = 48, 128
# A block of as many query-key pairs makes good products alone. Others share theirs with blocks of similar shape.
ALONE_PAIRS = 20_000
# Blocks are padded to multiples of these, which the vector units of CPUs like.
QUERY_MULTIPLE, KEY_MULTIPLE = 8, 16
# What one more bucket costs (about forty small operations), in query-key pairs of padding.
BUCKET_COST = 20_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """n query blocks of `q` rows, each against its `k` visible keys, both padded to one shape.

    `queries` [n, q] and `keys` [n, k] are places among `Buckets.query_rows` and `Buckets.key_rows`, or a slice of them
    where there is one block alone. `bias` [n, q, 1, m] is 0 where visible and -inf elsewhere, for the last m keys, in
    the type of the queries; all keys before are visible. Padding of queries is a row behind the last, and that of keys
    any row.
    """

    queries: Tensor | slice
    keys: Tensor | slice
    bias: Tensor
    pairs: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets of one forest of T rows. `key_rows` [U] are forest rows in an order in which long paths are slices:
    a row may stand there more than once. `padded_pairs` are the query-key pairs that are computed.
    """

    buckets: list[Bucket]
    key_rows: Tensor

    @property
    def padded_pairs(self) -> int:
        return sum(bucket.pairs for bucket in self.buckets)


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
        blocks, key_rows, place_of = _blocks(self.forest, window)
        shared = [block for block in blocks if block.keys_at is None]
        groups = [[block] for block in blocks if block.keys_at is not None]
        shapes = [(len(block.queries), len(block.keys)) for block in shared]
        groups += [[shared[index] for index in group] for group in _group_by_shape(shapes)]
        buckets = [self._make_bucket(group, place_of, window, dtype) for group in groups]
        return Buckets(buckets, self._tensor(key_rows))

    def _make_bucket(
        self, blocks: "list[_Block]", place_of: np.ndarray, window: int | None, dtype: torch.dtype
    ) -> Bucket:
        alone = blocks[0].keys_at is not None
        queries, query_real = _padded([block.queries for block in blocks], 1 if alone else QUERY_MULTIPLE)
        keys, key_real = _padded([block.keys for block in blocks], KEY_MULTIPLE)
        position = self.forest.position_ids
        # Keys stand in order of position, from the root on where no window cuts them off.
        seen_by_all = 1 + min(int(position[block.queries[0]]) for block in blocks) if window is None else 0
        distance = position[queries][:, :, None] - position[keys][:, None, seen_by_all:]
        visible = (distance >= 0) & key_real[:, None, seen_by_all:]
        if window is not None:
            visible &= distance < window
        bias = self._tensor(np.where(visible, np.float32(0), np.float32("-inf"))[:, :, None]).to(dtype)
        pairs = queries.size * keys.shape[1]
        if blocks[0].keys_at is not None:
            first_query, first_key = int(queries[0, 0]), blocks[0].keys_at
            of_queries = slice(first_query, first_query + queries.shape[1])
            return Bucket(of_queries, slice(first_key, first_key + keys.shape[1]), bias, pairs)
        padding = len(self.forest)
        return Bucket(self._tensor(np.where(query_real, queries, padding)), self._tensor(place_of[keys]), bias, pairs)


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of some queries, and of all keys that they see, in order of position.

    A block that is to be alone has its keys as a slice of the key rows that begins at `keys_at`.
    """

    queries: np.ndarray
    keys: np.ndarray
    keys_at: int | None


def _blocks(forest: Forest, window: int | None) -> tuple[list[_Block], np.ndarray, np.ndarray]:
    """The queries in blocks, the rows of keys in an order that has the paths of large blocks as slices, and each row's
    place in that order."""
    blocks: list[_Block] = []
    order: list[np.ndarray] = []
    placed = 0
    place_of = np.empty(len(forest), np.int64)
    paths: dict[int, np.ndarray] = {-1: np.zeros(0, np.int64)}
    latest, path_at = -1, 0  # the latest segment, and where its path begins if it is the end of `order`
    starts, lengths, parents = (array.tolist() for array in (forest.start, forest.length, forest.parent))
    for segment, (start, length, parent) in enumerate(zip(starts, lengths, parents, strict=True)):
        own, before = np.arange(start, start + length), paths[parent]
        path = np.concatenate([before, own])
        if forest.tout[segment] > segment + 1:
            paths[segment] = path
        cuts = [
            (begin, end, 0 if window is None else max(0, begin - window + 1))
            for begin, end in _cuts(len(before), len(path))
        ]
        large = [(end - begin) * (end - oldest) >= ALONE_PAIRS for begin, end, oldest in cuts]
        if parent < 0:
            path_at = placed
        elif path_at < 0 or parent != latest:
            path_at = placed if any(large) else -1
            if any(large):
                order.append(before)
                placed += len(before)
        latest = segment
        for (begin, end, oldest), alone in zip(cuts, large, strict=True):
            keys_at = path_at + oldest if alone else None
            blocks.append(_Block(path[begin:end], path[oldest:end], keys_at))
        order.append(own)
        place_of[own] = np.arange(placed, placed + length)
        placed += length
    # A slice of keys may be padded beyond the last.
    order.append(np.zeros(KEY_MULTIPLE, np.int64))
    return blocks, np.concatenate(order), place_of


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
