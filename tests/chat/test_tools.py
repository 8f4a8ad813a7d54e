"""Tools in a chat: the file that names them, the prompt that shows them, the calls that an answer holds."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.folders import tiny_folder
from tunewright.chat import partner as partner_module
from tunewright.chat.partner import Partner, open_partner
from tunewright.chat.session import Session
from tunewright.chat.tools import find_calls, read_tools
from tunewright.cli.app import main
from tunewright.data.examples import Message
from tunewright.data.template import ChatTemplate
from tunewright.data.template_table import table
from tunewright.data.turns import tools_text
from tunewright.errors import UsageError
from tunewright.models.generate import Answer

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "天气 of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
WRAPPED = {"type": "function", "function": {"name": "add", "parameters": {}}}
TOOLS = [WEATHER, WRAPPED]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template shows tools."""
    folder = tiny_folder(tmp_path_factory.mktemp("tools") / "model")
    (folder / "chat_template.jinja").write_text(table()["chatml"].source, encoding="utf-8")
    return folder


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), encoding="utf-8")
    return path


def test_a_file_is_read_as_the_tools_of_a_row_are(tmp_path: Path) -> None:
    assert read_tools(write(tmp_path / "tools.json", TOOLS)) == tools_text(TOOLS)
    assert read_tools(write(tmp_path / "tools.json", "\ufeff" + json.dumps(TOOLS))) == tools_text(json.dumps(TOOLS))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "holds no tool; give a JSON list of function schemas"),
        ("[]", "holds no tool; give"),
        ("{oh", "the list of tools is not JSON; give"),
        (WEATHER, "the tools are not a list of objects; give"),
        (["get_weather"], "the tools are not a list of objects; give"),
        ([{"description": "x"}], 'one of its tools has no "name"; give'),
        ([{"type": "function", "function": "x"}], 'one of its tools has no "name"; give'),
        ([{"name": "\ud800"}], "the list of tools holds half of a character (a lone surrogate); give"),
    ],
)
def test_a_file_that_holds_no_tools_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: Any, reason: str
) -> None:
    monkeypatch.setattr(partner_module, "load_model", lambda *_: pytest.fail("loaded before it was refused"))
    path = write(tmp_path / "tools.json", content)
    with pytest.raises(SystemExit) as left:
        main(["chat", str(tmp_path), "--tools", str(path)])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith(f"error: --tools: {path}")
    assert reason in said


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read \(No such file or directory\); give a JSON list"):
        read_tools(tmp_path / "none.json")
    (tmp_path / "gbk.json").write_bytes(json.dumps(TOOLS, ensure_ascii=False).encode("gbk"))
    with pytest.raises(UsageError, match=r"gbk\.json is not UTF-8 text"):
        read_tools(tmp_path / "gbk.json")


def test_the_prompt_is_that_of_training(tmp_path: Path, model: Path) -> None:
    """What the template writes for a row with these tools, up to its answer."""
    partner = open_partner(str(model))
    tools = read_tools(write(tmp_path / "tools.json", TOOLS))
    session = Session(partner.template, "Be brief.", partner.context, 20, tools)
    messages = [Message("system", "Be brief."), Message("user", "Rain?")]
    assert session.prompt("Rain?") == partner.template.prompt_ids(messages, tools_text(TOOLS))
    text = partner.tokenizer.decode(session.template.prompt_ids(messages, tools))
    assert "get_weather" in text
    assert "add" in text


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("It will rain.", []),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', ['{"city":"Paris"}']),
        ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "巴黎"}}]', ['{"city":"巴黎"}']),
        ('Look: {"name": "get_weather", "parameters": {}} and {"name": "get_weather", "arguments": "{\\"a\\": 1}"}',
         ["{}", '{"a":1}']),
        ('{"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Rome"}}}',
         ['{"city":"Rome"}']),
        ('{"name": "get_whether", "arguments": {}}', []),
        ('{"name": "get_weather", "arguments": [1]} { [ {"name": "get_weather"', []),
        ("[" * 3000, []),
    ],
)  # fmt: skip
def test_calls_are_found_whatever_is_around_them(text: str, calls: list[str]) -> None:
    found = find_calls(text, str(tools_text(TOOLS)))
    assert [(call.name, call.arguments) for call in found] == [("get_weather", arguments) for arguments in calls]


def chatted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> tuple[list[int], str, str]:
    """The prompt of one question to a model that says `said`; standard output and error."""
    prompts: list[list[int]] = []

    def speak(self: Partner, ids: list[int], seed: int, base: bool = False) -> Any:
        prompts.append(ids)
        yield said
        yield Answer([1], said, "stop")

    monkeypatch.setattr("sys.stdin", io.StringIO("Rain?\n"))
    monkeypatch.setattr(Partner, "speak", speak)
    with pytest.raises(SystemExit) as left:
        main(["chat", *words, "--max-new-tokens", "20"])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    return prompts[0], printed.out, printed.err


def test_a_call_is_shown_as_one(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "tools.json", TOOLS)
    said = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    prompt, out, remarks = chatted(monkeypatch, capsys, [str(model), "--tools", str(path)], said)
    template: ChatTemplate = open_partner(str(model)).template
    assert prompt == template.prompt_ids([Message("user", "Rain?")], tools_text(TOOLS))
    assert out == said + "\n"
    assert '(calls get_weather with {"city":"Paris"})' in remarks
    prompt, _, remarks = chatted(monkeypatch, capsys, [str(model)], said)
    assert prompt == template.prompt_ids([Message("user", "Rain?")])
    assert "calls" not in remarks


def test_a_template_that_hides_tools_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hiding = tiny_folder(tmp_path / "model")
    path = write(tmp_path / "tools.json", TOOLS)
    with pytest.raises(SystemExit) as left:
        main(["chat", str(hiding), "--tools", str(path)])
    assert left.value.code == 2
    assert f"--tools: the chat template of {hiding} does not show tools to the model" in capsys.readouterr().err
