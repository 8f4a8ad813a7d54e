"""Every shipped recipe loads, says what it is for, and opens with the command that runs it."""

from pathlib import Path

import pytest

from tunewright.config.load import load_config
from tunewright.config.overrides import split_arguments
from tunewright.recipes import FOLDER, find_recipe, purpose, recipe_names


def test_recipes_are_found_with_and_without_the_ending() -> None:
    assert "smollm2-135m-instruct/lora-persona" in recipe_names()
    assert find_recipe("smollm2-135m-instruct/lora-persona.yaml") == find_recipe("smollm2-135m-instruct/lora-persona")
    assert find_recipe("nothing") is None


@pytest.mark.parametrize("name", recipe_names())
def test_recipe(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    command, about, empty = path.read_text(encoding="utf-8").splitlines()[:3]
    assert command.startswith(f"# tunewright train {name}")
    assert about.startswith("# ")
    assert purpose(path).endswith(".")
    assert empty == "", "two comment lines, then the config"
    file, overrides = split_arguments(command.removeprefix("# tunewright train ").split())
    assert file is not None
    config = load_config(file, overrides)
    assert config.method.stage == ("pt" if "pretrain" in name else "sft")
    assert config.method.tuning == name.split("/")[1].split("-")[0]


def test_the_8b_persona_recipe_trains_as_the_tutorial_does() -> None:
    config = load_config(Path("llama3.1-8b-instruct/lora-persona"))
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 32, 0.1)
    assert len(config.lora.target) == 7
    assert (config.data.max_length, config.train.batch_size) == (384, 16)
    assert (config.learning_rate, config.train.epochs) == (1e-4, 3)


def test_the_demo_recipe_names_data_that_is_shipped() -> None:
    config = load_config(Path("smollm2-135m-instruct/lora-persona"))
    assert Path(config.data.train[0].path).is_file()
