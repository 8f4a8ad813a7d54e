"""How a model is called on a forest: the type of its hidden rows, and its head's settings."""

import pytest
import torch

from tests.tiny import random_sequences, tiny_config, tiny_model
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel, stated_windows


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_forest_attention()


@pytest.mark.parametrize("fused", [False, True])
def test_full_tuning_computes_the_head_in_the_type_of_the_arithmetic(fused: bool) -> None:
    """The last norm has float32 weights and so widens; the head would follow it to float32."""
    model = tiny_model("llama", torch.float32, FOREST_ATTENTION, fused=fused)
    forest_model, forest = ForestModel(model), build_forest(random_sequences(1))
    exact = torch.autograd.grad(forest_model.weighted_nll(forest), model.lm_head.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert forest_model.hidden(forest_model.layout(forest)).dtype == torch.bfloat16
        loss = forest_model.weighted_nll(forest)
    found = torch.autograd.grad(loss, model.lm_head.weight)[0]
    assert loss.dtype == found.dtype == torch.float32
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.03
    assert forest_model.hidden(forest_model.layout(forest)).dtype == torch.float32


def test_the_head_follows_the_weights_and_keeps_its_settings() -> None:
    model = tiny_model("gemma2", torch.float32, FOREST_ATTENTION)
    forest_model = ForestModel(model)
    assert forest_model.head.softcap == model.config.final_logit_softcapping == 30.0
    model.set_output_embeddings(torch.nn.Linear(32, 61, bias=False))
    assert forest_model.head.weight is model.get_output_embeddings().weight


def test_windows_that_a_config_states() -> None:
    def sizes(family: str, **settings: object) -> list[int | None]:
        return [size for _, size in stated_windows(tiny_config(family, **settings))]

    assert sizes("llama") == [None]
    assert sizes("mistral-window") == [5]
    assert sizes("mistral-window", sliding_window=512) == [None]  # as wide as the context
    assert sizes("qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1) == [None, 7]
    assert sizes("qwen2", use_sliding_window=False, sliding_window=7) == [None, None]
    assert sizes("gemma2") == [4, None]
