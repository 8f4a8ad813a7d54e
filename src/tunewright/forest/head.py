"""The output head on loss rows only: weighted negative log-likelihood in chunks, without logits in memory.

Logits exist for one chunk of rows at a time. Because the loss is the last thing computed, its gradient
with respect to the hidden rows is computed in the same sweep (two matrix products where a recomputing
head needs three), and the head's own weight gradient only when the head is trained. The idea of fusing
head and loss is that of Cut Cross-Entropy (arXiv 2411.09009) and Liger-Kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows enough for fast matrix products, and few enough that their logits pass through the caches; but no more bytes of
# float32 logits than these, whatever the vocabulary.
CHUNK_ROWS = 256
CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Head:
    """Logits are `softcap(hidden @ weight.T + bias) * scale`, with weight [V, D], bias [V] or None."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Edges:
    """Loss edges by row: edge e reads loss row `row[e]` and predicts `target[e]` (int64), `weight` is float64.

    Those of loss row r are `begin[r]` to `begin[r + 1]`; NumPy, so that to cut them waits for no device.
    """

    row: Tensor
    target: Tensor
    weight: Tensor
    begin: np.ndarray


def weighted_nll(hidden: Tensor, head: Head, edges: Edges, chunk_bytes: int | None = None) -> Tensor:
    """Σ weight · nll over all edges, a scalar in float32 (float64 for float64 inputs). `hidden` is [R, D]."""
    apply: Callable[..., Tensor] = _WeightedNLL.apply
    return apply(hidden, head.weight, head.bias, head, edges, chunk_bytes)


def usual_chunk_bytes(vocabulary: int) -> int:
    """Bytes that the float32 logits of one chunk take when nothing else is said."""
    return min(CHUNK_BYTES, 4 * vocabulary * CHUNK_ROWS)


@torch.no_grad()
def edge_scores(hidden: Tensor, head: Head, edges: Edges, chunk_bytes: int | None = None) -> tuple[Tensor, Tensor]:
    """For each edge its nll (float64 [E]) and whether its target is the likeliest token (bool [E])."""
    nll = torch.empty(len(edges.row), dtype=torch.float64, device=hidden.device)
    best = torch.empty(len(edges.row), dtype=torch.bool, device=hidden.device)
    sweep = Sweep(hidden, head, edges, chunk_bytes)
    for rows, part in sweep.chunks:
        logits, _ = sweep.logits(rows)
        local, target = edges.row[part] - rows.start, edges.target[part]
        best[part] = logits.argmax(dim=-1)[local] == target
        chosen = logits[local, target]
        nll[part] = (sweep.softmax_(logits)[local] - chosen).double()
    return nll, best


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, edges: Edges, chunk_bytes: int | None
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needs_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs_bias else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        sweep = Sweep(hidden, head, edges, chunk_bytes)
        for rows, part in sweep.chunks:
            nll, grad = sweep.nll(rows, part, needs_hidden or needs_weight or needs_bias)
            total += (edges.weight[part] * nll).sum()
            if grad is None:
                continue
            narrow = sweep.narrow(grad)
            if grad_hidden is not None:
                torch.mm(narrow, sweep.weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += narrow.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden is None else hidden * grad_total.to(hidden.dtype),
            None if weight is None else (weight * grad_total).to(weight_dtype),
            None if bias is None else (bias * grad_total).to(bias_dtype),
            None,
            None,
            None,
        )


class Sweep:
    """The chunks of one pass over the loss rows, and the buffers they share.

    Buffers as large as these come from fresh pages each time they are allocated, and touching those
    costs more than the arithmetic done in them.
    """

    def __init__(self, hidden: Tensor, head: Head, edges: Edges, chunk_bytes: int | None) -> None:
        self.hidden, self.head, self.edges = hidden, head, edges
        self.weight = head.weight.to(hidden.dtype)
        self.chunks = _chunks(len(hidden), len(self.weight), edges, chunk_bytes or usual_chunk_bytes(len(self.weight)))
        size = max((rows.stop - rows.start for rows, _ in self.chunks), default=0), len(self.weight)
        self._product = torch.empty(size, dtype=hidden.dtype, device=hidden.device)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self._logits = self._product if wide == hidden.dtype else torch.empty(size, dtype=wide, device=hidden.device)

    def nll(self, rows: slice, part: slice, differentiate: bool) -> tuple[Tensor, Tensor | None]:
        """Of one chunk the nll of each edge, float64 [e], and if wanted d(Σ weight · nll)/d(matrix product), [r, V].

        The gradient is float32 (float64) and stands in a buffer that the next chunk overwrites.
        """
        edges = self.edges
        logits, slope = self.logits(rows)
        local, target, edge_weight = edges.row[part] - rows.start, edges.target[part], edges.weight[part]
        chosen = logits[local, target]
        nll = (self.softmax_(logits)[local] - chosen).double()
        if not differentiate:
            return nll, None
        grad = logits
        # d/dlogits of Σ w·nll is (Σ w) softmax - Σ w onehot, row by row.
        row_weight = torch.zeros(len(grad), dtype=grad.dtype, device=grad.device)
        row_weight.index_add_(0, local, edge_weight.to(grad.dtype))
        grad.mul_(row_weight[:, None])
        grad.index_put_((local, target), -edge_weight.to(grad.dtype), accumulate=True)
        return nll, grad if slope is None else grad.mul_(slope)

    def logits(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Logits [r, V] in float32 (float64), and their derivative by the matrix product's output where it is not 1."""
        head, hidden = self.head, self.hidden[rows]
        product, logits = self._product[: len(hidden)], self._logits[: len(hidden)]
        torch.mm(hidden, self.weight.T, out=product)
        if logits is not product:
            logits.copy_(product)
        if head.bias is not None:
            logits += head.bias
        slope = None
        if head.softcap is not None:
            logits.div_(head.softcap).tanh_()
            slope = logits.square().neg_().add_(1).mul_(head.scale)
            logits.mul_(head.softcap)
        elif head.scale != 1:
            slope = torch.full((1, 1), head.scale, dtype=logits.dtype, device=logits.device)
        return logits.mul_(head.scale) if head.scale != 1 else logits, slope

    def softmax_(self, logits: Tensor) -> Tensor:
        """Write probabilities over the logits [r, V]; the log of the sum of exponentials [r].

        The sum follows from the likeliest token, whose probability is never tiny: on a CPU the softmax of
        torch computes exponentials several times faster than its logsumexp.
        """
        most = logits.amax(dim=-1)
        torch.softmax(logits, dim=-1, out=logits)
        return most - logits.amax(dim=-1).log()

    def narrow(self, grad: Tensor) -> Tensor:
        """`grad` in the type of the matrix products, written over the product of this chunk's forward."""
        if self._logits is self._product:
            return grad
        return self._product[: len(grad)].copy_(grad)


def _chunks(num_rows: int, vocabulary: int, edges: Edges, chunk_bytes: int) -> list[tuple[slice, slice]]:
    """Slices of rows, each with the slice of edges that read them (edges are sorted by row)."""
    size = max(1, chunk_bytes // (4 * vocabulary))
    starts = list(range(0, num_rows, size))
    bounds = edges.begin[[*starts, num_rows]].tolist()
    return [
        (slice(start, min(start + size, num_rows)), slice(first, last))
        for start, first, last in zip(starts, bounds, bounds[1:], strict=False)
    ]
