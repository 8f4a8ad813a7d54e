"""Log-probabilities by sequence against log-softmax written out, with gradients that differ by sequence."""

import pytest
import torch
from torch import Tensor

from tests.tiny import random_sequences, tiny_model
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.head import Edges, Head
from tunewright.forest.log_probs import sequence_log_probs
from tunewright.forest.model import ForestModel

ROWS, WIDTH, VOCABULARY, COUNT = 7, 5, 11, 4
ONE_ROW = 4 * VOCABULARY  # bytes of one row's float32 logits

# Row 1 is read by three sequences, not in their order, and twice by one of them; no edge reads row 3, and none is of
# sequence 2.
EDGES = Edges(
    torch.tensor([0, 1, 1, 1, 1, 2, 4, 5, 6, 6]),
    torch.tensor([3, 0, 10, 0, 7, 5, 5, 1, 2, 9]),
    torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 0.0, 3.0, 1.0, 0.25, 1.0], dtype=torch.float64),
)
SEQUENCE = torch.tensor([0, 3, 0, 1, 3, 0, 3, 1, 1, 0])
FACTORS = torch.tensor([1.7, -0.3, 5.0, 0.9], dtype=torch.float64)

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "all": {"bias": True, "softcap": 1.5, "scale": 3.0},
}


def inputs(kind: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Hidden rows, weight and, if the head has one, bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)][: 3 if HEADS[kind].get("bias") else 2]
    values = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [value.to(dtype).requires_grad_() for value in values]


def found(kind: str, hidden: Tensor, weight: Tensor, bias: Tensor | None = None, chunk: int = 2**20) -> Tensor:
    head = Head(weight, bias, HEADS[kind].get("softcap"), HEADS[kind].get("scale", 1.0))
    return sequence_log_probs(hidden, head, EDGES, SEQUENCE, COUNT, chunk)


def written_out(kind: str, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap := HEADS[kind].get("softcap"):
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = (logits * HEADS[kind].get("scale", 1.0)).log_softmax(-1)[EDGES.row, EDGES.target]
    return torch.zeros(COUNT, dtype=torch.float64).index_add(0, SEQUENCE, EDGES.weight * log_probs)


@pytest.mark.parametrize("chunk", [1, 3 * ONE_ROW, 2**20])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_are_those_of_plain_torch(kind: str, chunk: int) -> None:
    tensors = inputs(kind)
    actual, expected = found(kind, *tensors, chunk=chunk), written_out(kind, *tensors)
    assert actual.dtype == torch.float64
    assert torch.allclose(actual, expected, rtol=1e-12)
    assert float(actual[2].detach()) == 0
    gradients = torch.autograd.grad((FACTORS * expected).sum(), tensors)
    for one, other in zip(torch.autograd.grad((FACTORS * actual).sum(), tensors), gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_gradcheck(kind: str) -> None:
    assert torch.autograd.gradcheck(lambda *tensors: found(kind, *tensors, chunk=2 * ONE_ROW), inputs(kind))


@pytest.mark.parametrize("trained", range(3))
def test_each_gradient_alone(trained: int) -> None:
    tensors = inputs("all")
    (expected,) = torch.autograd.grad((FACTORS * written_out("all", *tensors)).sum(), [tensors[trained]])
    only = [tensor.detach().requires_grad_(place == trained) for place, tensor in enumerate(tensors)]
    (FACTORS * found("all", *only)).sum().backward()
    assert torch.allclose(only[trained].grad, expected, rtol=1e-10)
    assert [place for place, tensor in enumerate(only) if tensor.grad is not None] == [trained]


def test_bfloat16_rows_against_a_float32_head() -> None:
    exact = inputs("bias")
    expected = written_out("bias", *exact)
    rounded = [tensor.detach().to(torch.float32 if place else torch.bfloat16) for place, tensor in enumerate(exact)]
    actual = found("bias", *(tensor.requires_grad_() for tensor in rounded))
    assert torch.allclose(actual, expected, rtol=0.02)
    (FACTORS * actual).sum().backward()
    (FACTORS * expected).sum().backward()
    for tensor, plain in zip(rounded, exact, strict=True):
        assert tensor.grad.dtype == tensor.dtype
        assert float((tensor.grad.double() - plain.grad).norm() / plain.grad.norm()) < 0.03


def test_the_sum_over_sequences_is_the_loss_of_the_forest() -> None:
    register_forest_attention()
    model = ForestModel(tiny_model("gemma2", torch.float64, FOREST_ATTENTION, fused=True).eval())
    sequences = random_sequences(2)
    forest = build_forest(sequences)
    by_sequence = model.log_probs(model.layout(forest), len(sequences))
    assert by_sequence.shape == (len(sequences),)
    assert float(by_sequence.sum().detach()) == pytest.approx(-float(model.weighted_nll(forest).detach()), rel=1e-12)
