"""The `flex` attention backend: FlexAttention (arXiv 2412.05496) with a block mask made from the forest, for CUDA.

Rows lie in depth-first order, so row i sees row j exactly if `j <= i < end[j]`, with `end[j]` the first row past all
that descends from j's segment, and, under a window, if j lies deep enough: `oldest[i] <= position[j]`. Which blocks of
rows see nothing, something or all of each other follows from the extremes of these numbers in each block, so nothing of
size T² is ever made. One mask function serves every window, and rows are padded to few lengths, so that few kernels are
compiled.

Elsewhere than on CUDA the same operator runs unfused, with its backward: that is what tests compare, and what the plan
walks through on tensors without memory.
"""

import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from tunewright.forest.build import Forest

BLOCK = 128  # FlexAttention's own size of a block; its kernels are fastest on lengths that are multiples of it
NARROWEST = 16  # and heads are at least so wide

Moved = Callable[[np.ndarray], Tensor]
Modify = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BlockList:
    """For each block of queries the blocks of keys it sees in part and in full, bool [n, n]; the arrays behind them.

    `end`, `oldest` and `position` are int32 [T].
    """

    partly: np.ndarray
    wholly: np.ndarray
    end: np.ndarray
    oldest: np.ndarray
    position: np.ndarray


def has_flex(device: torch.device) -> bool:
    """Whether its kernels can be made here: by Triton, which needs a GPU since Volta and a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return compiler is not None and importlib.util.find_spec("triton") is not None


def padded(forest: Forest) -> Forest:
    """`forest` with roots of one token behind it, without loss edges, up to one of few lengths: 1/16 longer at most,
    or a block."""
    rows = len(forest)
    multiple = max(BLOCK, 2 ** ((rows - 1).bit_length() - 5))
    count = -rows % multiple
    if not count:
        return forest
    segments = len(forest.start)

    def longer(array: np.ndarray, tail: np.ndarray | int) -> np.ndarray:
        return np.concatenate([array, np.broadcast_to(np.asarray(tail, array.dtype), count)])

    return replace(
        forest,
        input_ids=longer(forest.input_ids, forest.input_ids[0]),
        position_ids=longer(forest.position_ids, 0),
        segment=longer(forest.segment, np.arange(segments, segments + count)),
        parent=longer(forest.parent, -1),
        start=longer(forest.start, np.arange(rows, rows + count)),
        length=longer(forest.length, 1),
        tout=longer(forest.tout, np.arange(segments + 1, segments + count + 1)),
    )


def block_list(forest: Forest, window: int | None) -> BlockList:
    """The blocks of a padded forest. A block under a window may count as seen in part though no row of it is seen."""
    count = len(forest) // BLOCK
    starts = np.append(forest.start, len(forest))
    end = starts[forest.tout[forest.segment]].astype(np.int32)
    position = forest.position_ids.astype(np.int32)
    oldest = np.zeros_like(position) if window is None else position - np.int32(min(window, 2**30) - 1)
    ends, positions, oldests = (array.reshape(count, BLOCK) for array in (end, position, oldest))
    first, last = np.arange(count) * BLOCK, np.arange(count) * BLOCK + BLOCK - 1
    some = first <= last[:, None]
    some &= ends.max(axis=1) > first[:, None]
    some &= oldests.min(axis=1)[:, None] <= positions.max(axis=1)
    every = last <= first[:, None]
    every &= ends.min(axis=1) > last[:, None]
    every &= oldests.max(axis=1)[:, None] <= positions.min(axis=1)
    return BlockList(some & ~every, every, end, oldest, position)


def block_mask(blocks: BlockList, moved: Moved) -> BlockMask:
    """The mask for all layers with one window; `moved` brings an array to their device."""
    end, oldest, position = moved(blocks.end), moved(blocks.oldest), moved(blocks.position)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key]) & (oldest[query] <= position[key])

    def listed(seen: np.ndarray) -> tuple[Tensor, Tensor]:
        """How many blocks of keys, int32 [1, 1, n], and which, int32 [1, 1, n, n], these first."""
        return moved(seen.sum(axis=1, dtype=np.int32)[None, None]), moved(
            np.argsort(~seen, axis=1, kind="stable").astype(np.int32)[None, None]
        )

    length = len(blocks.end)
    return BlockMask.from_kv_blocks(
        *listed(blocks.partly), *listed(blocks.wholly), BLOCK, visible, seq_lengths=(length, length)
    )


def flexible_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [H, T, d], key and value [Hkv, T, d] → [T, H, d]; `softcap` bounds the scores, `sinks` [H] take a share."""
    modify = None if softcap is None else _capped(softcap)
    width = value.shape[-1]
    if width < NARROWEST:
        query, key, value = (nn.functional.pad(rows, (0, NARROWEST - width)) for rows in (query, key, value))
    out, log_sum = _attend(query[None], key[None], value[None], modify, mask, scale, sinks is not None)
    if sinks is not None:
        out = out * torch.sigmoid(log_sum - sinks.to(log_sum.dtype)[:, None])[..., None].to(out.dtype)
    return out[0, ..., :width].transpose(0, 1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, modify: Modify | None, mask: BlockMask, scale: float, log_sum: bool
) -> tuple[Tensor, Tensor]:
    """Output [1, H, T, d] and, if asked for, the log of each row's sum of exponentials [1, H, T]."""
    if query.is_cuda:
        aux = AuxRequest(lse=log_sum)
        out, found = _compiled()(query, key, value, modify, mask, scale, enable_gqa=True, return_aux=aux)
        return out, found.lse
    operator: Any = torch.ops.higher_order.flex_attention
    options = {"OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False}
    out, in_bits, _ = operator(query, key, value, modify or _unchanged, mask.as_tuple(), scale, options, (), ())
    return out, in_bits * math.log(2)


def _capped(limit: float) -> Modify:
    def modify(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return modify


def _unchanged(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return score


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Where it cannot be compiled it fails: left to itself it would go on unfused, with T² scores for every head."""
    return torch.compile(flex_attention, fullgraph=True)
