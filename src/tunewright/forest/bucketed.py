"""The `cpu` attention backend: batched matrix products per bucket, with their own backward.

The fused CPU attention's backward is slow, and a dense mask costs T² for what is mostly
invisible; so queries go by blocks in buckets (`ForestLayout.buckets`), each multiplied with its own ancestors' keys.
Query heads that share a key head (GQA) are further query rows, so keys are never repeated. Rows are gathered heads
first, and the results back by rows: one copy each way.

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
        work = _Work(query, key, scale)
        outputs, kept = [], []
        keep = buckets.padded_pairs <= KEPT_KEYS_PER_ROW * len(query)
        for bucket in buckets.buckets:
            of_keys = work.places(bucket.key_rows)
            queries = work.queries(query, bucket, work.places(bucket.query_rows))
            probabilities = work.probabilities(queries, work.keys(key, bucket, of_keys), bucket)
            outputs.append(torch.bmm(probabilities, work.keys(value, bucket, of_keys)))
            kept.append(probabilities if keep else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.buckets, ctx.work = buckets, work
        return work.by_row(outputs, buckets, query)

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
            of_queries, of_keys = work.places(bucket.query_rows), work.places(bucket.key_rows)
            queries, keys = work.queries(query, bucket, of_queries), work.keys(key, bucket, of_keys)
            if probabilities is None:
                probabilities = work.probabilities(queries, keys, bucket)
            grad_o = work.queries(grad_out, bucket, of_queries)
            if bucket.query_real is not None:
                # Padded query rows repeat a real row, whose gradient must not count again.
                n, q = bucket.query_rows.shape
                grad_o.view(-1, n, q, work.groups * query.shape[2]).mul_(bucket.query_real[:, :, None])
            work.add_to_rows(grad_value, of_keys, torch.bmm(probabilities.transpose(1, 2), grad_o))
            grad_scores = torch.ops.aten._softmax_backward_data(
                torch.bmm(grad_o, work.keys(value, bucket, of_keys).transpose(1, 2)), probabilities, -1, query.dtype
            )
            work.add_to_rows(grad_key, of_keys, torch.bmm(grad_scores.transpose(1, 2), queries))
            grad_queries.append(torch.bmm(grad_scores, keys))
        grad_query = work.by_row(grad_queries, ctx.buckets, query).mul_(work.scale)
        return grad_query, grad_key.mul_(work.scale).to(key.dtype), grad_value.to(value.dtype), None, None


class _Work:
    """The scores of one bucket, and the gathers from and to forest rows."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        self.heads = torch.arange(key.shape[1])
        self.groups = query.shape[1] // key.shape[1]
        self.scale = scale

    def probabilities(self, queries: Tensor, keys: Tensor, bucket: Bucket) -> Tensor:
        """[Hkv·n, q·G, k]."""
        n, q, _, last = bucket.bias.shape
        scores = torch.baddbmm(_nothing(queries), queries, keys.transpose(1, 2), beta=0, alpha=self.scale)
        scores.view(-1, n, q, self.groups, keys.shape[1])[..., keys.shape[1] - last :].add_(bucket.bias)
        return torch.softmax(scores, dim=-1, out=scores)

    def places(self, rows: Tensor) -> Tensor:
        """Where `rows` of every key head stand among [T·Hkv, …], heads first: [Hkv·rows]."""
        return (rows.view(1, -1) * len(self.heads) + self.heads[:, None]).view(-1)

    def queries(self, rows: Tensor, bucket: Bucket, places: Tensor) -> Tensor:
        """[T, H, d] → [Hkv·n, q·G, d]."""
        width, (_, q) = rows.shape[2], bucket.query_rows.shape
        return rows.reshape(-1, self.groups * width).index_select(0, places).view(-1, q * self.groups, width)

    def keys(self, rows: Tensor, bucket: Bucket, places: Tensor) -> Tensor:
        """[T, Hkv, d] → [Hkv·n, k, d]."""
        width = rows.shape[2]
        return rows.reshape(-1, width).index_select(0, places).view(-1, bucket.key_rows.shape[1], width)

    def by_row(self, parts: list[Tensor], buckets: Buckets, like: Tensor) -> Tensor:
        """[Hkv·n, q·G, d] of every bucket → [T, H, d]."""
        width = self.groups * like.shape[2]
        together = torch.cat([part.view(len(self.heads), -1, width) for part in parts], dim=1)
        first = self.heads * together.shape[1]
        places = (buckets.inverse[:, None] + first).view(-1)
        return together.view(-1, width).index_select(0, places).view(like.shape)

    def add_to_rows(self, total: Tensor, places: Tensor, part: Tensor) -> None:
        """Add [Hkv·n, k, d] into the rows [T, Hkv, d] that the keys were gathered from."""
        width = total.shape[2]
        total.view(-1, width).index_add_(0, places, part.view(-1, width).to(total.dtype))


def _nothing(like: Tensor) -> Tensor:
    """What a product is not added to: with beta 0 its values are never read."""
    return torch.empty((1, 1, 1), dtype=like.dtype)
