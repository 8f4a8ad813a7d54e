"""The `cpu` attention backend: batched matrix products per bucket, with their own backward.

The fused CPU attention's backward is slow, and a dense mask costs T² for what is mostly
invisible; so queries of similar shape are gathered into buckets (`ForestLayout.buckets`), each
multiplied with its own ancestors' keys. Query heads that share a key head (GQA) are stacked as
further query rows, so keys are never repeated.

Products are taken in the type of the inputs, the softmax in float32 inside its kernel (float64 for
float64 inputs). The backward computes the probabilities anew, so that nothing of size queries × keys
outlives its bucket, unless the sequences are so short that keeping them costs little memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunewright.forest.layout import Bucket, Buckets

# Probabilities are kept for the backward while a row sees no more keys than this, padding included.
KEPT_KEYS_PER_ROW = 256


def bucketed_attention(query: Tensor, key: Tensor, value: Tensor, buckets: Buckets, scale: float) -> Tensor:
    """query [H, T, d], key and value [Hkv, T, d] → [T, H, d], visible rows as in `buckets`."""
    apply: Callable[..., Tensor] = _BucketedAttention.apply
    return apply(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), buckets, scale)


class _BucketedAttention(torch.autograd.Function):
    """Inputs [T, heads, d]; inside a bucket queries are [n·Hkv, G·q, d], keys [n·Hkv, k, d], scores [n·Hkv, G·q, k]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, buckets: Buckets, scale: float) -> Tensor:
        work = _Work(query.shape[1] // key.shape[1], scale)
        outputs, kept = [], []
        keep = buckets.padded_pairs <= KEPT_KEYS_PER_ROW * len(query)
        for bucket in buckets.buckets:
            probabilities = work.probabilities(work.queries(query, bucket), work.keys(key, bucket), bucket)
            outputs.append(work.ungroup(probabilities @ work.keys(value, bucket), bucket))
            kept.append(probabilities if keep else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.buckets, ctx.work = buckets, work
        return torch.cat(outputs).index_select(0, buckets.inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        work: _Work = ctx.work
        # Rows near a root collect gradients from many buckets, so these are summed in float32.
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros(key.shape, dtype=wide) for _ in range(2))
        grad_queries = []
        for bucket, probabilities in zip(ctx.buckets.buckets, kept, strict=True):
            queries, keys, values = work.queries(query, bucket), work.keys(key, bucket), work.keys(value, bucket)
            if probabilities is None:
                probabilities = work.probabilities(queries, keys, bucket)
            # Padded query rows repeat a real row, whose gradient must not count again.
            grad_o = work.queries(grad_out, bucket, bucket.query_real)
            work.add_to_rows(grad_value, bucket, probabilities.transpose(1, 2) @ grad_o)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad_o @ values.transpose(1, 2), probabilities, -1, query.dtype
            )
            work.add_to_rows(grad_key, bucket, grad_scores.transpose(1, 2) @ queries)
            grad_queries.append(work.ungroup(grad_scores @ keys, bucket))
        grad_query = torch.cat(grad_queries).index_select(0, ctx.buckets.inverse).mul_(work.scale)
        return grad_query, grad_key.mul_(work.scale).to(key.dtype), grad_value.to(value.dtype), None, None


class _Work:
    """The products of one bucket, and the gathers from and to forest rows."""

    def __init__(self, groups: int, scale: float) -> None:
        self.groups = groups
        self.scale = scale

    def probabilities(self, queries: Tensor, keys: Tensor, bucket: Bucket) -> Tensor:
        """[n·Hkv, G·q, k]."""
        n, q = bucket.query_rows.shape
        scores = torch.baddbmm(_nothing(queries), queries, keys.transpose(1, 2), beta=0, alpha=self.scale)
        scores.view(n, -1, self.groups, q, scores.shape[-1]).add_(bucket.bias)
        return scores.softmax(dim=-1)

    def queries(self, rows: Tensor, bucket: Bucket, factor: Tensor | None = None) -> Tensor:
        """[T, H, x] → [n·Hkv, G·q, x], times `factor` [n, q]."""
        n, q = bucket.query_rows.shape
        heads, width = rows.shape[1:]
        gathered = rows.index_select(0, bucket.query_rows.view(-1)).view(n, q, heads, width)
        if factor is not None:
            gathered.mul_(factor[:, :, None, None])
        grouped = gathered.view(n, q, heads // self.groups, self.groups, width).permute(0, 2, 3, 1, 4)
        return grouped.reshape(n * heads // self.groups, self.groups * q, width)

    def keys(self, rows: Tensor, bucket: Bucket) -> Tensor:
        """[T, Hkv, d] → [n·Hkv, k, d]."""
        n, k = bucket.key_rows.shape
        gathered = rows.index_select(0, bucket.key_rows.view(-1)).view(n, k, *rows.shape[1:])
        return gathered.transpose(1, 2).reshape(-1, k, rows.shape[2])

    def ungroup(self, grouped: Tensor, bucket: Bucket) -> Tensor:
        """[n·Hkv, G·q, d] → [n·q, H, d]."""
        n, q = bucket.query_rows.shape
        width = grouped.shape[-1]
        return grouped.view(n, -1, self.groups, q, width).permute(0, 3, 1, 2, 4).reshape(n * q, -1, width)

    def add_to_rows(self, total: Tensor, bucket: Bucket, grouped: Tensor) -> None:
        """Add [n·Hkv, k, d] into the rows [T, Hkv, d] that the keys were gathered from."""
        n, k = bucket.key_rows.shape
        rows = grouped.view(n, -1, k, grouped.shape[-1]).transpose(1, 2).reshape(n * k, *total.shape[1:])
        total.index_add_(0, bucket.key_rows.view(-1), rows.to(total.dtype))


def _nothing(like: Tensor) -> Tensor:
    """What a product is not added to: with beta 0 its values are never read."""
    return torch.empty((1, 1, 1), dtype=like.dtype)
