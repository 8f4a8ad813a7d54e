"""What is counted on empty tensors, and for deep models told from few layers, is what real passes hold."""

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny import random_sequences, tiny_config
from tunewright.config.schema import LoraConfig
from tunewright.engine.activations import DecoderMemory, StepMemory, _Ledger
from tunewright.engine.tunings import Tuned, trainable
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel, plain_model
from tunewright.models.adapters import add_lora
from tunewright.models.fused import fuse_blocks
from tunewright.models.recompute import recompute_layers

FOREST = build_forest(random_sequences(0, count=30, longest=60, alphabet=20))


def made(device: str, family: str, layers: int, tuning: str) -> Tuned:
    register_forest_attention()
    depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": layers}
    with torch.device(device):
        config = tiny_config(family, **depth)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=FOREST_ATTENTION)
    model.tie_weights()
    fuse_blocks(model)
    return add_lora(model, LoraConfig(rank=4), 0) if tuning == "lora" else model


def really(model: Tuned, recomputed: int, autocast: bool) -> StepMemory:
    """The ledger on a real pass of a whole model."""
    recompute_layers(plain_model(model), recomputed)
    model.train()

    def forget(parameter: Any) -> None:
        parameter.grad = None

    for _, parameter in trainable(model):
        parameter.register_post_accumulate_grad_hook(forget)
    forest_model = ForestModel(model, backend="cpu")
    with _Ledger() as ledger:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layout = forest_model.layout(FOREST)
            rows = forest_model.loss_hidden(layout)
        (forward,) = ledger.take()
        rows.backward(torch.empty_like(rows))
        (backward,) = ledger.take()
    return StepMemory(forward.growth, forward.most, forward.growth + backward.most)


def _narrowed(model: Tuned) -> int:
    """Bytes of the decoder's linear weights in bfloat16."""
    decoder = plain_model(model).get_decoder()
    return sum(2 * layer.weight.numel() for layer in decoder.modules() if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize(
    ("family", "tuning", "autocast"),
    [("llama", "lora", False), ("llama", "full", False), ("llama", "full", True), ("gemma2", "lora", False)],
)
def test_any_number_of_layers_may_be_computed_again(family: str, tuning: str, autocast: bool) -> None:
    layers = 10
    counted = DecoderMemory(made("meta", family, layers, tuning), FOREST, torch.bfloat16 if autocast else None)
    assert counted.layers == layers
    index_tables = 0  # tensors that share NumPy's memory, which the ledger does not see on a real pass
    for recomputed in (0, 4, layers):
        memory = counted.recomputing(recomputed)
        model = made("cpu", family, layers, tuning)
        truth = really(model, recomputed, autocast)
        narrowed = _narrowed(model) if autocast else 0
        assert memory.narrowed_forward == narrowed
        kept = memory.kept + narrowed * (layers - recomputed) // layers
        index_tables = index_tables or kept - truth.kept
        assert 0 < index_tables < 0.05 * counted.recomputing(0).kept
        assert kept - index_tables == pytest.approx(truth.kept, rel=0.005)
        assert memory.forward + narrowed - index_tables == pytest.approx(truth.forward, rel=0.005)
        backward = memory.backward + memory.narrowed_backward
        assert backward - index_tables == pytest.approx(truth.backward, rel=0.005)


def test_each_layer_saves_its_share() -> None:
    counted = DecoderMemory(made("meta", "llama", 12, "lora"), FOREST, None)
    kept = [counted.recomputing(recomputed).kept for recomputed in range(13)]
    shares = [more - less for more, less in itertools.pairwise(kept)]
    # The first layer keeps less, since its input needs no gradient, and the last has few rows behind its attention.
    assert max(shares[1:-1]) == pytest.approx(min(shares[1:-1]), rel=0.05)
    assert kept[12] < 0.2 * kept[0]
