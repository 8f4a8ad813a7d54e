"""`tunewright demo`, as `make demo` runs it, with a tiny model and few steps."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.cli import demo
from tunewright.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread", "no_probe")


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own recipe and data, but for the model and the sizes."""
    model = save_tiny(tiny_tokenizer("chatml"), tmp_path / "model")
    recipe = {
        "model": str(model),
        "data": {"train": "persona/captain_biscuit.jsonl", "validation": 4, "max_length": 400, "drop_bad_rows": True},
        "train": {"batch_size": 4, "max_steps": 2, "save_steps": 2, "learning_rate": 0.1},
        "samples": {"max_new_tokens": 3},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    monkeypatch.setattr(demo, "RECIPE", str(tmp_path / "recipe.yaml"))
    monkeypatch.setattr(demo, "MOST_TOKENS", 8)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tiny_recipe")
def test_the_demo_trains_and_shows_both_answers_to_each_question(tunewright: Command) -> None:
    done = tunewright("demo")
    assert done.code == 0, done.err
    shown = done.out[done.out.index(f"? {demo.QUESTIONS[0]}") :].split("\n\n")
    answers = []
    for question, block in zip(demo.QUESTIONS, shown[:3], strict=True):
        first, *lines = block.splitlines()
        assert first == f"? {question}"
        names = [line[:7].strip() for line in lines]
        assert [name for name in names if name] == ["base", "tuned"]
        answers.append(block.partition("  tuned  ")[0::2])
    assert any(base.partition("  base   ")[2].strip() != tuned.strip() for base, tuned in answers), "training shows"
    assert shown[3].startswith("done in ")
    assert "tunewright chat runs/demo" in shown[3]
    assert RunFolder.open(Path("runs/demo")).status()["state"] == "done"


@pytest.mark.usefixtures("tiny_recipe")
def test_a_second_demo_takes_a_folder_of_its_own(tunewright: Command) -> None:
    Path("runs/demo").mkdir(parents=True)
    assert tunewright("demo").code == 0
    assert RunFolder.open(Path("runs/demo-2")).status()["state"] == "done"
    assert tunewright("demo", "--output", "mine").code == 0
    assert RunFolder.open(Path("mine")).provenance["command"] == "tunewright demo"
