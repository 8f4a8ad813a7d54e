"""Rows with columns of text become the right examples; every kind of bad row has its reason."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.columns import Layout
from tunewright.data.examples import Dialog, Example, Labelled, Message, Place, Preference, Prompt, Text
from tunewright.data.formats import BadRow, for_stage, read_example
from tunewright.data.turns import Tags

PLACE = Place("rows.json", 7)
ALPACA = Layout(
    "alpaca",
    {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"},
    False,
)


def turns(row: dict[str, Any], layout: Layout = ALPACA, system: str | None = None) -> list[tuple[str, str]]:
    example = read_example(row, layout, system, PLACE)
    assert isinstance(example, Dialog)
    assert example.place == PLACE
    assert all(message.weight == 1 for message in example.messages)
    return [(message.role, message.content) for message in example.messages]


def reason(row: dict[str, Any], layout: Layout = ALPACA) -> str:
    with pytest.raises(BadRow) as caught:
        read_example(row, layout, "system", PLACE)
    return str(caught.value)


def test_alpaca_with_everything() -> None:
    row = {
        "instruction": "Translate",
        "input": "good day",
        "output": "bonjour",
        "system": "You translate.",
        "history": [["hi", "salut"], ["bye", "adieu"]],
    }
    assert turns(row, system="unused") == [
        ("system", "You translate."),
        ("user", "hi"),
        ("assistant", "salut"),
        ("user", "bye"),
        ("assistant", "adieu"),
        ("user", "Translate\ngood day"),
        ("assistant", "bonjour"),
    ]


@pytest.mark.parametrize(
    ("instruction", "further", "question"),
    [("a", "b", "a\nb"), ("a", "", "a"), ("a", None, "a"), ("a", " \n", "a"), ("", "b", "b"), (None, "b", "b")],
)
def test_question_and_input_are_joined_only_when_both_are_there(
    instruction: str | None, further: str | None, question: str
) -> None:
    assert turns({"instruction": instruction, "input": further, "output": "x"}) == [
        ("user", question),
        ("assistant", "x"),
    ]


@pytest.mark.parametrize("own", [None, "", " "])
def test_system_of_the_config_fills_where_a_row_has_none(own: str | None) -> None:
    row = {"instruction": "q", "output": "a", "system": own}
    assert turns(row, system="you are") == [("system", "you are"), ("user", "q"), ("assistant", "a")]
    assert turns(row, system=" ") == [("user", "q"), ("assistant", "a")]


# A leading thought is taken apart from the answer; tests/data/test_turns.py looks at those.
@given(
    st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip).filter(lambda t: "<think>" not in t)
)
def test_text_stays_exactly_as_it_stands(question: str, answer: str) -> None:
    assert turns({"instruction": question, "output": answer}) == [("user", question), ("assistant", answer)]


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (-0.5, "-0.5"), (0, "0"), (1e300, str(int(1e300))), (10**30, str(10**30))]
)
def test_numbers_are_written_out(value: float, text: str) -> None:
    assert turns({"instruction": value, "output": value}) == [("user", text), ("assistant", text)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"output": "a"}, "no question"),
        ({"instruction": None, "input": " ", "output": "a"}, "no question"),
        ({"instruction": "q"}, "no answer"),
        ({"instruction": "q", "output": None}, "no answer"),
        ({"instruction": "q", "output": ""}, "no answer"),
        ({"instruction": "q", "output": "\n\t　"}, "no answer"),
        ({"instruction": "q", "output": math.nan}, "no answer"),
        ({"instruction": "q", "output": math.inf}, "no answer"),
        ({"instruction": ["q"], "output": "a"}, "the question is not text"),
        ({"instruction": "q", "output": {"a": 1}}, "the answer is not text"),
        ({"instruction": "q", "output": True}, "the answer is not text"),
        ({"instruction": "q", "output": "a", "system": ["s"]}, "the system prompt is not text"),
        ({"instruction": "q\ud83d", "output": "a"}, "the question holds half of a character (a lone surrogate)"),
        ({"instruction": "q", "output": "a", "history": "x"}, "history is not a list of [question, answer]"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "history is not a list of [question, answer]"),
        ({"instruction": "q", "output": "a", "history": [["x", " "]]}, "no answer in history"),
        ({"instruction": "q", "output": "a", "history": [[None, "y"]]}, "no question in history"),
        ({"instruction": "q", "output": "a", "history": [[[], "y"]]}, "the question in history is not text"),
    ],
)
def test_bad_alpaca_rows(row: dict[str, Any], expected: str) -> None:
    assert reason(row) == expected


def test_history_in_a_table_is_json() -> None:
    assert turns({"instruction": "q", "output": "a", "history": '[["hi", "salut"]]'})[:2] == [
        ("user", "hi"), ("assistant", "salut"),
    ]  # fmt: skip
    assert reason({"instruction": "q", "output": "a", "history": "[["}) == "history is not a list of [question, answer]"


def test_a_leading_thought_is_reasoning() -> None:
    """It is kept apart, so that the template can place or strip it; a later one is ordinary text."""
    row = {"instruction": "q", "output": "<think>\nhm\n</think>\n\nyes", "history": [["a", "b <think>c</think>"]]}
    example = read_example(row, ALPACA, None, PLACE)
    assert isinstance(example, Dialog)
    assert example.messages[1] == Message("assistant", "b <think>c</think>")
    assert example.messages[-1] == Message("assistant", "yes", reasoning="hm")
    empty = read_example({"instruction": "q", "output": "<think>\n\n</think>\n\nyes"}, ALPACA, None, PLACE)
    assert isinstance(empty, Dialog)
    assert empty.messages[-1] == Message("assistant", "yes")
    assert reason({"instruction": "q", "output": "<think>hm</think> "}) == "no answer"


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ('[{"name": "f",  "parameters": {}}]', '[{"name":"f","parameters":{}}]'),
        ([{"name": "查"}], '[{"name":"查"}]'),
        ("", None), (None, None), ([], None), ("[]", None),
    ],
)  # fmt: skip
def test_tools_have_one_spelling(tools: object, expected: str | None) -> None:
    layout = Layout("alpaca", {"prompt": "q", "response": "a", "tools": "tools"}, False)
    example = read_example({"q": "x", "a": "y", "tools": tools}, layout, None, PLACE)
    assert isinstance(example, Dialog)
    assert example.tools == expected


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ("[{", "the list of tools is not JSON"),
        ("f", "the list of tools is not JSON"),
        ("[" * 100_000, "the list of tools is not JSON"),
        ('["f"]', "the tools are not a list of objects"),
        ({"name": "f"}, "the tools are not a list of objects"),
        (7, "the tools are not a list of objects"),
        ([{"name": "f", "limit": math.nan}], "the list of tools is not JSON"),
        ([{"name": b"f"}], "the list of tools is not JSON"),
        ([{"name": "\ud83d"}], "the list of tools holds half of a character (a lone surrogate)"),
    ],
)
def test_bad_tools(tools: object, expected: str) -> None:
    layout = Layout("alpaca", {"prompt": "q", "response": "a", "tools": "tools"}, False)
    assert reason({"q": "x", "a": "y", "tools": tools}, layout) == expected


@pytest.mark.parametrize("name", ["images", "videos", "audios"])
def test_pictures_and_sounds_are_refused(name: str) -> None:
    assert (
        reason({"instruction": "q", "output": "a", name: ["x"]}) == f"the row has {name}, but only text can be learnt"
    )
    assert turns({"instruction": "q", "output": "a", name: []}) == [("user", "q"), ("assistant", "a")]


RANKED = Layout("alpaca", {"prompt": "q", "chosen": "good", "rejected": "bad"}, False, "preference")
QUESTION = (Message("system", "s"), Message("user", "x"))


def test_better_and_worse_answers() -> None:
    expected = Preference(QUESTION, Message("assistant", "y"), Message("assistant", "n"), PLACE)
    assert read_example({"q": "x", "good": "y", "bad": "n"}, RANKED, "s", PLACE) == expected
    messages = {"q": "x", "good": {"role": "assistant", "content": "y"}, "bad": [{"role": "assistant", "content": "n"}]}
    assert read_example(messages, RANKED, "s", PLACE) == expected
    both = Layout("alpaca", {"prompt": "q", "response": "answers"}, False, "preference")
    assert read_example({"q": "x", "answers": ["y", "n"]}, both, "s", PLACE) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "x", "good": "y"}, "no answer"),
        ({"q": "x", "good": " ", "bad": "n"}, "no answer"),
        ({"q": "", "good": "y", "bad": "n"}, "no question"),
        ({"q": "x", "good": ["y"], "bad": "n"}, "the answer is not text"),
        ({"q": "x", "good": {"text": "y"}, "bad": "n"}, "the answer is not text"),
        ({"q": "x", "good": [], "bad": "n"}, "no answer"),
        ({"q": "x", "good": {"role": "user", "content": "y"}, "bad": "n"},
         "an answer does not end with the assistant's turn"),
        ({"q": "x", "good": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}], "bad": "n"},
         "an answer does not reply to the prompt"),
        ({"q": "x", "bad": "n", "good": [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "1"}, {"role": "assistant", "content": "y"}]},
         "the better and the worse answer reply to different dialogs"),
    ],
)  # fmt: skip
def test_bad_better_and_worse_answers(row: dict[str, Any], expected: str) -> None:
    assert reason(row, RANKED) == expected


def test_two_answers_in_a_list() -> None:
    both = Layout("alpaca", {"prompt": "q", "response": "answers"}, False, "preference")
    for answers in (["y"], "y", None, ["a", "b", "c"], {"a": "b"}):
        assert reason({"q": "x", "answers": answers}, both) == "the answer is not a list of a better and a worse one"


HH = Layout("hh", {"chosen": "chosen", "rejected": "rejected"}, False, "preference")


def test_transcripts() -> None:
    before = "\n\nHuman: hi \n\nAssistant: hello\n\nHuman: two\n\nlines\n\nAssistant:"
    row = {"chosen": f"{before} yes", "rejected": f"{before} no\n"}
    assert read_example(row, HH, None, PLACE) == Preference(
        (Message("user", "hi"), Message("assistant", "hello"), Message("user", "two\n\nlines")),
        Message("assistant", "yes"),
        Message("assistant", "no"),
        PLACE,
    )


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, "no answer"),
        (["a"], "the answer is not text"),
        ("hello", "the dialog does not begin with 'Human:'"),
        ("hello\n\nHuman: x\n\nAssistant: y", "the dialog does not begin with 'Human:'"),
        ("Assistant: y", "question and answer do not alternate"),
        ("Human: x\n\nHuman: x", "question and answer do not alternate"),
        ("Human: x", "the dialog does not end with an answer"),
        ("Human: x\n\nAssistant: ", "no answer"),
        ("Human:\n\nAssistant: y", "no question"),
        ("Human: z\n\nAssistant: y", "the better and the worse answer reply to different dialogs"),
        ("Human: x\n\nAssistant: a\n\nHuman: b\n\nAssistant: y",
         "the better and the worse answer reply to different dialogs"),
    ],
)  # fmt: skip
def test_bad_transcripts(chosen: object, expected: str) -> None:
    assert reason({"chosen": chosen, "rejected": "Human: x\n\nAssistant: n"}, HH) == expected


LABELLED = Layout("prompt-completion", {"prompt": "q", "response": "a", "label": "label"}, False, "labelled")


@pytest.mark.parametrize(
    ("label", "good"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("True", True),
        (" false ", False),
        ("0", False),
        (1.0, True),
    ],
)
def test_labelled_answers(label: object, good: bool) -> None:
    row = {"q": "x", "a": "y", "label": label}
    assert read_example(row, LABELLED, "s", PLACE) == Labelled(QUESTION, Message("assistant", "y"), good, PLACE)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"q": "x", "a": "y"}, "no label"),
        ({"q": "x", "a": "y", "label": ""}, "no label"),
        ({"q": "x", "a": "y", "label": math.nan}, "no label"),
        ({"q": "x", "a": "y", "label": "good"}, "the label is not true or false"),
        ({"q": "x", "a": "y", "label": 2}, "the label is not true or false"),
        ({"q": "x", "a": "y", "label": [True]}, "the label is not true or false"),
        ({"q": "x", "label": True}, "no answer"),
        ({"a": "x", "label": True}, "no question"),
    ],
)
def test_bad_labelled_answers(row: dict[str, Any], expected: str) -> None:
    assert reason(row, LABELLED) == expected


def test_prompts() -> None:
    layout = Layout("prompt-completion", {"prompt": "q"}, False, "prompt")
    assert read_example({"q": "x"}, layout, "s", PLACE) == Prompt(QUESTION, PLACE)
    assert reason({"q": None}, layout) == "no question"


def test_raw_text() -> None:
    layout = Layout("text", {"text": "text"}, False, "text")
    assert read_example({"text": " once\n"}, layout, "unused", PLACE) == Text(" once\n", PLACE)
    assert reason({"text": " "}, layout) == "no text"
    assert reason({}, layout) == "no text"
    assert reason({"text": []}, layout) == "the text is not text"


@pytest.mark.parametrize(
    ("layout", "cell"),
    [
        (Layout("xtuner", {"messages": "talk"}, False, "text", Tags(pair=("input", "output"))),
         [{"input": "", "output": "<think>a</think> b", "need_eos_token": False}]),
        (Layout("openai", {"messages": "talk"}, False, "text"),
         [{"role": "assistant", "content": "<think>a</think> b"}]),
    ],
)  # fmt: skip
def test_raw_text_as_an_answer_to_nothing(layout: Layout, cell: object) -> None:
    assert read_example({"talk": cell}, layout, None, PLACE) == Text("<think>a</think> b", PLACE)


@pytest.mark.parametrize(
    ("tags", "cell", "expected"),
    [
        (Tags(pair=("input", "output")), [{"input": "q", "output": "a"}],
         "pre-training learns from raw text, but this row has a question"),
        (Tags(pair=("input", "output")), [{"output": "a"}, {"output": "a"}],
         "pre-training learns from raw text, which this row is not"),
        (Tags(pair=("input", "output")), [{"output": " "}], "no text"),
        (Tags(), [{"role": "user", "content": "q"}], "pre-training learns from raw text, which this row is not"),
        (Tags(), [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}],
         "pre-training learns from raw text, which this row is not"),
        (Tags(), None, "no turns"),
    ],
)  # fmt: skip
def test_dialogs_are_no_raw_text(tags: Tags, cell: object, expected: str) -> None:
    assert reason({"talk": cell}, Layout("openai", {"messages": "talk"}, False, "text", tags)) == expected


YES, NO = Message("assistant", "yes"), Message("assistant", "no")
USER = (Message("user", "q"),)
EXAMPLES: dict[str, Example] = {
    "text": Text("t", PLACE),
    "dialog": Dialog((*USER, YES), PLACE, "[]"),
    "preference": Preference(USER, YES, NO, PLACE, "[]"),
    "equal": Preference(USER, YES, YES, PLACE),
    "good": Labelled(USER, YES, True, PLACE, "[]"),
    "bad": Labelled(USER, NO, False, PLACE),
    "untrained": Labelled(USER, Message("assistant", "yes", 0.0), True, PLACE),
    "prompt": Prompt(USER, PLACE, "[]"),
}
NOT_RAW = "pre-training learns from raw text, which this row is not"
RAW = "the row is raw text, which only pre-training learns from"
UNRANKED = "the row has no better and worse answer"
UNLABELLED = "the row's answer is not labelled good or bad"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("pt", {"text": "text", **dict.fromkeys(EXAMPLES.keys() - {"text"}, NOT_RAW)}),
        ("sft", {"text": RAW, "dialog": "dialog", "preference": "dialog", "equal": Dialog((*USER, YES), PLACE),
                 "good": "dialog", "bad": "its answer is labelled bad", "prompt": "no answer",
                 "untrained": "no answer of the dialog carries loss"}),
        ("dpo", {"text": RAW, "preference": "preference", "equal": "the better and the worse answer are the same",
                 **dict.fromkeys(["dialog", "good", "bad", "untrained", "prompt"], UNRANKED)}),
        ("kto", {"text": RAW, "good": "good", "bad": "bad", "untrained": "untrained",
                 **dict.fromkeys(["dialog", "preference", "equal", "prompt"], UNLABELLED)}),
        ("grpo", {"text": RAW, **dict.fromkeys(["dialog", "preference", "good", "prompt"], "prompt"),
                  **dict.fromkeys(["equal", "bad", "untrained"], Prompt(USER, PLACE))}),
    ],
)  # fmt: skip
def test_stages_take_what_they_learn_from(stage: str, expected: dict[str, Any]) -> None:
    assert expected.keys() == EXAMPLES.keys()
    for name, result in expected.items():
        try:
            taken: object = for_stage(EXAMPLES[name], stage)
        except BadRow as bad:
            taken = str(bad)
        assert taken == (EXAMPLES.get(result, result) if isinstance(result, str) else result), name
