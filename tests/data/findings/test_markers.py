"""A chat template whose markers the model never learnt is told, with what to do; one that fits is left in peace."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.cli.app import main
from tunewright.data.findings.markers import look_at_markers
from tunewright.data.template import ChatTemplate
from tunewright.models.load import load_tokenizer

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tiny_tokenizer("chatml"), tmp_path / "model")


def forget(folder: Path, *tokens: str) -> None:
    """Rows of the embedding as they are before any training: all the same."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[EMBEDDING][load_tokenizer(folder).convert_tokens_to_ids(list(tokens))] = torch.full((1,), 0.01)
    save_file(tensors, path, metadata={"format": "pt"})


def test_markers_that_were_trained_are_fine(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    found = look_at_markers(ChatTemplate(tokenizer, None, []), tokenizer, folder, all_trained=False)
    assert found.level == "fine"
    assert "<|im_start|>" in found.message
    assert "<|im_end|>" in found.message


@pytest.mark.parametrize(("all_trained", "level"), [(False, "warning"), (True, "note")])
def test_markers_that_were_not_are_told(folder: Path, all_trained: bool, level: str) -> None:
    forget(folder, "<|im_start|>", "<|im_end|>")
    tokenizer = load_tokenizer(folder)
    found = look_at_markers(ChatTemplate(tokenizer, None, []), tokenizer, folder, all_trained)
    assert (found.level, found.count) == (level, 2)
    assert "<|im_end|>" in found.message
    assert "data.template: default" in found.advice


def test_a_template_of_plain_words_has_none(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    words = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    found = look_at_markers(ChatTemplate(tokenizer, words, []), tokenizer, folder, all_trained=False)
    assert found.level == "fine"


def test_check_says_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget(folder, "<|im_start|>", "<|im_end|>")
    rows = [{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    run = {"model": str(folder), "data": str(tmp_path / "rows.json")}
    (tmp_path / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main(["check", str(tmp_path / "run.yaml"), "--json"])
    assert left.value.code == 0
    findings = {found["name"]: found for found in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["untrained_markers"]["level"] == "warning"
