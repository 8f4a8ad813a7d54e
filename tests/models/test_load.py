import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from tests.folders import tiny_folder
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.models.load import eos_ids, load_model, load_tokenizer, quiet


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def test_loads_in_the_type_and_attention_asked_for(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    register_forest_attention()
    capfd.readouterr()
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(model, dtype, FOREST_ATTENTION)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.config._attn_implementation == FOREST_ATTENTION
        assert not loaded.training
    assert load_model(model, torch.float32).config._attn_implementation == "sdpa"
    load_tokenizer(model)
    assert capfd.readouterr() == ("", "")


def test_missing_or_misshapen_weights_are_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"1 weights are missing .* model.layers.1.mlp.up_proj.weight"):
        load_model(model, torch.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"up_proj|mismatch"):
        load_model(model, torch.float32)
    (model / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(model, torch.float32)


def test_an_unreadable_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="tokenizer cannot be read"):
        load_tokenizer(model)


def test_eos_ids_are_gathered_from_every_place(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": 11}))
    assert eos_ids(model, tokenizer) == (7, 9, 11, tokenizer.eos_token_id)
    (model / "generation_config.json").unlink()
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    assert eos_ids(model, tokenizer) == (tokenizer.eos_token_id,)


def test_a_cut_generation_config_is_said_in_words(model: Path) -> None:
    path = model / "generation_config.json"
    for text in ('{"eos_token_id": 2,', "[2]"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"generation_config.json: .*; fetch the file again"):
            eos_ids(model, load_tokenizer(model))


def test_quiet_puts_everything_back() -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with quiet():
        assert not transformers_logging.is_progress_bar_enabled()
    with pytest.raises(ValueError, match="x"), quiet():
        raise ValueError("x")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
