"""Fused attention and the last layer for loss rows alone give transformers' answers, and stand only where these do."""

import functools
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.glm4.modeling_glm4 import Glm4Attention, Glm4DecoderLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    apply_rotary_pos_emb,
    rotate_half,
)
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from tests.tiny import encoded, random_sequences, tiny_config, tiny_model
from tunewright.config.schema import LoraConfig
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel
from tunewright.models.adapters import add_lora
from tunewright.models.alike import computes_like
from tunewright.models.fused_attention import FusedAttention, _Rotary, fuse_attention
from tunewright.models.fused_last import FusedLastLayer, fuse_last_layer

# Attention layers and last layers that are fused. Mixtral's decoder counts experts, GLM turns neighbours instead of
# halves, Gemma's attention and Phi-3's are others.
FUSED = {
    "llama": (2, 1), "qwen2": (2, 1), "qwen3": (2, 1), "mistral-window": (2, 1), "mixtral": (2, 0), "phi3": (0, 0),
    "gemma2": (0, 0), "glm4": (0, 0), "olmo2": (0, 0), "gpt2": (0, 0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_forest_attention()


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def angles(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin as transformers gives them, [1, T, d]."""
    each = torch.arange(rows)[:, None] * 0.7 ** torch.arange(width // 2)
    both = torch.cat([each, each], dim=-1)[None].double()
    return both.cos().to(dtype), both.sin().to(dtype)


def turned(dtype: torch.dtype, angle_dtype: torch.dtype, fused: bool) -> list[Tensor]:
    """Queries and keys [1, T, heads, d] turned, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 40, 6, 16), (1, 40, 2, 16)
    query, key, *upstream = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes * 2)
    query, key = (each.to(dtype).requires_grad_() for each in (query, key))
    cos, sin = angles(40, 16, angle_dtype)
    if fused:
        out = _Rotary.apply(query, key, cos[:, :, None], sin[:, :, None])
    else:
        out = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    gradients = torch.autograd.grad(out, [query, key], [g.to(o.dtype) for g, o in zip(upstream, out, strict=True)])
    return [*out, *gradients]


def test_gradcheck() -> None:
    query, key = (torch.randn(1, 3, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    # Unlike what transformers gives, both halves differ here: the backward must not mistake one for the other.
    cos, sin = torch.randn(2, 1, 3, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *each: _Rotary.apply(*each, cos, sin), (query, key))


def test_rotary_equals_transformers() -> None:
    for ours, theirs in zip(
        turned(torch.float32, torch.float32, True), turned(torch.float32, torch.float32, False), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("angle_dtype", [torch.bfloat16, torch.float32])  # float32: as under autocast
def test_rotary_in_bfloat16_is_as_near_to_float64_as_transformers(angle_dtype: torch.dtype) -> None:
    truth = turned(torch.float64, torch.float64, False)
    found = [turned(torch.bfloat16, angle_dtype, fused) for fused in (True, False)]
    for exact, ours, theirs in zip(truth, *found, strict=True):
        assert ours.dtype == theirs.dtype
        assert distance(ours, exact) < 1.2 * distance(theirs, exact) + 1e-6


# Where it stands


@pytest.mark.parametrize("family", list(FUSED))
def test_it_stands_where_it_computes_the_same(family: str) -> None:
    """Also notices when transformers changes what the fused forms stand for: then they would stand nowhere."""
    model = tiny_model(family, attention="eager").eval()
    ids = torch.arange(3, 11)[None]
    names, before = list(model.state_dict()), model(ids).logits
    assert (fuse_attention(model), fuse_last_layer(model.get_decoder())) == FUSED[family]
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, before)  # without a forest the plain forward runs
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    cached, anew = (model.generate(**prompt, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(cached, anew)


def test_functions_under_one_name_are_told_apart() -> None:
    glm = Glm4Attention(tiny_config("glm4"), 0)
    assert glm.forward.__code__.co_code == LlamaAttention.forward.__code__.co_code
    assert not computes_like(glm, LlamaAttention)
    assert rotate_half.__name__ == Glm4Attention.forward.__globals__["rotate_half"].__name__


def test_what_is_wrapped_alike_is_told_apart() -> None:
    """transformers wraps the forward of every layer in the same function, and that of every decoder in another."""
    glm = Glm4DecoderLayer(tiny_config("glm4"), 0)
    assert glm.forward.__code__ is LlamaDecoderLayer.forward.__code__
    assert not computes_like(glm, LlamaDecoderLayer)
    assert computes_like(MistralDecoderLayer(tiny_config("mistral-window"), 0), LlamaDecoderLayer)
    assert not computes_like(LlamaModel(tiny_config("llama")), Qwen2Model)


# On forests


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral-window"])
def test_losses_and_gradients_of_adapters_are_those_of_plain_layers(family: str, backend: Any) -> None:
    forest = build_forest(random_sequences(1, longest=40))
    results = []
    for fused in (False, True):
        model = add_lora(tiny_model(family, attention=FOREST_ATTENTION, fused=fused), LoraConfig(rank=3), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1, generator=generator)
        loss = ForestModel(model, backend).weighted_nll(forest)
        results.append((loss.detach(), gradients(model, loss)))
    (plain_loss, plain), (fused_loss, ours) = results
    assert float(fused_loss) == pytest.approx(float(plain_loss), rel=1e-5)
    assert ours.keys() == plain.keys()
    assert len(ours) == 2 * 7 * 2
    scale = max(float(each.norm()) for each in plain.values())
    for name, gradient in plain.items():
        assert float((ours[name] - gradient).norm()) < 1e-5 * max(scale, float(gradient.norm())), name


def seen_rows(model: PreTrainedModel) -> list[int]:
    """Rows that each feed-forward block and the final norm are given, filled as the model runs."""
    rows: list[int] = []
    decoder = model.get_decoder()
    for module in [layer.mlp for layer in decoder.layers] + [decoder.norm]:
        module.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    return rows


@pytest.mark.parametrize("recompute", [False, True])
def test_the_last_layer_computes_loss_rows_alone(recompute: bool) -> None:
    model = tiny_model("llama", attention=FOREST_ATTENTION, fused=True).train()
    last = model.get_decoder().layers[-1]
    assert isinstance(last, FusedLastLayer)
    assert isinstance(last.self_attn, FusedAttention)
    forest_model = ForestModel(model)
    forest = build_forest(random_sequences(1))
    layout = forest_model.layout(forest)
    every = forest_model.hidden(layout)[layout.loss_rows]
    expected = gradients(model, every.sin().sum())
    rows = seen_rows(model)
    if recompute:
        for layer in model.get_decoder().layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    wanted = forest_model.loss_hidden(layout)
    assert rows == [len(forest), len(layout.loss_rows), len(layout.loss_rows)]
    assert len(layout.loss_rows) < len(forest)
    assert distance(wanted, every) < 1e-6
    found = gradients(model, wanted.sin().sum())
    assert rows[3:] == ([len(layout.loss_rows), len(forest)] if recompute else [])
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5), name


def test_all_rows_can_be_asked_for_again() -> None:
    forest_model = ForestModel(tiny_model("llama", attention=FOREST_ATTENTION, fused=True))
    layout = forest_model.layout(build_forest(random_sequences(1)))
    assert len(forest_model.loss_hidden(layout)) == len(layout.loss_rows)
    assert len(forest_model.hidden(layout)) == len(layout.forest)


def test_a_forest_without_a_loss_gives_zero_gradients() -> None:
    model = tiny_model("llama", attention=FOREST_ATTENTION, fused=True)
    loss = ForestModel(model).weighted_nll(build_forest([encoded([5, 6, 7], [0.0] * 3)]))
    assert float(loss.detach()) == 0
    assert not any(gradient.any() for gradient in gradients(model, loss).values())


def test_nothing_below_the_first_trained_layer_gets_gradients() -> None:
    """And nothing is kept there for a backward that will not come."""
    model = tiny_model("llama", attention=FOREST_ATTENTION, fused=True)
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern="layers"
    )
    adapted = peft.get_peft_model(model, settings)
    first, second = model.get_decoder().layers
    needs: list[bool] = []
    first.register_forward_hook(lambda _, args, out: needs.append(out.requires_grad))
    second.register_forward_hook(lambda _, args, out: needs.append(out.requires_grad))
    ForestModel(adapted).weighted_nll(build_forest(random_sequences(1))).backward()
    assert needs == [False, True]
    assert any(p.grad is not None for p in second.parameters())
