"""The `cpu` attention backend: batched matrix products per bucket, with their own backward.

The fused CPU attention's backward is slow, and a dense mask costs T² for what is mostly invisible; so queries go by
blocks in buckets (`ForestLayout.buckets`), each multiplied with its own ancestors' keys. Heads come first, in one copy
for all buckets, so that a block of neighbouring rows is a slice. Query heads that share a key head (GQA) are further
query rows, so keys are never repeated.

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
    """Inputs [T, heads, d]; inside a bucket queries are [Hkv·n, q·G, d], keys [Hkv·n, k, d], scores [Hkv·n, q·G, k]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, buckets: Buckets, scale: float) -> Tensor:
        kept = []
        keep = buckets.padded_pairs <= KEPT_KEYS_PER_ROW * len(query)
        queries = _queries_by_head(query, key.shape[1])
        keys, values = (_keys_by_head(rows, buckets) for rows in (key, value))
        out = torch.empty_like(queries)
        for bucket in buckets.buckets:
            probabilities = _probabilities(_take(queries, bucket.queries), _take(keys, bucket.keys), bucket, scale)
            _put(out, bucket.queries, torch.bmm(probabilities, _take(values, bucket.keys)))
            kept.append(probabilities if keep else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.buckets, ctx.scale = buckets, scale
        return _by_row(out, query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        buckets: Buckets = ctx.buckets
        queries, grad_outs = (_queries_by_head(rows, key.shape[1]) for rows in (query, grad_out))
        keys, values = (_keys_by_head(rows, buckets) for rows in (key, value))
        grad_queries = torch.empty_like(queries)
        # Rows near a root collect gradients from many buckets, so these are summed in float32.
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_keys, grad_values = (torch.zeros(keys.shape, dtype=wide) for _ in range(2))
        for bucket, probabilities in zip(buckets.buckets, kept, strict=True):
            bucket_queries, bucket_keys = _take(queries, bucket.queries), _take(keys, bucket.keys)
            if probabilities is None:
                probabilities = _probabilities(bucket_queries, bucket_keys, bucket, ctx.scale)
            grad_o = _take(grad_outs, bucket.queries)
            _add(grad_values, bucket.keys, torch.bmm(probabilities.transpose(1, 2), grad_o))
            grad_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(grad_o, _take(values, bucket.keys).transpose(1, 2)), probabilities, -1, query.dtype
            )
            _add(grad_keys, bucket.keys, torch.bmm(grad_scores.transpose(1, 2), bucket_queries))
            _put(grad_queries, bucket.queries, torch.bmm(grad_scores, bucket_keys))
        grad_query = _by_row(grad_queries.mul_(ctx.scale), query.shape)
        grad_key = _sum_by_row(grad_keys.mul_(ctx.scale), buckets, key)
        return grad_query, grad_key, _sum_by_row(grad_values, buckets, value), None, None


def _probabilities(queries: Tensor, keys: Tensor, bucket: Bucket, scale: float) -> Tensor:
    """[Hkv·n, q·G, k]."""
    n, q, _, last = bucket.bias.shape
    scores = torch.baddbmm(_nothing(queries), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    scores.view(-1, n, q, queries.shape[1] // q, keys.shape[1])[..., keys.shape[1] - last :].add_(bucket.bias)
    return torch.softmax(scores, dim=-1, out=scores)


def _queries_by_head(rows: Tensor, key_heads: int) -> Tensor:
    """[T, H, d] → [Hkv, T + 1, G, d], the last row zeros: what padding of queries reads, and writes."""
    count, heads, width = rows.shape
    out = rows.new_empty((key_heads, count + 1, heads // key_heads, width))
    out[:, :count] = rows.view(count, key_heads, -1, width).transpose(0, 1)
    out[:, count] = 0
    return out


def _keys_by_head(rows: Tensor, buckets: Buckets) -> Tensor:
    """[T, Hkv, d] → [Hkv, U, 1, d]."""
    return rows.index_select(0, buckets.key_rows).transpose(0, 1).contiguous().unsqueeze(2)


def _by_row(heads: Tensor, shape: torch.Size) -> Tensor:
    """[Hkv, T + 1, G, d] → [T, H, d]."""
    return heads[:, :-1].transpose(0, 1).reshape(shape)


def _sum_by_row(heads: Tensor, buckets: Buckets, like: Tensor) -> Tensor:
    """[Hkv, U, 1, d] → [T, Hkv, d] in the type of `like`, rows that stand there more than once added up."""
    total = torch.zeros(like.shape, dtype=heads.dtype)
    return total.index_add_(0, buckets.key_rows, heads.squeeze(2).transpose(0, 1).contiguous()).to(like.dtype)


def _take(heads: Tensor, places: Tensor | slice) -> Tensor:
    """[Hkv, R, G, d] → [Hkv·n, q·G, d]."""
    if isinstance(places, slice):
        return heads[:, places].flatten(1, 2).contiguous()  # else each product would copy it for itself
    taken = _flat(heads).index_select(0, _flat_places(heads, places))
    return taken.view(-1, places.shape[1] * heads.shape[2], heads.shape[3])


def _put(heads: Tensor, places: Tensor | slice, part: Tensor) -> None:
    """Write [Hkv·n, q·G, d] where `_take` would read it."""
    if isinstance(places, slice):
        heads[:, places].flatten(1, 2).copy_(part)
    else:
        flat = _flat(heads)
        flat.index_copy_(0, _flat_places(heads, places), part.view(-1, flat.shape[1]))


def _add(heads: Tensor, places: Tensor | slice, part: Tensor) -> None:
    """Add [Hkv·n, q·G, d] to what `_take` would read."""
    if isinstance(places, slice):
        heads[:, places].flatten(1, 2).add_(part)
    else:
        flat = _flat(heads)
        flat.index_add_(0, _flat_places(heads, places), part.view(-1, flat.shape[1]).to(heads.dtype))


def _flat(heads: Tensor) -> Tensor:
    """[Hkv, R, G, d] → [Hkv·R, G·d]."""
    return heads.view(heads.shape[0] * heads.shape[1], -1)


def _flat_places(heads: Tensor, places: Tensor) -> Tensor:
    """Rows of `_flat` that are `places` [n, q] of every head, [Hkv·n·q]."""
    first = torch.arange(0, heads.shape[0] * heads.shape[1], heads.shape[1])
    return (first[:, None] + places.view(-1)).view(-1)


def _nothing(like: Tensor) -> Tensor:
    """What a product is not added to: with beta 0 its values are never read."""
    return torch.empty((1, 1, 1), dtype=like.dtype)
