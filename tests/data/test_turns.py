"""Turns of every tool become the right messages; every kind of bad turn has its reason."""

import json
from typing import Any

import pytest

from tunewright.data.columns import Layout
from tunewright.data.examples import Dialog, Message, Place, Preference, Prompt, ToolCall
from tunewright.data.formats import BadRow, read_example
from tunewright.data.turns import Tags, answer

PLACE = Place("rows.json", 7)
OPENAI = Layout("openai", {"messages": "talk", "system": "system", "tools": "tools"}, False)
SHAREGPT = Layout("sharegpt", {"messages": "talk", "system": "system"}, False, tags=Tags("from", "value"))
XTUNER = Layout("xtuner", {"messages": "talk"}, False, tags=Tags(pair=("input", "output")))


def read(talk: object, layout: Layout = OPENAI, **row: Any) -> tuple[Message, ...]:
    example = read_example({"talk": talk, **row}, layout, "of the config", PLACE)
    assert isinstance(example, Dialog)
    assert example.place == PLACE
    assert example.messages[0] == Message("system", row.get("expected_system", "of the config"))
    return example.messages[1:]


def reason(talk: object, layout: Layout = OPENAI) -> str:
    with pytest.raises(BadRow) as caught:
        read_example({"talk": talk}, layout, "system", PLACE)
    return str(caught.value)


def test_input_output_turns() -> None:
    talk = [
        {"system": "be kind", "input": "hi", "output": "hello", "need_eos_token": False, "sep": "\n"},
        {"system": "be kind", "input": "how are you", "output": "fine", "output_with_loss": False},
        {"input": "bye", "output": "see you"},
    ]
    assert read(talk, XTUNER, expected_system="be kind") == (
        Message("user", "hi"), Message("assistant", "hello"),
        Message("user", "how are you"), Message("assistant", "fine", 0.0),
        Message("user", "bye"), Message("assistant", "see you"),
    )  # fmt: skip


def test_other_names_of_question_and_answer() -> None:
    layout = Layout("xtuner", {"messages": "talk"}, False, tags=Tags(pair=("human", "assistant")))
    assert read([{"human": "hi", "assistant": "hello"}], layout) == (
        Message("user", "hi"),
        Message("assistant", "hello"),
    )


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("layout", "role", "content", "names"),
    [
        (OPENAI, "role", "content", ("system", "user", "assistant")),
        (OPENAI, "role", "content", ("developer", "User", "MODEL")),
        (SHAREGPT, "from", "value", ("system", "human", "gpt")),
        (SHAREGPT, "from", "value", ("系统", "用户", "助手")),
        (Layout("sharegpt", {"messages": "talk", "system": "system"}, False,
                tags=Tags("who", "says", {"甲": "user", "乙": "assistant", "旁白": "system"})),
         "who", "says", ("旁白", "甲", "乙")),
    ],
)  # fmt: skip
def test_spoken_turns(layout: Layout, role: str, content: str, names: tuple[str, str, str], own: bool) -> None:
    system, user, assistant = names
    talk = [{role: user, content: "hi"}, {role: assistant, content: "hello"}]
    if own:
        talk.insert(0, {role: system, content: "of the dialog"})
    expected = (Message("user", "hi"), Message("assistant", "hello"))
    assert read(talk, layout, system="of the row", expected_system="of the dialog" if own else "of the row") == expected
    assert read(json.dumps(talk), layout, expected_system="of the dialog" if own else "of the config") == expected


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "巴黎", "days": 2}'}}
CALLED = ToolCall("weather", '{"city":"巴黎","days":2}')


def test_tool_calls() -> None:
    second = {"id": "c2", "function": {"name": "time", "arguments": {}}}
    talk = [
        {"role": "user", "content": "now?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, second], "reasoning_content": "look it up"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "name": "clock"},
        {"role": "assistant", "content": "Rain at noon.", "tool_calls": None, "name": None},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "", "function_call": {"name": "time", "arguments": ""}},
        {"role": "function", "name": "time", "content": {"hour": 12}},
        {"role": "assistant", "content": "Yes."},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    example = read_example({"talk": talk, "tools": tools}, OPENAI, None, PLACE)
    assert example == Dialog(
        (
            Message("user", "now?"),
            Message("assistant", "", reasoning="look it up", tool_calls=(CALLED, ToolCall("time", "{}"))),
            Message("tool", "rain", name="weather"),
            Message("tool", "", name="clock"),
            Message("assistant", "Rain at noon."),
            Message("user", "sure?"),
            Message("assistant", "", tool_calls=(ToolCall("time", "{}"),)),
            Message("tool", '{"hour":12}', name="time"),
            Message("assistant", "Yes."),
        ),
        PLACE,
        '[{"type":"function","function":{"name":"weather"}}]',
    )


def test_written_tool_calls() -> None:
    one = '{"name": "weather", "arguments": {"city": "巴黎", "days": 2}}'
    talk = [
        {"from": "human", "value": "now?"},
        {"from": "function_call", "value": f"<think>\nhm\n</think>\n{one}"},
        {"from": "observation", "value": "rain"},
        {"from": "function_call", "value": f'[{one}, {{"name": "time"}}]'},
        {"from": "observation", "value": ["rain", 12]},
        {"from": "gpt", "value": "Rain at noon."},
    ]
    assert read(talk, SHAREGPT) == (
        Message("user", "now?"),
        Message("assistant", "", reasoning="hm", tool_calls=(CALLED,)),
        Message("tool", "rain"),
        Message("assistant", "", tool_calls=(CALLED, ToolCall("time", "{}"))),
        Message("tool", '["rain",12]'),
        Message("assistant", "Rain at noon."),
    )


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": " two"}, " three"]
    assert read([{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]) == (
        Message("user", "one  two three"), Message("assistant", "one  two three"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "weight"),
    [
        ({}, 1.0), ({"weight": None}, 1.0), ({"weight": 0}, 0.0), ({"weight": 0.5}, 0.5), ({"weight": 2}, 2.0),
        ({"loss": False}, 0.0), ({"loss": True}, 1.0), ({"loss": "false"}, 0.0), ({"loss": False, "weight": 0}, 0.0),
    ],
)  # fmt: skip
def test_loss_per_turn(given: dict[str, Any], weight: float) -> None:
    talk = [
        {"role": "user", "content": "a", "loss": False, "weight": 0},
        {"role": "assistant", "content": "b", **given},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    assert read(talk)[1] == Message("assistant", "b", weight)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(key: str) -> None:
    assert read([USER, {"role": "assistant", "content": "yes", key: "hm"}])[1] == Message("assistant", "yes", 1.0, "hm")
    inline = {"role": "assistant", "content": "<think>a</think>yes", key: "hm"}
    assert read([USER, inline])[1] == Message("assistant", "<think>a</think>yes", reasoning="hm")


def test_prompt_with_its_own_completion() -> None:
    """Only the completion is learnt, as in TRL; with a better and a worse one, the prompt is kept as it is."""
    talk = [USER, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    layout = Layout("openai", {"messages": "talk", "response": "then"}, False)
    example = read_example({"talk": talk, "then": [{"role": "assistant", "content": "d"}]}, layout, None, PLACE)
    before = (Message("user", "q"), Message("assistant", "b", 0.0), Message("user", "c"))
    assert example == Dialog((*before, Message("assistant", "d")), PLACE)
    layout = Layout("openai", {"messages": "talk", "chosen": "good", "rejected": "bad"}, False, "preference")
    ranked = read_example(
        {"talk": talk, "good": "d", "bad": {"role": "assistant", "content": "e"}}, layout, None, PLACE
    )
    before = (Message("user", "q"), Message("assistant", "b"), Message("user", "c"))
    assert ranked == Preference(before, Message("assistant", "d"), Message("assistant", "e"), PLACE)


@pytest.mark.parametrize("columns", [{}, {"prompt": "prompt"}])
def test_whole_dialogs_that_differ_in_the_last_answer(columns: dict[str, str]) -> None:
    """As UltraFeedback and TRL write them; the prompt, where it is told again, must be the same."""
    system = {"role": "system", "content": "s"}
    row = {
        "prompt": "q",
        "chosen": [system, USER, {"role": "assistant", "content": "y"}],
        "rejected": [system, USER, {"role": "assistant", "content": "n"}],
    }
    layout = Layout("openai", {**columns, "chosen": "chosen", "rejected": "rejected"}, False, "preference")
    assert read_example(row, layout, "unused", PLACE) == Preference(
        (Message("system", "s"), Message("user", "q")), Message("assistant", "y"), Message("assistant", "n"), PLACE
    )
    row["rejected"] = row["rejected"][1:]
    with pytest.raises(BadRow, match="reply to different dialogs"):
        read_example(row, layout, "unused", PLACE)


def test_rejected_answer_beside_a_dialog() -> None:
    """As ms-swift writes it: the dialog's own last answer is the better one."""
    layout = Layout("openai", {"messages": "talk", "rejected": "bad"}, False, "preference")
    row = {"talk": [USER, ANSWER], "bad": "n"}
    assert read_example(row, layout, None, PLACE) == Preference(
        (Message("user", "q"),), Message("assistant", "a"), Message("assistant", "n"), PLACE
    )
    with pytest.raises(BadRow, match="the dialog does not end with an answer"):
        read_example({"talk": [USER], "bad": "n"}, layout, None, PLACE)


def test_prompts() -> None:
    layout = Layout("openai", {"messages": "talk"}, False, "prompt")
    assert read_example({"talk": [USER]}, layout, None, PLACE) == Prompt((Message("user", "q"),), PLACE)
    assert reason([USER, ANSWER], layout) == "the prompt ends with an answer"


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        ([{"input": "", "output": "a"}], "no question"),
        ([{"input": "q", "output": "a"}, {"input": "q", "output": None}], "no answer"),
        ([{"input": "q", "output": "a"}, {"input": "q"}], "no answer"),
        ([{"input": "q", "output": "a"}, {"system": "s", "input": "q", "output": "a"}],
         "the system prompt changes within the dialog"),
        ([{"input": "q", "output": "a", "output_with_loss": False}], "no answer of the dialog carries loss"),
        ([{"input": "q", "output": "a", "output_with_loss": "no"}],
         "the output_with_loss of a turn is neither true or false nor a number from 0 up"),
        ([{"input": ["q"], "output": "a"}], "the question is not text"),
        ([{"role": "user", "content": "q"}], "no question"),
    ],
)  # fmt: skip
def test_bad_input_output_turns(talk: object, expected: str) -> None:
    assert reason(talk, XTUNER) == expected


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        (None, "no turns"),
        ([], "no turns"),
        (" ", "no turns"),
        ("text", "the dialog is not a list of turns"),
        ("[1, 2", "the dialog is not a list of turns"),
        ("[" * 100_000, "the dialog is not a list of turns"),
        (["text"], "the dialog is not a list of turns"),
        ({"input": "a"}, "the dialog is not a list of turns"),
        ([{"content": "q"}], "a turn has the role None; read are system, user, assistant and tool"),
        ([USER, {"role": "judge", "content": "x"}],
         "a turn has the role 'judge'; read are system, user, assistant and tool"),
        ([USER, {"role": ["user"], "content": "x"}],
         "a turn has the role ['user']; read are system, user, assistant and tool"),
        ([USER, USER], "question and answer do not alternate"),
        ([USER, ANSWER, ANSWER], "question and answer do not alternate"),
        ([USER, {"role": "tool", "content": "1"}], "question and answer do not alternate"),
        ([{"role": "tool", "content": "1"}], "question and answer do not alternate"),
        ([USER, ANSWER, {"role": "tool", "content": "1"}, USER], "question and answer do not alternate"),
        ([ANSWER], "no question comes before the answer"),
        ([ANSWER, USER, ANSWER], "no question comes before the answer"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "a system prompt stands after the first turn"),
        ([{"role": "system", "content": "x"}] * 2, "a system prompt stands after the first turn"),
        ([USER], "the dialog does not end with an answer"),
        ([USER, ANSWER, {"role": "tool", "content": "1"}], "the dialog does not end with an answer"),
        ([{"role": "system", "content": "x"}], "no turns but a system prompt"),
        ([{"role": "system", "content": ["x", 1]}, USER, ANSWER], "the system prompt is not text"),
        ([{"role": "user", "content": ""}, ANSWER], "no question"),
        ([{"role": "user", "content": []}, ANSWER], "no question"),
        ([USER, {"role": "assistant", "content": None}], "no answer"),
        ([USER, {"role": "assistant"}], "no answer"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": []}], "no answer"),
        ([USER, {"role": "assistant", "content": "", "reasoning_content": "hm"}], "no answer"),
        ([USER, {"role": "assistant", "content": {"text": "a"}}], "the answer is not text"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "the answer is not text"),
        ([USER, {"role": "assistant", "content": "a\ud83d"}],
         "the answer holds half of a character (a lone surrogate)"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER],
         "a turn has a part of the type 'image_url', but only text can be learnt"),
        ([{"role": "user", "content": [{"text": "q"}]}, ANSWER],
         "a turn has a part of the type None, but only text can be learnt"),
        ([USER, {**ANSWER, "loss": False}], "no answer of the dialog carries loss"),
        ([USER, {**ANSWER, "weight": -1}], "the weight of a turn is neither true or false nor a number from 0 up"),
        ([USER, {**ANSWER, "loss": [1]}], "the loss of a turn is neither true or false nor a number from 0 up"),
        ([USER, {**ANSWER, "loss": True, "weight": 0}], "weight and loss of a turn say different things"),
        ([{**USER, "weight": 1}, ANSWER], "a turn that is not the assistant's asks for loss"),
        ([{"role": "system", "content": "s", "loss": True}, USER, ANSWER],
         "a turn that is not the assistant's asks for loss"),
        ([USER, {"role": "assistant", "tool_calls": "f"}], "tool_calls is not a list"),
        ([USER, {"role": "assistant", "tool_calls": ["f"]}], "a tool call has no name"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}], "a tool call has no name"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}],
         "the argument object of a tool call is not JSON"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}],
         "the arguments of a tool call are not an object"),
        ([USER, {"role": "function_call", "content": "weather()"}], "the tool call is not JSON"),
        ([USER, {"role": "function_call", "content": "[]"}], "no answer"),
        ([USER, {"role": "function_call", "content": "7"}], "a tool call has no name"),
        ([USER, {"role": "function_call", "content": ""}], "no answer"),
    ],
)  # fmt: skip
def test_bad_spoken_turns(talk: object, expected: str) -> None:
    assert reason(talk) == expected


def test_answer_needs_words_or_calls() -> None:
    assert answer("", calls=(CALLED,)).tool_calls == (CALLED,)
    with pytest.raises(BadRow, match="no answer"):
        answer(" ")
