"""What a command line gives as the config: a file or recipe, or a model and data; data in its place are told apart."""

import json
from pathlib import Path

import pytest

from tunewright.cli.app import main
from tunewright.cli.given import read_given
from tunewright.errors import UsageError


def test_a_model_and_data_are_a_config(tmp_path: Path) -> None:
    read = read_given("check", ["train.seed=7"], "some-model", ["a.jsonl", "b.csv"])
    assert read.config.model.name == "some-model"
    assert [source.path for source in read.config.data.train] == ["a.jsonl", "b.csv"]
    assert read.config.train.seed == 7


def test_flags_come_over_a_file_and_settings_over_flags(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: written\ndata: written.jsonl\noutput: there\n", encoding="utf-8")
    words = [str(tmp_path / "run.yaml"), "output=last"]
    config = read_given("train", words, None, ["given.jsonl"], {"output": "flag"}).config
    assert (config.model.name, config.data.train[0].path, config.output) == ("written", "given.jsonl", "last")


@pytest.mark.parametrize(("model", "data"), [(None, None), ("m", None), (None, ["x.jsonl"])])
def test_half_of_it_is_refused(model: str | None, data: list[str] | None) -> None:
    with pytest.raises(UsageError, match=r"^check needs a config \(tunewright check RUN\.yaml\), or a model and data"):
        read_given("check", [], model, data)


@pytest.mark.parametrize("verb", ["check", "train"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.xlsx", "rows.jsonl.gz", "text.md"])
def test_data_in_the_place_of_the_config_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text('\ufeff [{"q": "Who?", "a": "I."}]', encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        main([verb, str(path)])
    said = f"error: {path} holds data and is no config; name it as such, with a model: "
    assert (left.value.code, capsys.readouterr().err) == (
        2,
        f"{said}tunewright {verb} --model smollm2-135m-instruct --data {path}\n",
    )


def test_a_config_in_json_is_one(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"model": "m", "data": "rows.jsonl"}), encoding="utf-8")
    assert read_given("check", [str(tmp_path / "run.json")], None, None).config.model.name == "m"
