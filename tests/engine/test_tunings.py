"""A model set up for training, and what is written of it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tests.engine_setup import run_config
from tests.folders import tiny_folder
from tunewright.engine.tunings import as_base, load_for_training, trainable, write_weights
from tunewright.forest.model import attention_implementation, plain_model


def test_fully_tuned_weights_leave_the_makers_sampling_behind(tmp_path: Path) -> None:
    """A temperature without sampling is what transformers may refuse to save, in the middle of a run."""
    folder = tiny_folder(tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "do_sample": False, "temperature": 0.6, "top_k": 20}))
    write_weights(load_for_training(folder, run_config("full"), torch.float32, None), tmp_path)
    written = GenerationConfig.from_pretrained(tmp_path / "model")
    written.validate(strict=True)
    assert written.eos_token_id == [7, 9]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_base_answers_within_the_block_alone(tmp_path: Path, tuning: str) -> None:
    model = load_for_training(tiny_folder(tmp_path / "base"), run_config(tuning), torch.float32, None)
    trained = [name for name, _ in trainable(model)]
    ids = torch.arange(4, 12)[None]
    with torch.no_grad(), attention_implementation(plain_model(model), "eager"):
        with as_base(model):
            fresh = model(input_ids=ids, use_cache=False).logits
        for _, parameter in trainable(model):
            parameter.add_(0.1)
        with as_base(model):
            base = model(input_ids=ids, use_cache=False).logits
        tuned = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(base, fresh) == (tuning == "lora")
    assert torch.equal(base, tuned) == (tuning == "full")
    assert [name for name, _ in trainable(model)] == trained


def test_fresh_adapters_change_no_bit(tmp_path: Path) -> None:
    """Why the answers before the first step are asked of the base."""
    for dtype in (torch.float32, torch.bfloat16):
        model = load_for_training(tiny_folder(tmp_path / str(dtype)), run_config("lora"), dtype, None)
        ids = torch.arange(4, 12)[None]
        with torch.no_grad(), attention_implementation(plain_model(model), "eager"):
            with as_base(model):
                base = model(input_ids=ids, use_cache=False).logits
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, base)
