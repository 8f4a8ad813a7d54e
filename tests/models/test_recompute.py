"""Layers computed again in the backward: which, and that nothing but memory changes."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, JetMoeConfig, PreTrainedModel

from tests.tiny import random_sequences, tiny_model
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel
from tunewright.models.recompute import recompute_layers, switchable_layers

FAMILIES = ["llama", "qwen3", "mistral-window", "mixtral", "gemma2", "gemma3", "phi3", "glm4", "olmo2", "gpt2"]


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register_forest_attention()


def kept_by(model: PreTrainedModel, forest_model: ForestModel) -> tuple[int, list[Tensor]]:
    """How many tensors the forward saves in all, and loss and gradients."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 1
        return tensor

    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = forest_model.weighted_nll(build_forest(random_sequences(0)))
    loss.backward()
    return saved, [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_again_has_the_same_bits_and_is_not_kept(family: str) -> None:
    model = tiny_model(family, attention=FOREST_ATTENTION, fused=True)
    forest_model = ForestModel(model)
    assert len(switchable_layers(model)) == 2
    kept, expected = kept_by(model, forest_model)
    for which in (1, "full", 2):
        recompute_layers(model, which)
        fewer, actual = kept_by(model, forest_model)
        assert fewer < kept - 5 * (2 if which == "full" else int(which))
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    recompute_layers(model, "off")
    assert kept_by(model, forest_model)[0] == kept


def test_windows_are_proven_by_each_forward_alone() -> None:
    """Layers computed again ask for their windows again, in another order."""
    model = tiny_model("gemma2", attention=FOREST_ATTENTION)
    forest_model = ForestModel(model)
    recompute_layers(model, "full")
    model.train()
    layout = forest_model.layout(build_forest(random_sequences(0)))
    for _ in range(2):
        forest_model.hidden(layout).sum().backward()
        assert layout.windows == [4, None, None, 4]


def test_some_architectures_cannot() -> None:
    config = JetMoeConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, kv_channels=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert not switchable_layers(model)
