"""Files in one form become files in another, exactly or not at all."""

import json
from pathlib import Path

import pytest

from tunewright.cli.app import main
from tunewright.config.schema import SourceConfig
from tunewright.data.convert import convert_rows
from tunewright.errors import UsageError

ALPACA = """{"instruction": "Who?", "input": "", "output": "Me."}
{"instruction": "你是谁", "output": "厨子", "system": "You cook."}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ALPACA, encoding="utf-8")
    return tmp_path


def rows(path: str) -> list[object]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("form", ["openai", "sharegpt", "xtuner", "query-response"])
def test_there_and_back_again(folder: Path, form: str) -> None:
    convert_rows(SourceConfig(path="rows.jsonl"), Path("there.jsonl"), form)
    convert_rows(SourceConfig(path="there.jsonl"), Path("back.jsonl"), "alpaca")
    convert_rows(SourceConfig(path="rows.jsonl"), Path("same.jsonl"), "alpaca")
    assert rows("back.jsonl") == rows("same.jsonl")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["data", "convert", *words])
    return int(str(leaving.value.code))


def test_the_command_says_what_is_not_carried_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.csv").write_text("id,ask,reply\n1,hi,ho\n", encoding="utf-8")
    words = ["rows.csv", "out.jsonl", "--to", "openai"]
    assert run(*words, "data.train.columns.prompt=ask", "data.train.columns.response=reply") == 0
    said = capsys.readouterr().out
    assert "  not carried over: column id, first rows.csv:2" in said
    assert said.endswith("out.jsonl: 1 rows, openai\n")
    assert rows("out.jsonl") == [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    ]


def test_what_a_form_cannot_hold_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^rows.jsonl:1: .*; nothing is written$"):
        convert_rows(SourceConfig(path="rows.jsonl"), Path("out.jsonl"), "hh")
    with pytest.raises(UsageError, match=r"^rows.jsonl:2: prompt-completion would need text in the column prompt of "):
        convert_rows(SourceConfig(path="rows.jsonl"), Path("out.jsonl"), "prompt-completion")
    (folder / "rows.jsonl").write_text(ALPACA + '{"instruction": "x", "output": ""}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"^rows.jsonl:3: no answer; nothing is written$"):
        convert_rows(SourceConfig(path="rows.jsonl"), Path("out.jsonl"), "openai")
    assert not [path for path in folder.iterdir() if "out" in path.name]
    assert run("rows.jsonl", "out.jsonl", "--to", "openia") == 2
    assert "--to: there is no form 'openia'; known are alpaca, " in capsys.readouterr().err
