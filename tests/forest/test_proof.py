"""The start-up proof lets through what follows the forest, and refuses what does not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, PreTrainedConfig, PreTrainedModel

from tests.tiny import random_sequences, tiny_config, tiny_model
from tunewright.config.schema import LoraConfig
from tunewright.engine.activations import DecoderMemory
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel
from tunewright.forest.proof import _plain_nll, prove_forest
from tunewright.models.adapters import add_lora

FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral-window", "mixtral", "gemma2", "gemma3", "phi3", "glm4", "olmo2", "gpt2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_forest_attention()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_pass(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype, FOREST_ATTENTION, fused=True)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    prove_forest(model)
    assert model.training
    assert model.config._attn_implementation == FOREST_ATTENTION
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_under_adapters_passes() -> None:
    plain = tiny_model("llama", torch.float32, FOREST_ATTENTION)
    tuned = add_lora(plain, LoraConfig(), seed=1)
    prove_forest(tuned.get_base_model())


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_do_not_depend_on_the_sequences_beside(family: str) -> None:
    """All plain losses come from one padded pass; eager attention rounds its scores to float32."""
    model = tiny_model(family, torch.float64, FOREST_ATTENTION)
    sequences = [one for one in random_sequences(3) if len(one) > 1]
    assert len({len(one) for one in sequences}) > 2
    together = _plain_nll(model, sequences)
    apart = np.concatenate([_plain_nll(model, [one]) for one in sequences])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5)


class Causal(torch.nn.Module):
    """Attention of its own: causal over the rows as they lie, whatever the forest says."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        heads = (*hidden_states.shape[:-1], -1, self.layer.head_dim)
        key, value = (
            projection(hidden_states).view(heads).transpose(1, 2).repeat_interleave(2, dim=1)
            for projection in (self.layer.k_proj, self.layer.v_proj)
        )
        query = self.layer.q_proj(hidden_states).view(heads).transpose(1, 2)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.layer.o_proj(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_ignores_the_forest_is_refused(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype, FOREST_ATTENTION)
    for layer in model.model.layers:
        layer.self_attn = Causal(layer.self_attn)
    with pytest.raises(UsageError, match="llama models can't be trained .* do not follow the token forest"):
        prove_forest(model)


def test_a_layer_that_mixes_neighbouring_rows_is_refused() -> None:
    """As the convolutions of state-space layers do."""
    model = tiny_model("llama", torch.float32, FOREST_ATTENTION)
    shift = torch.nn.Identity()
    shift.register_forward_hook(lambda module, inputs, output: output + output.roll(1, dims=1))
    norm = model.model.layers[1].post_attention_layernorm
    model.model.layers[1].post_attention_layernorm = torch.nn.Sequential(shift, norm)
    with pytest.raises(UsageError, match="do not follow the token forest"):
        prove_forest(model)


def test_positions_by_row_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that numbers rows itself and takes no positions."""
    model = tiny_model("llama", torch.float32, FOREST_ATTENTION)
    forward = model.model.forward

    def by_row(input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return forward(input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **kwargs)

    monkeypatch.setattr(model.model, "forward", by_row)
    with pytest.raises(UsageError, match="do not follow the token forest"):
        prove_forest(model)


def test_not_a_number_is_refused() -> None:
    model = tiny_model("llama", torch.float32, FOREST_ATTENTION)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UsageError, match="by nan"):
        prove_forest(model)


def built(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=FOREST_ATTENTION)
    return model


def named(kind: str, **settings: Any) -> PreTrainedConfig:
    """A tiny config of any architecture."""
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    shape = tiny_config("llama", **experts, shared_expert_intermediate_size=16).to_dict()
    del shape["model_type"], shape["architectures"], shape["rope_parameters"]
    return AutoConfig.for_model(kind, **{**shape, **settings})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("qwen2_moe", {"use_sliding_window": True, "sliding_window": 200}), ("phimoe", {"sliding_window": 200})],
)
def test_a_window_that_only_the_mask_knows_is_refused(kind: str, settings: dict[str, Any]) -> None:
    """No path of the proof is that long; that attention is not asked for the window is enough."""
    with pytest.raises(UsageError, match=f"{kind} models can't be trained .*sliding_window 200 of config.json"):
        prove_forest(built(named(kind, **settings)))
    prove_forest(built(named(kind, **{**settings, "sliding_window": 512})))  # as wide as the context


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_of_another_width_is_refused(dtype: torch.dtype) -> None:
    """A path longer than the window shows it."""
    model = tiny_model("gemma3", dtype, FOREST_ATTENTION)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 400
    with pytest.raises(UsageError, match="do not follow the token forest"):
        prove_forest(model)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nemotron", "the forest does not reach their attention"),
        ("llama4_text", "cannot be told from their output layer"),
        ("modernbert-decoder", "cannot be told from their output layer"),
    ],
)
def test_what_the_first_forest_shows_is_said_by_the_plan_too(kind: str, reason: str) -> None:
    """On empty tensors, before a run folder is made."""
    config = named(kind)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, attn_implementation=FOREST_ATTENTION)
    forest = build_forest(random_sequences(0))

    def planned() -> None:
        DecoderMemory(empty, forest, None).recomputing(0)

    for attempt in (lambda: prove_forest(built(config)), planned):
        with pytest.raises(UsageError, match=f"{kind} models can't be trained by this version.*{reason}"):
            attempt()


def test_a_text_model_within_another_passes() -> None:
    """Gemma 3 of 4B and more: what is asked of the config stands in its text part."""
    text = tiny_config("gemma3", initializer_range=0.2).to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes = {"image_size": 28, "patch_size": 14}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    model = built(Gemma3Config(text_config=text, vision_config={**vision, **sizes}, **tokens))
    prove_forest(model)
    forest_model = ForestModel(model)
    layout = forest_model.layout(build_forest(random_sequences(0, longest=40)))
    forest_model.hidden(layout)
    assert layout.windows == [4, 4]


def test_an_output_layer_of_another_kind_is_refused() -> None:
    model = tiny_model("llama", torch.float32, FOREST_ATTENTION)
    model.set_output_embeddings(torch.nn.Sequential(model.lm_head))
    with pytest.raises(UsageError, match="output layer is not a linear one"):
        ForestModel(model)
