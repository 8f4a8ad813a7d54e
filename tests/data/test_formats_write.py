"""What a form can hold comes back exactly; what it can't hold is refused with what is in the way."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.cli.ls import FORMATS
from tunewright.config.schema import SourceConfig
from tunewright.data.column_names import OWN
from tunewright.data.columns import Format, choose_layout
from tunewright.data.examples import Dialog, Example, Labelled, Message, Place, Preference, Prompt, Text, ToolCall
from tunewright.data.formats import BadRow, read_example
from tunewright.data.formats_write import COLUMNS, WRITERS, write_row

PLACE = Place("rows.json", 7)
SYSTEM, USER, ANSWER = Message("system", "s"), Message("user", "q"), Message("assistant", "a")
CALLS = Message("assistant", "", tool_calls=(ToolCall("f", '{"x":1}'), ToolCall("g", "{}")))
TOOLS = '[{"name":"f"}]'
PLAIN = Dialog((SYSTEM, USER, ANSWER, Message("user", "again"), Message("assistant", "b", reasoning="hm")), PLACE)
ONE = Dialog((USER, ANSWER), PLACE)
AGENT = Dialog((USER, CALLS, Message("tool", "1"), Message("tool", "2"), ANSWER), PLACE, TOOLS)
NAMED = Dialog((USER, CALLS, Message("tool", "2", name="g"), Message("tool", "1", name="f"), ANSWER), PLACE, TOOLS)
PREFERENCE = Preference((USER,), ANSWER, Message("assistant", "b"), PLACE)
LABELLED = Labelled((SYSTEM, USER), ANSWER, False, PLACE)
PROMPT = Prompt((USER, ANSWER, Message("user", "again")), PLACE)
TEXT = Text("once", PLACE)


@pytest.mark.parametrize(
    ("example", "form", "row"),
    [
        (PLAIN, "alpaca", {"instruction": "again", "input": "", "output": "<think>\nhm\n</think>\n\nb", "system": "s",
                           "history": [["q", "a"]]}),
        (ONE, "alpaca", {"instruction": "q", "input": "", "output": "a"}),
        (PREFERENCE, "alpaca", {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}),
        (LABELLED, "alpaca", {"instruction": "q", "input": "", "output": "a", "kto_tag": False, "system": "s"}),
        (PROMPT, "alpaca", {"instruction": "again", "input": "", "history": [["q", "a"]]}),
        (PLAIN, "query-response", {"query": "again", "response": "<think>\nhm\n</think>\n\nb", "system": "s",
                                   "history": [["q", "a"]]}),
        (PREFERENCE, "query-response", {"query": "q", "response": "a", "rejected_response": "b"}),
        (LABELLED, "query-response", {"query": "q", "response": "a", "label": False, "system": "s"}),
        (ONE, "prompt-completion", {"prompt": "q", "completion": "a"}),
        (PREFERENCE, "prompt-completion", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        (LABELLED, "prompt-completion",
         {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
          "completion": [{"role": "assistant", "content": "a"}], "label": False}),
        (PLAIN, "sharegpt",
         {"system": "s", "conversations": [
             {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "again"},
             {"from": "gpt", "value": "<think>\nhm\n</think>\n\nb"}]}),
        (PREFERENCE, "sharegpt", {"conversations": [{"from": "human", "value": "q"}],
                                  "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}),
        (AGENT, "sharegpt",
         {"conversations": [
             {"from": "human", "value": "q"},
             {"from": "function_call",
              "value": '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'},
             {"from": "observation", "value": "1"}, {"from": "observation", "value": "2"},
             {"from": "gpt", "value": "a"}],
          "tools": TOOLS}),
        (PLAIN, "openai",
         {"messages": [
             {"role": "system", "content": "s"}, {"role": "user", "content": "q"},
             {"role": "assistant", "content": "a"}, {"role": "user", "content": "again"},
             {"role": "assistant", "content": "b", "reasoning_content": "hm"}]}),
        (NAMED, "openai",
         {"messages": [
             {"role": "user", "content": "q"},
             {"role": "assistant", "content": "", "tool_calls": [
                 {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                 {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
             {"role": "tool", "content": "2", "name": "g", "tool_call_id": "call_1"},
             {"role": "tool", "content": "1", "name": "f", "tool_call_id": "call_0"},
             {"role": "assistant", "content": "a"}],
          "tools": [{"name": "f"}]}),
        (Dialog((USER, Message("assistant", "x", 0.0), Message("user", "y"), ANSWER), PLACE), "openai",
         {"messages": [
             {"role": "user", "content": "q"}, {"role": "assistant", "content": "x", "weight": 0},
             {"role": "user", "content": "y"}, {"role": "assistant", "content": "a"}]}),
        (TEXT, "openai", {"messages": [{"role": "assistant", "content": "once"}]}),
        (Dialog((SYSTEM, USER, Message("assistant", "x", 0.0), Message("user", "y"), ANSWER), PLACE), "xtuner",
         {"conversation": [{"system": "s", "input": "q", "output": "x", "output_with_loss": False},
                           {"input": "y", "output": "a"}]}),
        (TEXT, "xtuner", {"conversation": [{"input": "", "output": "once"}]}),
        (PREFERENCE, "hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
        (TEXT, "text", {"text": "once"}),
    ],
)  # fmt: skip
def test_golden_rows(example: Example, form: Any, row: dict[str, Any]) -> None:
    assert write_row(example, form) == row


@pytest.mark.parametrize(
    ("example", "form", "reason"),
    [
        (TEXT, "alpaca", "alpaca can't hold raw text"),
        (TEXT, "query-response", "query-response can't hold raw text"),
        (TEXT, "prompt-completion", "prompt-completion can't hold raw text"),
        (TEXT, "sharegpt", "sharegpt can't hold raw text"),
        (TEXT, "hh", "hh holds better and worse answers only"),
        (ONE, "hh", "hh holds better and worse answers only"),
        (ONE, "text", "text holds raw text only, and this row is a dialog"),
        (AGENT, "alpaca", "alpaca can't hold calls of tools"),
        (AGENT, "xtuner", "xtuner can't hold tools"),
        (NAMED, "sharegpt", "sharegpt can't hold the name of a tool that answers"),
        (Dialog((USER, Message("assistant", "x", tool_calls=CALLS.tool_calls)), PLACE), "sharegpt",
         "sharegpt can't hold a call of tools and words in one turn"),
        (PLAIN, "prompt-completion", "prompt-completion learns the last answer only, this dialog has more"),
        (Dialog((USER, Message("assistant", "x", 0.5)), PLACE), "alpaca",
         "alpaca can't hold an answer with a loss weight of its own"),
        (Dialog((USER, Message("assistant", "x", 0.5)), PLACE), "sharegpt",
         "sharegpt can't hold an answer with a loss weight of its own"),
        (Dialog((USER, Message("assistant", "x", 0.5)), PLACE), "xtuner",
         "xtuner can't hold a loss weight between 0 and 1, or above"),
        (PREFERENCE, "xtuner", "xtuner holds answered dialogs and raw text only"),
        (Preference((SYSTEM, USER), ANSWER, ANSWER, PLACE), "hh", "hh can't hold a system prompt or tools"),
        (Preference((USER,), ANSWER, Message("assistant", " b"), PLACE), "hh", "hh can't hold this row exactly"),
        (Preference((USER,), ANSWER, Message("assistant", "b\n\nHuman: c"), PLACE), "hh",
         "hh can't hold this row: the dialog does not end with an answer"),
        (Dialog((USER, Message("assistant", "\nb", reasoning="hm")), PLACE), "alpaca",
         "alpaca can't hold this row exactly"),
        (Dialog((USER, Message("assistant", "<think>c</think>b")), PLACE), "openai",
         "openai can't hold this row exactly"),
    ],
)  # fmt: skip
def test_what_a_form_cannot_hold(example: Example, form: Any, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        write_row(example, form)
    assert str(caught.value) == reason


words = st.text(max_size=6).filter(str.strip) | st.sampled_from(
    ["<think>", "Human:", "[]", "\n\nAssistant: a", "<think>a</think>b"]
)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=3)
objects = st.dictionaries(st.text(max_size=3), values, max_size=2)
calls = st.builds(
    lambda name, arguments: ToolCall(name, json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))),
    words,
    objects,
)
questions = st.builds(Message, st.just("user"), words)
weights = st.just(1.0) | st.sampled_from([0.0, 0.5, 2.0])
said = st.builds(Message, st.just("assistant"), words, weights, st.none() | words)
called = st.builds(
    Message,
    st.just("assistant"),
    words | st.just(""),
    weights,
    st.none(),
    st.lists(calls, min_size=1, max_size=2).map(tuple),
)
answered = st.builds(Message, st.just("tool"), words | st.just(""), name=st.none() | words)


@st.composite
def dialogs(draw: st.DrawFn) -> tuple[Message, ...]:
    """A system prompt or none, then questions, each with calls and answers of tools or none, and a last answer."""
    messages = [Message("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(draw(questions))
        for _ in range(draw(st.sampled_from([0, 0, 1]))):
            messages += [draw(called), *draw(st.lists(answered, min_size=1, max_size=2))]
        messages.append(draw(said))
    return tuple(messages)


tools = st.none() | st.lists(objects, min_size=1, max_size=2).map(
    lambda listed: json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
)
examples = st.one_of(
    st.builds(Dialog, dialogs().filter(lambda turns: any(turn.train for turn in turns)), st.just(PLACE), tools),
    st.builds(lambda turns, no, tools: Preference(turns[:-1], turns[-1], no, PLACE, tools), dialogs(), said, tools),
    st.builds(
        lambda turns, ok, tools: Labelled(turns[:-1], turns[-1], ok, PLACE, tools), dialogs(), st.booleans(), tools
    ),
    st.builds(lambda turns, tools: Prompt(turns[:-1], PLACE, tools), dialogs(), tools),
    st.builds(Text, words, st.just(PLACE)),
)
STAGES = {Dialog: "sft", Preference: "dpo", Labelled: "kto", Prompt: "ppo", Text: "pt"}


@given(examples, st.sampled_from(list(WRITERS)))
def test_what_is_written_is_read_again(example: Example, form: Any) -> None:
    """Also by someone who is told nothing but the form, through a file of JSON lines."""
    try:
        row = json.loads(json.dumps(write_row(example, form)))
    except BadRow:
        return
    layout = choose_layout([row], SourceConfig(path="f.jsonl", format=form), STAGES[type(example)], "data.train")
    assert not layout.guessed
    assert read_example(row, layout, None, PLACE) == example


def test_every_list_of_forms_has_them_all() -> None:
    forms = set(get_args(Format))
    assert set(WRITERS) == set(COLUMNS) == set(OWN) == forms
    assert set(FORMATS) == forms | {"conversation"}
    assert set(get_args(SourceConfig.model_fields["format"].annotation)) == forms | {"conversation", "auto"}


@given(dialogs().filter(lambda turns: any(turn.train for turn in turns)), tools)
def test_openai_holds_every_dialog(turns: tuple[Message, ...], tools: str | None) -> None:
    """Nothing but a thought at the beginning of the words, which is read as reasoning, is refused."""
    if any(turn.content.lstrip().startswith("<think>") for turn in turns):
        return
    assert write_row(Dialog(turns, PLACE, tools), "openai")["messages"]
