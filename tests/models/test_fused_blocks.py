"""Fused norms and feed-forward blocks equal transformers' own, and only stand where these compute the same."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from tests.tiny import tiny_config, tiny_model
from tunewright.models.alike import computes_like
from tunewright.models.fused import Fused, fuse_blocks
from tunewright.models.fused_mlp import FusedFeedForward, _GatedSilu, fuse_feed_forward
from tunewright.models.fused_norm import FusedRMSNorm, _RMSNorm, fuse_norms

# Norms a layer (Qwen3 has two more, on queries and keys), and blocks a layer. Gemma's norms add one to the weight
# and its block has another activation.
FUSED = {"llama": (2, 1), "qwen2": (2, 1), "qwen3": (4, 1), "mistral-window": (2, 1), "gemma2": (0, 0)}


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the weights."""
    x = x.clone().requires_grad_()
    out = module(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], upstream)]


def pair(kind: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Tensor]:
    """transformers' module, the fused one with the same weights, and an input."""
    torch.manual_seed(0)
    config = tiny_config("llama")
    plain: nn.Module
    if kind == "norm":
        plain = LlamaRMSNorm(config.hidden_size, 1e-3)
        nn.init.normal_(plain.weight, 1.0, 0.5)
    else:
        plain = LlamaMLP(config)
    holder = nn.Sequential(copy.deepcopy(plain))
    assert fuse_norms(holder) + fuse_feed_forward(holder) == 1
    x = torch.randn(2, 9, config.hidden_size, dtype=torch.float64) * 3
    return plain.to(dtype), holder[0].to(dtype), x.to(dtype)


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kind", ["norm", "feed-forward"])
def test_equals_transformers_in_float32(kind: str) -> None:
    plain, fused, x = pair(kind, torch.float32)
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for ours, theirs in zip(run(fused, x), run(plain, x), strict=True):
        assert ours.dtype == theirs.dtype
        assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("kind", ["norm", "feed-forward"])
def test_bfloat16_is_as_near_to_float32_as_transformers(kind: str) -> None:
    plain, fused, x = pair(kind, torch.bfloat16)
    truth = run(copy.deepcopy(plain).float(), x.float())
    for exact, ours, theirs in zip(truth, run(fused, x), run(plain, x), strict=True):
        assert ours.dtype == theirs.dtype
        assert distance(ours, exact) < 1.5 * distance(theirs, exact) + 2**-9


def test_gradcheck() -> None:
    torch.manual_seed(1)
    x, gate = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *each: _RMSNorm.apply(*each, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(_GatedSilu.apply, (gate, x))


def test_frozen_weights_cost_no_gradient() -> None:
    _, fused, x = pair("norm", torch.float32)
    fused.requires_grad_(False)
    x.requires_grad_()
    fused(x).sum().backward()
    assert x.grad is not None
    assert fused.weight.grad is None


@pytest.mark.parametrize("family", list(FUSED))
def test_models_keep_their_answers_and_names(family: str) -> None:
    """Also notices when transformers changes what the fused forms stand for: then they would stand nowhere."""
    model = tiny_model(family, attention="eager")
    ids = torch.arange(3, 11)[None]
    names, before = list(model.state_dict()), model(ids).logits
    layers = model.config.num_hidden_layers
    norms, blocks = FUSED[family]
    assert fuse_norms(model) == (norms * layers + 1 if norms else 0)
    assert fuse_feed_forward(model) == blocks * layers
    assert list(model.state_dict()) == names
    assert distance(model(ids).logits, before) < 1e-5


def test_other_computations_stay() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) + 1

    class Renamed(LlamaRMSNorm):
        pass

    assert computes_like(Renamed(4), LlamaRMSNorm)
    assert not computes_like(Shifted(4), LlamaRMSNorm)
    gelu = LlamaMLP(tiny_config("llama"))
    gelu.act_fn = nn.GELU()
    model = nn.Sequential(Shifted(4), gelu)
    assert fuse_norms(model) == fuse_feed_forward(model) == 0
    assert not any(isinstance(module, (FusedRMSNorm, FusedFeedForward)) for module in model.modules())


def test_the_built_in_models_family_is_fused_completely() -> None:
    """Its speed and memory rest on it; should transformers change the blocks, this is where it shows."""
    model = tiny_model("llama")
    assert fuse_blocks(model) == Fused(norms=5, feed_forward=2, attention=2, last_layer=1)
    left = {type(module).__name__ for module in model.modules()}
    assert not left & {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}
