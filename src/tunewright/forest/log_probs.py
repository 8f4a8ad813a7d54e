"""The log-probability of every sequence of a forest, differentiable: what objectives on whole answers are made of.

How much a sequence's log-probability counts is known only in the backward, so the gradient cannot be finished in the
forward as that of one weighted sum can (`head.py`). But the gradient of a loss row that a single sequence reads is
that factor times a vector of the row's own, and the vector needs no second pass over the logits. So a row that
several sequences read, as the last of a shared prompt, stands once for each of them; there are few of these.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunewright.forest.head import Edges, Head, Sweep, weighted_nll


def sequence_log_probs(
    hidden: Tensor, head: Head, edges: Edges, sequence: Tensor, count: int, chunk_bytes: int | None = None
) -> Tensor:
    """Σ weight · log p over the edges of each of `count` sequences, float64 [count]; 0 for one without edges.

    `hidden` [R, D] are the loss rows that `edges` read, `sequence` (int64 [E]) says whose each edge is.
    """
    reader, row = torch.unique(edges.row * count + sequence, return_inverse=True)
    order = torch.argsort(row, stable=True)
    by_reader = Edges(row[order], edges.target[order], edges.weight[order])
    rows = hidden.index_select(0, reader // count)
    apply: Callable[..., Tensor] = _SequenceNLL.apply
    return -apply(rows, head.weight, head.bias, head, by_reader, reader % count, count, chunk_bytes)


class _SequenceNLL(torch.autograd.Function):
    """Σ weight · nll by sequence, float64 [count]; of `hidden` [R, D] row r is read by sequence `owner[r]` alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        edges: Edges,
        owner: Tensor,
        count: int,
        chunk_bytes: int | None,
    ) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros(count, dtype=torch.float64, device=hidden.device)
        sweep = Sweep(hidden, head, edges, chunk_bytes)
        for rows, part in sweep.chunks:
            nll, grad = sweep.nll(rows, part, grad_hidden is not None)
            total.index_add_(0, owner[edges.row[part]], edges.weight[part] * nll)
            if grad is not None and grad_hidden is not None:
                torch.mm(sweep.narrow(grad), sweep.weight, out=grad_hidden[rows])
        head_is_trained = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(grad_hidden, owner, *((hidden, weight, bias) if head_is_trained else (None, None, None)))
        ctx.head, ctx.edges, ctx.chunk_bytes = head, edges, chunk_bytes
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, owner, hidden, weight, bias = ctx.saved_tensors
        factor = grad_total[owner]
        if grad_hidden is not None:
            wide = torch.promote_types(grad_hidden.dtype, torch.float32)
            grad_hidden = (grad_hidden * factor.to(wide)[:, None]).to(grad_hidden.dtype)
        grad_weight = grad_bias = None
        if hidden is not None:
            # The head's own gradient sums over rows, so the factors must be in it from the start: a second sweep.
            edges: Edges = ctx.edges
            scaled = replace(edges, weight=edges.weight * factor[edges.row])
            needs_weight, needs_bias = ctx.needs_input_grad[1:3]
            weight = weight.detach().requires_grad_(needs_weight)
            bias = None if bias is None else bias.detach().requires_grad_(needs_bias)
            again = replace(ctx.head, weight=weight, bias=bias)
            with torch.enable_grad():
                weighted_nll(hidden.detach(), again, scaled, ctx.chunk_bytes).backward()
            grad_weight, grad_bias = weight.grad, None if bias is None else bias.grad
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None
