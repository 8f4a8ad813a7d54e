"""Every architecture either goes the whole way, from training to chat and export, or is refused with one sentence."""

import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread", "no_probe")

SETTINGS = (
    "model.dtype=float32",
    "data.validation=3",
    "data.max_length=200",
    "train.batch_size=4",
    "train.max_steps=2",
    "train.learning_rate=0.01",
    "samples.max_new_tokens=4",
    "evaluate.prompts=2",
    "evaluate.max_new_tokens=4",
)
QUICK = ["gemma2", "mixtral"]  # attention that sdpa cannot compute; adapters on parameters
OTHERS = ["llama", "qwen2", "qwen3", "mistral-window", "gemma3", "phi3", "glm4", "olmo2", "gpt2"]


def train(tunewright: Command, folder: Path, family: str, *settings: str) -> tuple[int, str]:
    rows = [{"instruction": f"What is boat {n}?", "output": f"The Heron {n}."} for n in range(30)]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = save_tiny(tiny_tokenizer("chatml"), folder / "model", family, **dict.fromkeys(settings, 0.1))
    words = ("--model", str(model), "--data", str(data), "--output", str(folder / "run"))
    done = tunewright("train", *words, *SETTINGS)
    return done.code, done.err


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_the_whole_way(tunewright: Command, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, message = train(tunewright, tmp_path, family)
    assert code == 0, message
    run = RunFolder(tmp_path / "run")
    assert {sample["step"] for sample in run.samples()} == {0, 2}
    assert run.report_json.exists()
    assert tunewright("eval", str(run.path)).code == 0
    exported = tunewright("export", str(run.path), str(tmp_path / "out"))
    assert exported.code == 0, exported.err
    for target in (run.path, tmp_path / "out"):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is boat 3?\n"))
        answer = tunewright("chat", str(target), "--max-new-tokens", "4")
        assert answer.code == 0, answer.err


@pytest.mark.parametrize("family", ["falcon", "bloom"])
def test_attention_code_of_its_own_is_refused(tunewright: Command, tmp_path: Path, family: str) -> None:
    code, message = train(tunewright, tmp_path, family)
    assert code == 2
    assert f"error: {family} models can't be trained by this version" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("family", "key"), [("gpt2", "attn_pdrop"), ("qwen2", "attention_dropout")])
def test_dropout_on_attention_is_refused(tunewright: Command, tmp_path: Path, family: str, key: str) -> None:
    code, message = train(tunewright, tmp_path, family, key)
    assert code == 2
    assert f"config.json sets {key} to 0.1, which is not defined on a token forest" in message
    assert not (tmp_path / "run").exists()
