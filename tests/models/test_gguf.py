import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from tests.models.gguf_file import tiny_llama, write_gguf
from tests.tokenizers import tiny_tokenizer
from tunewright.errors import UsageError
from tunewright.models.gguf import convert_gguf, gguf_folder
from tunewright.models.load import eos_ids, load_model, load_tokenizer

IDS = torch.tensor([[5, 9, 80, 33, 7, 12, 60]])


def convert(path: Path, folder: Path) -> Path:
    folder.mkdir()
    convert_gguf(path, folder)
    return folder


def test_float_file_becomes_the_same_model(tmp_path: Path) -> None:
    model, tokenizer = write_gguf(tmp_path / "tiny.gguf")
    folder = convert(tmp_path / "tiny.gguf", tmp_path / "out")
    with torch.inference_mode():
        assert torch.equal(load_model(folder, torch.float32)(IDS).logits, model(IDS).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert eos_ids(folder, load_tokenizer(folder)) == (tokenizer.eos_token_id,)


def test_quantised_file_becomes_its_dequantised_values_in_bfloat16(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    folder = convert(tmp_path / "tiny.gguf", tmp_path / "out")
    written = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.layers.1.mlp.up_proj", "blk.1.ffn_up")):
        tensor = stored[f"{theirs}.weight"]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        assert torch.equal(written[f"{ours}.weight"], values)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("gguf")
    write_gguf(tmp_path / "tiny.gguf", pre="smollm")
    return convert(tmp_path / "tiny.gguf", tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab 01234\n.\t你é'"), max_size=30))
def test_digits_are_split_before_merging(smollm: Path, text: str) -> None:
    ours = AutoTokenizer.from_pretrained(smollm)
    reference = tiny_tokenizer("qwen2")
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text


def test_specials_are_single_ids_and_the_tokenizer_reloads_fast(smollm: Path) -> None:
    tokenizer, original = load_tokenizer(smollm), tiny_tokenizer("qwen2")
    assert tokenizer.is_fast
    text = original.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert tokenizer(text)["input_ids"].count(original.eos_token_id) == 2
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == original.chat_template
    assert "local_files_only" not in (smollm / "tokenizer_config.json").read_text()


def test_an_unknown_way_to_split_text_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", pre="from-the-future")
    with pytest.raises(UsageError, match="from-the-future"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_llama3_rope_scaling_is_restored_from_its_table(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_llama(tiny_tokenizer("qwen2"), rope_parameters=rope, head_dim=32, max_position_embeddings=32_768)
    plain = 10_000.0 ** -(np.arange(16) / 16)
    table = plain / model.model.rotary_emb.inv_freq.numpy()  # what the converter writes: the divisors
    assert table.max() > 7.9
    write_gguf(tmp_path / "tiny.gguf", model=model, rope_table=table)
    folder = convert(tmp_path / "tiny.gguf", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"] == pytest.approx(rope)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(folder, torch.float32)(IDS).logits, model(IDS).logits)

    write_gguf(tmp_path / "odd.gguf", model=model, rope_table=table * np.linspace(1, 2, 16))
    with pytest.raises(UsageError, match="scales rope"):
        convert(tmp_path / "odd.gguf", tmp_path / "odd")


def test_other_rope_scaling_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", rope_type="yarn")
    with pytest.raises(UsageError, match="yarn"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(UsageError, match="not a readable GGUF"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_a_changed_file_is_converted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    write_gguf(tmp_path / "tiny.gguf")
    first = gguf_folder(tmp_path / "tiny.gguf", said.append)
    assert gguf_folder(tmp_path / "tiny.gguf", said.append) == first
    assert len(said) == 1
    write_gguf(tmp_path / "tiny.gguf", kind=GGMLQuantizationType.Q8_0)
    assert gguf_folder(tmp_path / "tiny.gguf", said.append) != first
