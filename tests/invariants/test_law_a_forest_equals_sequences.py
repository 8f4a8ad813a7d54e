"""Law (a): loss and every gradient of a forest equal those of one sequence at a time, in float64 to 1e-9.

Forests are computed by the model as training has it, with fused norms and blocks; sequences by transformers' own.

Law (b): no token influences a sequence that it is not in.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from tests.tiny import VOCABULARY, encoded, random_sequences, tiny_model, widen_norms
from tunewright.data.examples import Encoded
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest, group_by_budget
from tunewright.forest.layout import Backend
from tunewright.forest.model import ForestModel
from tunewright.forest.proof import _plain_nll
from tunewright.forest.score import score

FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral-window", "mixtral", "gemma2", "gemma3", "phi3", "glm4", "olmo2", "gpt2",
]  # fmt: skip


def plain_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one sequence in the inputs' own precision (transformers' eager softmax is float32)."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    length = query.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    hidden = (distance < 0) | (distance >= (sliding_window or length))
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (probabilities @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_forest_attention()
    AttentionInterface.register("plain_float64", plain_attention)


def plain_loss(model: PreTrainedModel, sequence: Encoded) -> Tensor:
    """Σ weight · nll of one sequence through the model's own forward and plain cross-entropy."""
    ids = torch.from_numpy(sequence.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return (nll * torch.from_numpy(sequence.weights[1:]).to(nll.dtype)).sum()


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(family: str, sequences: list[Encoded], dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    model = tiny_model(family, dtype, "plain_float64").eval()
    total = 0.0
    for sequence in sequences:
        loss = plain_loss(model, sequence)
        if loss.requires_grad and len(sequence) > 1:
            loss.backward()
        total += loss.item()
    return total, gradients(model)


def on_forest(
    family: str, sequences: list[Encoded], dtype: torch.dtype, backend: Backend, budget: int
) -> tuple[float, dict[str, Tensor]]:
    model = tiny_model(family, dtype, FOREST_ATTENTION, fused=True).eval()
    forest_model = ForestModel(model, backend)
    total = 0.0
    for group in group_by_budget(sequences, budget):
        loss = forest_model.weighted_nll(build_forest([sequences[index] for index in group]))
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_same(
    actual: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], rtol: float
) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=rtol)
    scale = max(float(g.abs().max()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        assert torch.allclose(actual[1][name], gradient, rtol=rtol, atol=rtol * scale), name


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_in_float64(family: str, backend: Backend) -> None:
    for seed in range(3):
        sequences = random_sequences(seed)
        expected = reference(family, sequences, torch.float64)
        for budget in (10**6, 30):
            # Mixtral's router is float32 inside transformers.
            rtol = 1e-6 if family == "mixtral" else 1e-9
            assert_same(on_forest(family, sequences, torch.float64, backend, budget), expected, rtol)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_by_sequence_in_float64(family: str, backend: Backend) -> None:
    """What each sequence counts is known after the forward only, as in objectives on pairs: here it is its square."""
    rtol = 1e-6 if family == "mixtral" else 1e-9  # as above
    for seed in range(2):
        sequences = random_sequences(seed)
        plain = tiny_model(family, torch.float64, "plain_float64").eval()
        one_by_one = torch.stack([-plain_loss(plain, one) for one in sequences])
        one_by_one.square().sum().backward()
        model = tiny_model(family, torch.float64, FOREST_ATTENTION, fused=True).eval()
        forest_model = ForestModel(model, backend)
        together = forest_model.log_probs(forest_model.layout(build_forest(sequences)), len(sequences))
        together.square().sum().backward()
        assert torch.allclose(together, one_by_one, rtol=rtol, atol=0)
        assert_same((0.0, gradients(model)), (0.0, gradients(plain)), rtol)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma2"])
def test_flex_in_float64(family: str) -> None:
    """Its masks and soft caps, by the operator that is compiled on CUDA; traced anew in each call, so one forest."""
    sequences = random_sequences(1)
    expected = reference(family, sequences, torch.float64)
    assert_same(on_forest(family, sequences, torch.float64, "flex", 10**6), expected, 1e-9)


def test_long_segments_and_many_branches() -> None:
    """Segments longer than a block of queries, and a root with a hundred children."""
    rng = np.random.default_rng(5)
    trunk = rng.integers(3, VOCABULARY, 150).tolist()
    sequences = [
        encoded(
            trunk + (tail := rng.integers(3, VOCABULARY, rng.integers(1, 200 if k < 3 else 6)).tolist()),
            [0.0] * 150 + [1.0] * len(tail),
        )
        for k in range(60)
    ]
    assert_same(
        on_forest("llama", sequences, torch.float64, "cpu", 10**6), reference("llama", sequences, torch.float64), 1e-9
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma3", "phi3"])
def test_bfloat16_within_its_rounding(family: str) -> None:
    """Neither a forest nor one sequence at a time is exact in bfloat16; the forest must not be further off."""
    sequences = [one for seed in range(3) for one in random_sequences(seed, longest=60, alphabet=50)]
    plain, ours = (
        tiny_model(family, torch.bfloat16, name, fused=fused).eval()
        for name, fused in (("eager", False), (FOREST_ATTENTION, True))
    )
    exact = tiny_model(family, torch.bfloat16, "plain_float64").eval().double()
    widen_norms(exact)
    sum(plain_loss(exact, one) for one in sequences).backward()
    sum(plain_loss(plain, one) for one in sequences).backward()
    ForestModel(ours).weighted_nll(build_forest(sequences)).backward()

    def error(model: PreTrainedModel) -> float:
        expected = torch.cat([gradient.flatten() for gradient in gradients(exact).values()])
        found = torch.cat([gradient.flatten().double() for gradient in gradients(model).values()])
        return float((found - expected).norm() / expected.norm())

    assert 0 < error(ours) < 1.1 * error(plain) < 0.2

    wanted = [dataclasses.replace(one, weights=np.ones_like(one.weights)) for one in sequences]
    truth = _plain_nll(exact, wanted)
    by_sequence = _plain_nll(plain, wanted)
    on_forest = score(ours, wanted, 10**6).nll
    assert rms(on_forest - truth) < 1.1 * rms(by_sequence - truth)


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.square(errors).mean()))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma2", "phi3", "gpt2"])
def test_no_token_influences_a_sequence_it_is_not_in(family: str) -> None:
    """Law (b), bitwise on the reference backend: change one token, and only rows that see it may change."""
    model = ForestModel(tiny_model(family, torch.float32, FOREST_ATTENTION, fused=True).eval(), "reference")
    forest = build_forest(random_sequences(3))
    with torch.no_grad():
        before = model.hidden(model.layout(forest))
        for row in range(len(forest)):
            ids = forest.input_ids.copy()
            ids[row] = (ids[row] + 1) % VOCABULARY
            layout = model.layout(dataclasses.replace(forest, input_ids=ids))
            after = model.hidden(layout)
            sees = layout.dense_mask()[:, row]
            assert torch.equal(after[~sees], before[~sees]), row
            assert not torch.equal(after[row], before[row])
