"""Rows of an embedding, read from the files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_model
from tunewright.models.embedding import embedding_rows


def test_rows_are_those_of_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    rows = [5, 0, model.config.vocab_size - 1]
    read = embedding_rows(tmp_path, rows)
    assert read is not None
    assert torch.equal(read, model.get_input_embeddings().weight.detach()[rows])


@pytest.mark.parametrize("name", ["model.embed_tokens", "transformer.wte", "gpt_neox.embed_in"])
def test_the_table_is_found_in_any_shard_and_type(name: str, tmp_path: Path) -> None:
    table = torch.randn(8, 4)
    save_file({"lm_head.weight": torch.zeros(8, 4)}, tmp_path / "model-1.safetensors")
    save_file({f"{name}.weight": table.bfloat16()}, tmp_path / "model-2.safetensors")
    read = embedding_rows(tmp_path, [7, 1])
    assert read is not None
    assert (read.dtype, read.shape) == (torch.float32, (2, 4))
    assert torch.equal(read, table.bfloat16().float()[[7, 1]])


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert embedding_rows(tmp_path, [0]) is None
    save_file({"model.embed_tokens.weight": torch.zeros(8, 4, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    assert embedding_rows(tmp_path, [0]) is None
    save_file({"model.embed_tokens.weight": torch.zeros(8, 4)}, tmp_path / "a.safetensors")
    assert embedding_rows(tmp_path, [8]) is None
    (tmp_path / "a.safetensors").write_bytes(b"\x00" * 20)
    assert embedding_rows(tmp_path, [0]) is None
