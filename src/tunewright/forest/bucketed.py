"""The `cpu` attention backend: batched matrix products per bucket, with their own backward.

The fused CPU attention's backward is slow, and a dense mask costs T² for what is mostly
invisible; so queries of similar shape are gathered into buckets (`ForestLayout.buckets`), each
multiplied with its own ancestors' keys. Query heads that share a key head (GQA) are stacked as
further query rows, so keys are never repeated. Scores are float32 (float64 for float64 inputs).

The backward recomputes the probabilities from the saved log-sum-exp (as FlashAttention does,
arXiv 2205.14135), so nothing of size queries × keys outlives its bucket.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunewright.forest.layout import Bucket, Buckets


def bucketed_attention(query: Tensor, key: Tensor, value: Tensor, buckets: Buckets, scale: float) -> Tensor:
    """query [H, T, d], key and value [Hkv, T, d] → [T, H, d], visible rows as in `buckets`."""
    apply: Callable[..., Tensor] = _BucketedAttention.apply
    return apply(query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), buckets, scale)


class _BucketedAttention(torch.autograd.Function):
    """Inputs [T, heads, d]; inside a bucket queries are [n·Hkv, G·q, d], keys [n·Hkv, k, d], scores [n·Hkv, G·q, k]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, buckets: Buckets, scale: float) -> Tensor:
        work = _Work(query, key, value, scale)
        outputs, log_sums = [], []
        for bucket in buckets.buckets:
            scores = work.scores(bucket)
            log_sum = scores.logsumexp(dim=-1, keepdim=True)
            probabilities = scores.sub_(log_sum).exp_()
            outputs.append(work.ungroup(probabilities @ work.keys(work.value, bucket), bucket))
            log_sums.append(log_sum)
        out = torch.cat(outputs).index_select(0, buckets.inverse).to(query.dtype)
        ctx.save_for_backward(query, key, value, out, *log_sums)
        ctx.buckets, ctx.scale = buckets, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *log_sums = ctx.saved_tensors
        work = _Work(query, key, value, ctx.scale)
        grad_out = grad_out.to(work.dtype)
        # The softmax's backward needs Σ_j P_ij dP_ij, which equals dO_i · O_i.
        dot = (grad_out * out).sum(dim=-1, keepdim=True)
        grad_key, grad_value = torch.zeros_like(work.key), torch.zeros_like(work.value)
        grad_queries = []
        for bucket, log_sum in zip(ctx.buckets.buckets, log_sums, strict=True):
            # Padded query rows repeat a real row, whose gradient must not count again.
            real = bucket.query_real.to(work.dtype)[:, :, None, None]
            grad_o = work.queries(grad_out, bucket, real)
            probabilities = work.scores(bucket).sub_(log_sum).exp_()
            work.add_to_rows(grad_value, bucket, probabilities.transpose(1, 2) @ grad_o)
            grad_scores = grad_o @ work.keys(work.value, bucket).transpose(1, 2)
            grad_scores.sub_(work.queries(dot, bucket, real)).mul_(probabilities)
            work.add_to_rows(grad_key, bucket, grad_scores.transpose(1, 2) @ work.queries(work.query, bucket))
            grad_queries.append(work.ungroup(grad_scores @ work.keys(work.key, bucket), bucket))
        grad_query = torch.cat(grad_queries).index_select(0, ctx.buckets.inverse).mul_(ctx.scale)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


class _Work:
    """Inputs widened once, with the scale folded into the queries, and the gathers from and to forest rows."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.query = query.to(self.dtype) * scale
        self.key = key.to(self.dtype).contiguous()
        self.value = value.to(self.dtype).contiguous()
        self.groups = query.shape[1] // key.shape[1]

    def scores(self, bucket: Bucket) -> Tensor:
        scores = self.queries(self.query, bucket) @ self.keys(self.key, bucket).transpose(1, 2)
        n, q = bucket.query_rows.shape
        scores.view(n, -1, self.groups, q, scores.shape[-1]).add_(bucket.bias)
        return scores

    def queries(self, rows: Tensor, bucket: Bucket, factor: Tensor | None = None) -> Tensor:
        """[T, H, x] → [n·Hkv, G·q, x], times `factor` [n, q, 1, 1]."""
        n, q = bucket.query_rows.shape
        heads, width = rows.shape[1:]
        gathered = rows.index_select(0, bucket.query_rows.view(-1)).view(n, q, heads, width)
        if factor is not None:
            gathered = gathered * factor
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
        total.index_add_(0, bucket.key_rows.view(-1), rows)
