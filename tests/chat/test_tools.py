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
from tunewright.chat.tools import read_calls, read_tools
from tunewright.cli.app import main
from tunewright.data.examples import Dialog, Message, Place, ToolCall
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
    """A tiny model whose template shows tools, with room for several calls."""
    folder = tiny_folder(tmp_path_factory.mktemp("tools") / "model")
    (folder / "chat_template.jinja").write_text(table()["chatml"].source, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
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
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', ['{"city":"Paris"}']),
        ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "巴黎"}}]', ['{"city":"巴黎"}']),
        ('{"name": "get_weather", "parameters": {}} and {"name": "get_weather", "arguments": "{\\"a\\": 1}"}',
         ["{}", '{"a":1}']),
        ('<|python_tag|>{"type": "function", "function": {"name": "get_weather", "parameters": {"city": "Rome"}}}',
         ['{"city":"Rome"}']),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("before", "said", "reasoning"),
    [
        ("", "", None),
        ("I'll look [it] up:\n", "I'll look [it] up:", None),
        ("<think>\nRain?\n</think>\n\n", "", "Rain?"),
        ("<think>Rain?</think>\n\nWait. <b>\n", "Wait.", "Rain?"),
    ],
)
def test_calls_are_read_whatever_is_around_them(
    text: str, calls: list[str], before: str, said: str, reasoning: str | None
) -> None:
    called = tuple(ToolCall("get_weather", arguments) for arguments in calls)
    expected = Message("assistant", said, reasoning=reasoning, tool_calls=called)
    assert read_calls(before + text, str(tools_text(TOOLS))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "It will rain.",
        '{"name": "get_whether", "arguments": {}}',
        '{"name": "get_weather", "arguments": [1]} { [ {"name": "get_weather"',
        "[" * 3000,
    ],
)
def test_what_is_no_call_is_none(text: str) -> None:
    assert read_calls(text, str(tools_text(TOOLS))) is None


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
QUESTION = Message("user", "Rain?")
CALLED = Message("assistant", "", tool_calls=(ToolCall("get_weather", '{"city":"Paris"}'),))


class Chatted:
    """What came of some lines to a model that says `said`, one answer after another."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, words: list[str], lines: str | io.StringIO, said: list[str]
    ) -> None:
        self.prompts: list[list[int]] = []
        answers = iter(said)

        def speak(partner: Partner, ids: list[int], seed: int, base: bool = False) -> Any:
            self.prompts.append(ids)
            words = next(answers)
            yield words
            yield Answer([1], words, "stop")

        monkeypatch.setattr("sys.stdin", io.StringIO(lines) if isinstance(lines, str) else lines)
        monkeypatch.setattr(Partner, "speak", speak)
        with pytest.raises(SystemExit) as left:
            main(["chat", *words, "--max-new-tokens", "20"])
        assert left.value.code == 0
        assert next(answers, None) is None


class Keyboard(io.StringIO):
    """Where a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    return write(tmp_path / "tools.json", TOOLS)


def test_a_call_is_shown_and_what_it_returned_goes_back(
    tools: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [CALL, "It rains.", "Bye."]
    chatted = Chatted(monkeypatch, [str(model), "--tools", str(tools)], 'Rain?\n{"mm": 3}\nThanks.\n', said)
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{text}\n" for text in said)
    assert printed.err.count("(calls ") == 1
    assert '(calls get_weather with {"city":"Paris"})' in printed.err
    template: ChatTemplate = open_partner(str(model)).template
    dialog = [QUESTION, CALLED, Message("tool", '{"mm": 3}', name="get_weather")]
    dialog += [Message("assistant", "It rains."), Message("user", "Thanks.")]
    assert chatted.prompts == [template.prompt_ids(dialog[:end], tools_text(TOOLS)) for end in (1, 3, 5)]


def test_the_prompt_after_a_result_is_that_of_training(model: Path) -> None:
    """Token for token what stands before the answer of such a row."""
    template: ChatTemplate = open_partner(str(model)).template
    session = Session(template, None, 512, 20, tools_text(TOOLS))
    list(session.answer(session.prompt("Rain?"), lambda ids: iter([CALL])))
    ids = session.results(CALLED, ["3 mm"])
    result = Message("tool", "3 mm", name="get_weather")
    row = Dialog((QUESTION, CALLED, result, Message("assistant", "It rains.")), Place("x", 1), tools_text(TOOLS))
    trained = template.encode(row)[-1].input_ids.tolist()
    assert trained[: len(ids)] == ids
    assert template.encode(row)[-1].weights[len(ids)] > 0


def test_each_call_of_an_answer_gets_its_own_result(
    tools: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [f"Both.\n{CALL}\n{ADD}", ADD, "Done."]
    chatted = Chatted(monkeypatch, [str(model), "--tools", str(tools)], "Rain?\nwet\n2\n3\n", said)
    both = (*CALLED.tool_calls, ToolCall("add", '{"a":1}'))
    dialog = [QUESTION, Message("assistant", "Both.", tool_calls=both)]
    dialog += [Message("tool", "wet", name="get_weather"), Message("tool", "2", name="add")]
    dialog += [Message("assistant", "", tool_calls=both[1:]), Message("tool", "3", name="add")]
    template: ChatTemplate = open_partner(str(model)).template
    assert chatted.prompts == [template.prompt_ids(dialog[:end], tools_text(TOOLS)) for end in (1, 4, 6)]


def test_calls_may_be_left_unanswered(
    tools: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(model), "--tools", str(tools)]
    template: ChatTemplate = open_partner(str(model)).template
    chatted = Chatted(monkeypatch, words, "Rain?\n\nThen tell me.\n", [CALL, "No."])
    assert "(the calls are left unanswered)" in capsys.readouterr().err
    left = [QUESTION, Message("assistant", CALL), Message("user", "Then tell me.")]
    assert chatted.prompts[1] == template.prompt_ids(left, tools_text(TOOLS))
    chatted = Chatted(monkeypatch, words, "Rain?\n/reset\nRain?\n", [CALL, "No."])
    assert chatted.prompts[1] == chatted.prompts[0]
    capsys.readouterr()
    Chatted(monkeypatch, words, "Rain?\n", [CALL])
    assert "(the input ended before get_weather returned anything)" in capsys.readouterr().err


def test_without_tools_a_call_is_text(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chatted = Chatted(monkeypatch, [str(model)], "Rain?\nThanks.\n", [CALL, "Bye."])
    template: ChatTemplate = open_partner(str(model)).template
    assert chatted.prompts[1] == template.prompt_ids([QUESTION, Message("assistant", CALL), Message("user", "Thanks.")])
    printed = capsys.readouterr()
    assert printed.out == CALL + "\nBye.\n"
    assert "calls" not in printed.err


def test_a_person_is_asked_for_the_result(
    tools: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    typed = iter(["Rain?", "3 mm", "/exit"])

    def type_line(label: str) -> str:
        asked.append(label)
        return next(typed)

    monkeypatch.setattr("builtins.input", type_line)
    chatted = Chatted(monkeypatch, [str(model), "--tools", str(tools)], Keyboard(), [CALL, "It rains."])
    assert asked == ["\nyou: ", "get_weather returned (empty: go on without): ", "\nyou: "]
    assert len(chatted.prompts) == 2
    assert '(calls get_weather with {"city":"Paris"})\nIt rains.\n' in capsys.readouterr().out


def test_a_template_that_hides_tools_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hiding = tiny_folder(tmp_path / "model")
    path = write(tmp_path / "tools.json", TOOLS)
    with pytest.raises(SystemExit) as left:
        main(["chat", str(hiding), "--tools", str(path)])
    assert left.value.code == 2
    assert f"--tools: the chat template of {hiding} does not show tools to the model" in capsys.readouterr().err
