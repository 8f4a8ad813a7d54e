"""The ledger of a step walks the backend that will attend."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import random_sequences, tiny_config
from tunewright.engine.activations import DecoderMemory, StepMemory
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.flex import padded
from tunewright.forest.layout import Backend


def memory(family: str, forest: Forest, backend: Backend) -> StepMemory:
    register_forest_attention()
    settings = tiny_config(family, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation=FOREST_ATTENTION, dtype=torch.bfloat16)
    return DecoderMemory(model, forest, None, backend).recomputing(0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_flex_holds_nothing_of_the_size_of_all_pairs(family: str) -> None:
    """Twice the rows hold twice the bytes, where the dense mask's scores hold four times as many."""
    small, large = (padded(build_forest(random_sequences(0, count, longest=60, alphabet=50))) for count in (16, 60))
    times = len(large) / len(small)
    flex, dense = ([memory(family, forest, backend) for forest in (small, large)] for backend in ("flex", "reference"))
    assert flex[1].kept / flex[0].kept == pytest.approx(times, rel=0.1)
    assert flex[1].backward / flex[0].backward == pytest.approx(times, rel=0.1)
    assert dense[1].kept / dense[0].kept > 0.8 * times**2
    # Queries, keys, values and results of 4, 2, 2 and 4 heads of 8, and a float32 number for each query and head.
    assert flex[1].kept > len(large) * (12 * 8 * 2 + 4 * 4)
