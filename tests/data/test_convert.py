"""Files in one form become files in another, exactly or not at all."""

import json
from pathlib import Path
from typing import Any

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


KINDS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "dialog": (
        [{"instruction": "Who?", "input": "", "output": "Me."}] * 1001
        + [{"instruction": "And?", "input": "", "output": '["P", "L"]', "system": "s", "history": [["a", "b"]]}],
        ["query-response", "sharegpt", "openai", "xtuner"],
    ),
    "text": ([{"text": "Once."}, {"text": "[1]"}], ["openai", "xtuner"]),
    "preference": (
        [{"instruction": "Soup?", "input": "", "chosen": "Fish.", "rejected": "No."}],
        ["query-response", "prompt-completion", "sharegpt", "openai", "hh"],
    ),
    "labelled": (
        [{"instruction": "Soup?", "input": "", "output": word, "kto_tag": word == "Yes."} for word in ("Yes.", "No.")],
        ["query-response", "prompt-completion", "sharegpt", "openai", "xtuner"],
    ),
    "prompt": (
        [{"instruction": "Soup?", "input": ""}, {"instruction": "And?", "input": "", "history": [["a", "b"]]}],
        ["query-response", "sharegpt", "openai"],
    ),
}


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, (_, forms) in KINDS.items() for form in forms])
def test_every_kind_of_row_goes_there_and_back(folder: Path, kind: str, form: str) -> None:
    """Through the command, told nothing but the form, also where columns come late."""
    given = KINDS[kind][0]
    Path("given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    assert run("given.jsonl", "there.jsonl", "--to", form) == 0
    assert run("there.jsonl", "back.jsonl", "--to", "text" if kind == "text" else "alpaca") == 0
    assert rows("back.jsonl") == given


def test_keys_of_turns_that_are_not_carried_over_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": "a", "refusal": None}]
    told = [turns[0], {**turns[1], "refusal": "no", "tool_calls": [], "weight": 1}]
    Path("said.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in (turns, told)))
    assert run("said.jsonl", "out.jsonl", "--to", "openai") == 0
    assert capsys.readouterr().out.splitlines() == [
        "said.jsonl: 2 rows, openai: messages = messages",
        "  not carried over: key messages[].name, 2 times, first said.jsonl:1",
        "  not carried over: key messages[].refusal, once, first said.jsonl:2",
        "out.jsonl: 2 rows, openai",
    ]
    turn = {"input": "q", "output": "a", "need_eos_token": False}
    Path("x.jsonl").write_text(json.dumps({"conversation": [turn]}))
    assert run("x.jsonl", "y.jsonl", "--to", "openai") == 0
    assert "key conversation[].need_eos_token, once, first x.jsonl:1" in capsys.readouterr().out


def test_half_of_a_character_in_a_key_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "q", "\ud800": 1}, {"role": "assistant", "content": "a"}]
    Path("x.jsonl").write_text(json.dumps({"messages": turns}))
    assert run("x.jsonl", "y.jsonl", "--to", "alpaca") == 0
    out = capsys.readouterr().out
    assert "key messages[].\\ud800, once, first x.jsonl:1" in out


def test_rows_of_another_kind_are_refused_in_words_without_stages(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rows.jsonl", "out.jsonl", "--to", "text") == 2
    assert "rows.jsonl:1: text holds raw text only, and this row is a dialog; nothing is written" in (
        capsys.readouterr().err
    )
    (folder / "t.txt").write_text("Once.\n")
    assert run("t.txt", "out.jsonl", "--to", "alpaca") == 2
    assert "t.txt:1: alpaca can't hold raw text; nothing is written" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["train.seed", "data.train.weight", "data.validation", "data.max_length"])
def test_settings_that_mean_nothing_are_refused(folder: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rows.jsonl", "out.jsonl", "--to", "openai", f"{key}=2") == 2
    assert f"{key} has no meaning here: remove it; what data.train can have is source, " in capsys.readouterr().err


def test_a_target_that_cannot_be_written_is_an_error_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rows.jsonl", "rows.jsonl/out.jsonl", "--to", "openai") == 1
    assert "cannot write rows.jsonl/out.jsonl: Not a directory" in capsys.readouterr().err


def test_the_command_says_what_is_not_carried_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.csv").write_text("id,ask,reply\n1,hi,ho\n", encoding="utf-8")
    words = ["rows.csv", "out.jsonl", "--to", "openai"]
    assert run(*words, "data.train.columns.prompt=ask", "data.train.columns.response=reply") == 0
    said = capsys.readouterr().out
    assert "  not carried over: column id, once, first rows.csv:2" in said
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
    with pytest.raises(UsageError, match=r"^rows.jsonl:3: no answer; mend or remove that row: nothing is written$"):
        convert_rows(SourceConfig(path="rows.jsonl"), Path("out.jsonl"), "openai")
    assert not [path for path in folder.iterdir() if "out" in path.name]
    assert run("rows.jsonl", "out.jsonl", "--to", "openia") == 2
    assert "--to: there is no form 'openia'; known are alpaca, " in capsys.readouterr().err
