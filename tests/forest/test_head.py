"""The head on loss rows against logits, softmax and cross-entropy written out in plain torch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tunewright.forest.head import CHUNK_BYTES, Edges, Head, edge_scores, usual_chunk_bytes, weighted_nll

ROWS, WIDTH, VOCABULARY = 7, 5, 11
ONE_ROW = 4 * VOCABULARY  # bytes of one row's float32 logits
CHUNKS = [1, ONE_ROW, 3 * ONE_ROW, 2**20]  # bytes: chunks of 1, 1, 3 and all rows

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "scale": {"scale": 0.25},
    "all": {"bias": True, "softcap": 1.5, "scale": 3.0},
}


def edges() -> Edges:
    """Several edges on one row, two with the same target, one of weight zero, and a row that no edge reads."""
    row = torch.tensor([0, 1, 1, 1, 2, 4, 5, 6, 6])
    target = torch.tensor([3, 0, 10, 0, 5, 5, 1, 2, 9])
    weight = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 3.0, 1.0, 0.25, 1.0], dtype=torch.float64)
    return Edges(row, target, weight, np.array([0, 1, 4, 5, 5, 6, 7, 9]))


def inputs(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, bias if HEADS[kind].get("bias") else None


def head(kind: str, weight: Tensor, bias: Tensor | None) -> Head:
    return Head(weight, bias, HEADS[kind].get("softcap"), HEADS[kind].get("scale", 1.0))


def plain_logits(kind: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap := HEADS[kind].get("softcap"):
        logits = softcap * torch.tanh(logits / softcap)
    return logits * HEADS[kind].get("scale", 1.0)


def plain_nll(kind: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = plain_logits(kind, hidden, weight, bias)[edges().row]
    return torch.nn.functional.cross_entropy(logits, edges().target, reduction="none")


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("kind", HEADS)
def test_value_and_gradients_are_those_of_plain_torch(kind: str, chunk_bytes: int) -> None:
    hidden, weight, bias = inputs(kind)
    wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    plain = (edges().weight * plain_nll(kind, hidden, weight, bias)).sum()
    fused = weighted_nll(hidden, head(kind, weight, bias), edges(), chunk_bytes)
    assert fused.dtype == torch.float64
    assert float(fused.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    # 1.7: what the loss is multiplied with afterwards must reach every gradient.
    expected = torch.autograd.grad(1.7 * plain, wanted)
    for actual, gradient in zip(torch.autograd.grad(1.7 * fused, wanted), expected, strict=True):
        assert torch.allclose(actual, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_gradcheck(kind: str) -> None:
    hidden, weight, bias = inputs(kind)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weighted_nll(hidden, head(kind, weight, bias), edges(), 2 * ONE_ROW)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_each_gradient_alone(trained: str) -> None:
    tensors = dict(zip(("hidden", "weight", "bias"), inputs("all"), strict=True))
    plain = (edges().weight * plain_nll("all", *tensors.values())).sum()
    (expected,) = torch.autograd.grad(plain, [tensors[trained]])
    only = {name: tensor.detach().requires_grad_(name == trained) for name, tensor in tensors.items()}
    weighted_nll(only["hidden"], head("all", only["weight"], only["bias"]), edges()).backward()
    assert torch.allclose(only[trained].grad, expected, rtol=1e-10)
    assert [name for name, tensor in only.items() if tensor.grad is not None] == [trained]


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_hidden_against_a_float32_head(kind: str) -> None:
    """The head computes in the hidden rows' type, sums in float32, and gives gradients in each tensor's own type."""
    exact = inputs(kind)
    expected = (edges().weight * plain_nll(kind, *exact)).sum()
    hidden = exact[0].detach().bfloat16().requires_grad_()
    weight = exact[1].detach().float().requires_grad_()
    bias = None if exact[2] is None else exact[2].detach().float().requires_grad_()
    found = weighted_nll(hidden, head(kind, weight, bias), edges())
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    found.backward()
    expected.backward()
    for actual, plain in zip((hidden, weight, bias), exact, strict=True):
        if actual is not None:
            assert actual.grad.dtype == actual.dtype
            error = (actual.grad.double() - plain.grad).norm() / plain.grad.norm()
            assert error < 0.03


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("kind", HEADS)
def test_edge_scores_are_cross_entropy_by_edge(kind: str, chunk_bytes: int) -> None:
    hidden, weight, bias = inputs(kind)
    nll, best = edge_scores(hidden, head(kind, weight, bias), edges(), chunk_bytes)
    assert nll.dtype == torch.float64
    assert torch.allclose(nll, plain_nll(kind, hidden, weight, bias).detach(), rtol=1e-12)
    assert torch.equal(best, plain_logits(kind, hidden, weight, bias)[edges().row].argmax(-1) == edges().target)
    assert not nll.requires_grad


def test_edge_scores_find_the_likeliest_token() -> None:
    hidden, weight, _ = inputs("plain")
    likeliest = (hidden @ weight.T).argmax(-1)
    every = Edges(torch.arange(ROWS), likeliest, torch.ones(ROWS, dtype=torch.float64), np.arange(ROWS + 1))
    assert bool(edge_scores(hidden, Head(weight), every, ONE_ROW)[1].all())


def test_no_edges_cost_nothing() -> None:
    hidden, weight, _ = inputs("plain")
    empty = [torch.zeros(0, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float64)]
    nothing = Edges(*empty, np.zeros(1, np.int64))
    loss = weighted_nll(hidden[:0], Head(weight), nothing)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not weight.grad.any()
    assert [len(part) for part in edge_scores(hidden[:0], Head(weight), nothing)] == [0, 0]


def test_a_chunk_is_256_rows_unless_the_vocabulary_is_large() -> None:
    assert usual_chunk_bytes(49_152) == 256 * 49_152 * 4
    assert usual_chunk_bytes(151_936) == CHUNK_BYTES < 256 * 151_936 * 4
