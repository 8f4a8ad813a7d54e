"""Rows of each form become the right messages; every kind of bad row has its reason."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config.schema import ColumnsConfig, SourceConfig
from tunewright.data.columns import Layout, choose_layout
from tunewright.data.examples import Dialog, Message, Place, Text
from tunewright.data.formats import BadRow, read_example
from tunewright.errors import UsageError

PLACE = Place("rows.json", 7)
ALPACA = Layout(
    "alpaca",
    {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"},
    False,
)
CONVERSATION = Layout("conversation", {"messages": "conversation", "system": "system"}, False)


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


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
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


def test_input_output_turns() -> None:
    row = {
        "conversation": [
            {"system": "be kind", "input": "hi", "output": "hello", "need_eos_token": False},
            {"system": "be kind", "input": "how are you", "output": "fine"},
            {"input": "bye", "output": "see you"},
        ]
    }
    dialog = [("user", "hi"), ("assistant", "hello"), ("user", "how are you"), ("assistant", "fine")]
    assert turns(row, CONVERSATION) == [
        ("system", "be kind"), *dialog, ("user", "bye"), ("assistant", "see you"),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
@pytest.mark.parametrize("own", [True, False])
def test_role_turns(names: tuple[str, str, str, str], own: bool) -> None:
    role, content, user, assistant = names
    spoken = [(user, "hi"), (assistant, "hello"), (user, "bye"), (assistant, "see you")]
    if own:
        spoken.insert(0, ("system", "be kind"))
    row = {"conversation": [{role: who, content: what} for who, what in spoken], "system": "of the row"}
    assert turns(row, CONVERSATION, "of the config") == [
        ("system", "be kind" if own else "of the row"),
        ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "see you"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        [{"input": "a", "output": "b", "output_with_loss": False}, {"input": "c", "output": "d"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "loss": False},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ],
    ],
)
def test_answers_may_be_kept_from_training(value: list[dict[str, Any]]) -> None:
    example = read_example({"conversation": value}, CONVERSATION, None, PLACE)
    assert isinstance(example, Dialog)
    assert example.messages == (
        Message("user", "a"), Message("assistant", "b", weight=0.0), Message("user", "c"), Message("assistant", "d"),
    )  # fmt: skip


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "no turns"),
        ([], "no turns"),
        ("text", "the dialog is not a list of turns"),
        (["text"], "the dialog is not a list of turns"),
        ({"input": "a"}, "the dialog is not a list of turns"),
        ([{"input": "", "output": "a"}], "no question"),
        ([{"input": "q", "output": "a"}, {"input": "q", "output": None}], "no answer"),
        ([{"input": "q", "output": "a"}, {"input": "q"}], "no answer"),
        ([{"input": "q", "output": "a"}, {"system": "s", "input": "q", "output": "a"}],
         "the system prompt changes within the dialog"),
        ([{"input": "q", "output": "a", "output_with_loss": False}], "no answer of the dialog carries loss"),
        ([{"input": "q"}], "a turn has the role None; read are system, user and assistant"),
        ([USER, {"role": "tool", "content": "x"}], "a turn has the role 'tool'; read are system, user and assistant"),
        ([USER, {"role": ["user"], "content": "x"}],
         "a turn has the role ['user']; read are system, user and assistant"),
        ([USER, USER], "question and answer do not alternate"),
        ([ANSWER], "question and answer do not alternate"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "question and answer do not alternate"),
        ([USER], "the dialog does not end with an answer"),
        ([{"role": "system", "content": "x"}], "the dialog does not end with an answer"),
        ([USER, {"role": "assistant", "content": None}], "no answer"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "the answer is not text"),
    ],
)  # fmt: skip
def test_bad_dialogs(value: object, expected: str) -> None:
    assert reason({"conversation": value}, CONVERSATION) == expected


def test_raw_text() -> None:
    layout = Layout("text", {"text": "text"}, False)
    assert read_example({"text": " once\n"}, layout, "unused", PLACE) == Text(" once\n", PLACE)
    assert reason({"text": " "}, layout) == "no text"
    assert reason({}, layout) == "no text"
    assert reason({"text": []}, layout) == "the text is not text"


def layout_of(*columns: str, lists: tuple[str, ...] = (), stage: str = "sft", **settings: Any) -> Layout:
    return choose_layout(columns, lists, SourceConfig(path="f.json", **settings), stage, "data.train")


@pytest.mark.parametrize(
    ("columns", "expected", "guessed"),
    [
        ("instruction input output", {"prompt": "instruction", "response": "output", "query": "input"}, False),
        ("Instruction Output History", {"prompt": "Instruction", "response": "Output", "history": "History"}, False),
        ("q a", {"prompt": "q", "response": "a"}, True),
        ("A Q", {"prompt": "Q", "response": "A"}, True),
        ("id Question Answer", {"prompt": "Question", "response": "Answer"}, True),
        ("prompt response system", {"prompt": "prompt", "response": "response", "system": "system"}, True),
        ("prompt query response", {"prompt": "prompt", "response": "response", "query": "query"}, True),
        ("query response", {"prompt": "query", "response": "response"}, True),
        ("input output", {"prompt": "input", "response": "output"}, True),
        ("问 答", {"prompt": "问", "response": "答"}, True),
        ("回答 问题", {"prompt": "问题", "response": "回答"}, True),
        ("指令 输入 输出", {"prompt": "指令", "response": "输出", "query": "输入"}, True),
    ],
)
def test_columns_are_guessed(columns: str, expected: dict[str, str], guessed: bool) -> None:
    assert layout_of(*columns.split()) == Layout("alpaca", expected, guessed)


def test_config_overrides_the_guess() -> None:
    chosen = layout_of("question", "answer", "title", "input", columns=ColumnsConfig(prompt="title"))
    assert chosen.columns == {"prompt": "title", "response": "answer", "query": "input"}
    assert chosen.guessed
    chosen = layout_of("question", "answer", "b", columns=ColumnsConfig(prompt="b", response="question"))
    assert chosen == Layout("alpaca", {"prompt": "b", "response": "question"}, False)


def test_dialogs_are_known_by_a_column_of_lists() -> None:
    assert layout_of("id", "conversations", lists=("conversations",)) == Layout(
        "conversation", {"messages": "conversations"}, False
    )
    assert layout_of("conversation", "q", "a").format == "alpaca"  # there, conversation may be a number
    assert layout_of("talk", columns=ColumnsConfig(messages="talk")).columns == {"messages": "talk"}
    assert layout_of("messages", "system", format="conversation").columns == {
        "messages": "messages",
        "system": "system",
    }


def test_text_columns() -> None:
    assert layout_of("id", "text", stage="pt") == Layout("text", {"text": "text"}, False)
    assert layout_of("id", "正文", stage="pt") == Layout("text", {"text": "正文"}, True)
    assert layout_of("q", "a", stage="pt", columns=ColumnsConfig(text="a")) == Layout("text", {"text": "a"}, False)


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ("question answer", {"columns": {"prompt": "quesion"}},
         "data.train.columns.prompt: f.json has no column 'quesion', it has question, answer; "
         "did you mean 'question'?"),
        ("question answer", {"columns": {"response": "Answer"}},
         "data.train.columns.response: f.json has no column 'Answer', it has question, answer; "
         "did you mean 'answer'?"),
        ("问 答", {"columns": {"history": "zzz"}},
         "data.train.columns.history: f.json has no column 'zzz', it has 问, 答"),
        ("姓名 年龄", {},
         "f.json: no columns for questions and answers were recognised among 姓名, 年龄: "
         "name them, data.train.columns: {prompt: …, response: …}"),
        ("姓名 年龄", {"columns": {"prompt": "姓名"}},
         "f.json: no columns for questions and answers were recognised among 姓名, 年龄: "
         "name them, data.train.columns: {response: …}"),
        ("text", {},
         "f.json: no columns for questions and answers were recognised among text: "
         "name them, data.train.columns: {prompt: …, response: …}, or learn from raw text, method.stage: pt"),
        ("q a", {"stage": "pt"},
         "f.json: no columns for raw text were recognised among q, a: "
         "name them, data.train.columns: {text: …}, or learn from questions and answers, method.stage: sft"),
        ("q a", {"format": "conversation"},
         "f.json: no columns for dialogs were recognised among q, a: name them, data.train.columns: {messages: …}"),
        ("q a", {"format": "text"}, "f.json: raw text is for method.stage: pt, but the stage is sft"),
        ("q a", {"columns": {"text": "a"}}, "f.json: raw text is for method.stage: pt, but the stage is sft"),
        ("q a", {"format": "alpaca", "stage": "pt"},
         "data.train.format: alpaca is for method.stage: sft, but pt learns from raw text"),
        ("text x", {"stage": "pt", "columns": {"system": "x"}},
         "data.train.columns.system has no meaning for raw text: remove it"),
        ("q a messages", {"format": "alpaca", "columns": {"messages": "messages"}},
         "data.train.columns.messages has no meaning for questions and answers: remove it"),
        ("", {},
         "f.json: no columns for questions and answers were recognised among none: "
         "name them, data.train.columns: {prompt: …, response: …}"),
        (" ".join(f"c{index}" for index in range(15)), {"stage": "pt"},
         "f.json: no columns for raw text were recognised among c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 "
         "and 3 more: name them, data.train.columns: {text: …}"),
    ],
)  # fmt: skip
def test_wrong_columns(columns: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        layout_of(*columns.split(), **settings)
    assert str(caught.value) == message
