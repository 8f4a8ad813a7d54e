"""The start-up proof lets through what follows the forest, and refuses what does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_model
from tunewright.config.schema import LoraConfig
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.proof import prove_forest
from tunewright.models.adapters import add_lora

FAMILIES = ["llama", "qwen2", "qwen3", "mistral-window", "mixtral", "gemma2", "gemma3"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_forest_attention()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_pass(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype, FOREST_ATTENTION)
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
