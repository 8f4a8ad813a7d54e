"""The `cpu` attention backend against the reference: values, gradients, groups of query heads, windows, autocast."""

import pytest
import torch
from torch import Tensor

from tests.forest.test_layout import long_sequences
from tests.tiny import encoded, random_sequences
from tunewright.forest import bucketed
from tunewright.forest.attention import forest_attention, reference_attention
from tunewright.forest.bucketed import bucketed_attention
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.layout import ForestLayout

CPU = torch.device("cpu")
SCALE = 0.4


def inputs(forest: Forest, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(heads, len(forest), width), (key_heads, len(forest), width), (key_heads, len(forest), width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def both(forest: Forest, tensors: list[Tensor], window: int | None) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the `cpu` backend and of the reference, under the same upstream gradient."""
    layout = ForestLayout(forest, CPU, "cpu")
    upstream = torch.randn(
        len(forest), tensors[0].shape[0], tensors[0].shape[2], generator=torch.Generator().manual_seed(2)
    )
    results = []
    for out in (
        bucketed_attention(*tensors, layout.buckets(window, tensors[0].dtype), SCALE),
        reference_attention(*tensors, layout, SCALE, window),
    ):
        gradients = torch.autograd.grad(out, tensors, upstream.to(out.dtype))
        results.append([out.detach(), *gradients])
    return results[0], results[1]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (3, 1)])
def test_gradcheck(heads: int, key_heads: int, window: int | None) -> None:
    sequences = [encoded(ids, [1.0] * len(ids)) for ids in ([5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 4, 4], [8, 8])]
    forest = build_forest(sequences)
    buckets = ForestLayout(forest, CPU, "cpu").buckets(window, torch.float64)
    tensors = inputs(forest, heads, key_heads, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda *each: bucketed_attention(*each, buckets, SCALE), tensors)


@pytest.mark.parametrize("window", [None, 3, 150])
@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (6, 2)])
def test_equals_the_reference_in_float64(heads: int, key_heads: int, window: int | None) -> None:
    for forest in (build_forest(random_sequences(0)), build_forest(long_sequences())):
        found, expected = both(forest, inputs(forest, heads, key_heads, 4, torch.float64), window)
        for actual, exact in zip(found, expected, strict=True):
            assert torch.allclose(actual, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_equals_the_reference_in_the_types_of_training(dtype: torch.dtype, limit: float) -> None:
    for forest in (build_forest(random_sequences(1)), build_forest(long_sequences())):
        found, expected = both(forest, inputs(forest, 4, 2, 8, dtype), None)
        for actual, exact in zip(found, expected, strict=True):
            assert actual.dtype == exact.dtype == dtype
            assert float((actual.double() - exact.double()).norm() / exact.double().norm()) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_probabilities_and_those_computed_anew_are_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    forest = build_forest(long_sequences())
    results = []
    for keys_per_row in (0, len(forest)):
        monkeypatch.setattr(bucketed, "KEPT_KEYS_PER_ROW", keys_per_row)
        results.append(both(forest, inputs(forest, 6, 2, 16, dtype), None)[0])
    assert all(torch.equal(kept, anew) for kept, anew in zip(*results, strict=True))


def test_one_token_sees_itself_alone() -> None:
    forest = build_forest([encoded([5], [1.0])])
    query, key, value = inputs(forest, 4, 2, 8, torch.float32)
    out = bucketed_attention(query, key, value, ForestLayout(forest, CPU, "cpu").buckets(None, query.dtype), SCALE)
    assert torch.allclose(out, value.repeat_interleave(2, dim=0).transpose(0, 1))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_autocast_leaves_the_scores_in_float32(backend: str) -> None:
    """Full tuning computes in bfloat16 by autocast; scores rounded to bfloat16 would not match their own backward."""
    forest = build_forest(long_sequences())
    layout = ForestLayout(forest, CPU, backend)
    tensors = [8 * tensor.detach() for tensor in inputs(forest, 4, 2, 8, torch.bfloat16)]
    results = []
    for autocast in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out, _ = forest_attention(torch.nn.Identity(), *(leaf[None] for leaf in leaves), None, forest=layout)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)
