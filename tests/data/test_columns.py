"""How a file is read is found in its first rows, or declared; what fits nothing is refused with the fix."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config.schema import ColumnsConfig, SourceConfig
from tunewright.data.columns import Layout, choose_layout
from tunewright.data.examples import Place
from tunewright.data.first_rows import SAMPLE
from tunewright.data.formats import BadRow, for_stage, read_example
from tunewright.data.turns import Tags
from tunewright.errors import UsageError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def layout_of(row: dict[str, Any] | str, stage: str = "sft", rows: int = 1, **settings: Any) -> Layout:
    """The layout of a file of equal rows; text stands for the names of columns of text."""
    row = dict.fromkeys(row.split(), "x") if isinstance(row, str) else row
    return choose_layout([row] * rows, SourceConfig(path="f.json", **settings), stage, "data.train")


@pytest.mark.parametrize(
    ("columns", "expected", "guessed", "form"),
    [
        ("instruction input output", {"prompt": "instruction", "response": "output", "query": "input"}, False,
         "alpaca"),
        ("Instruction Output History", {"prompt": "Instruction", "response": "Output", "history": "History"}, False,
         "alpaca"),
        ("q a", {"prompt": "q", "response": "a"}, True, "alpaca"),
        ("A Q", {"prompt": "Q", "response": "A"}, True, "alpaca"),
        ("id Question Answer", {"prompt": "Question", "response": "Answer"}, True, "alpaca"),
        ("prompt response system", {"prompt": "prompt", "response": "response", "system": "system"}, True, "alpaca"),
        ("prompt query response", {"prompt": "prompt", "response": "response", "query": "query"}, True, "alpaca"),
        ("query response tools", {"prompt": "query", "response": "response", "tools": "tools"}, False,
         "query-response"),
        ("prompt completion", {"prompt": "prompt", "response": "completion"}, False, "prompt-completion"),
        ("input output", {"prompt": "input", "response": "output"}, True, "alpaca"),
        ("问 答", {"prompt": "问", "response": "答"}, True, "alpaca"),
        ("回答 问题", {"prompt": "问题", "response": "回答"}, True, "alpaca"),
        ("指令 输入 输出", {"prompt": "指令", "response": "输出", "query": "输入"}, True, "alpaca"),
    ],
)  # fmt: skip
def test_columns_of_text(columns: str, expected: dict[str, str], guessed: bool, form: Any) -> None:
    assert layout_of(columns) == Layout(form, expected, guessed)


def test_config_overrides_the_guess() -> None:
    chosen = layout_of("question answer title input", columns=ColumnsConfig(prompt="title"))
    assert chosen.columns == {"prompt": "title", "response": "answer", "query": "input"}
    assert chosen.guessed
    chosen = layout_of("question answer b", columns=ColumnsConfig(prompt="b", response="question"))
    assert chosen == Layout("alpaca", {"prompt": "b", "response": "question"}, False)


def test_a_declared_form_has_the_first_choice() -> None:
    row = "instruction output query response"
    assert layout_of(row).columns == {"prompt": "instruction", "response": "output", "query": "query"}
    assert layout_of(row, format="query-response") == Layout(
        "query-response", {"prompt": "query", "response": "response"}, False
    )


@pytest.mark.parametrize(
    ("cell", "form", "tags"),
    [
        ([USER, ANSWER], "openai", Tags()),
        ('[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]', "openai", Tags()),
        ([HUMAN, GPT], "sharegpt", Tags("from", "value")),
        ([{"role": "user", "value": "q"}, {"role": "gpt", "value": "a"}], "sharegpt", Tags("role", "value")),
        ([{"input": "q", "output": "a", "system": "s"}], "xtuner", Tags(pair=("input", "output"))),
        ([{"human": "q", "assistant": "a"}], "xtuner", Tags(pair=("human", "assistant"))),
        ([{"user": "q", "assistant": "a"}], "xtuner", Tags(pair=("user", "assistant"))),
        ([{"role": "user", "content": "q", "from": None}, {**ANSWER, "value": None}], "openai", Tags()),
    ],
)
def test_dialogs_are_known_by_a_column_of_turns(cell: object, form: Any, tags: Tags) -> None:
    assert layout_of({"id": 1, "conversations": cell}) == Layout(form, {"messages": "conversations"}, False, tags=tags)


def test_a_column_only_called_so_is_no_dialog() -> None:
    assert layout_of({"conversation": 7, "q": "x", "a": "y"}).format == "alpaca"
    assert layout_of({"conversation": ["x"], "q": "x", "a": "y"}).format == "alpaca"


def test_dialogs_declared() -> None:
    talk = {"talk": [USER, ANSWER], "system": "s", "tools": []}
    assert layout_of(talk, columns=ColumnsConfig(messages="talk")).columns == {
        "messages": "talk", "system": "system", "tools": "tools",
    }  # fmt: skip
    assert layout_of({"messages": None}, format="conversation") == Layout("openai", {"messages": "messages"}, False)
    assert layout_of({"messages": None}, format="sharegpt").tags == Tags("from", "value")
    assert layout_of({"messages": None}, format="xtuner").tags == Tags(pair=("input", "output"))
    declared = layout_of(
        {"talk": [{"who": "甲", "says": "q"}, {"who": "乙", "says": "a"}]},
        columns=ColumnsConfig(messages="talk"),
        tags={"role_tag": "who", "content_tag": "says", "user_tag": "甲", "assistant_tag": "乙"},
    )
    assert declared == Layout(
        "sharegpt", {"messages": "talk"}, False, tags=Tags("who", "says", {"甲": "user", "乙": "assistant"})
    )


def test_one_odd_row_does_not_decide() -> None:
    """The usual cell tells the form, not the first."""
    rows = [{"messages": "broken"}, {"messages": [USER, ANSWER]}, {"messages": None}, {"messages": [USER, ANSWER]}]
    assert choose_layout(rows, SourceConfig(path="f.json"), "sft", "data.train").format == "openai"


def test_what_most_rows_are_decides() -> None:
    def layout(*answers: Any, question: str = "instruction", stage: str = "sft", **settings: Any) -> Layout:
        rows = [{question: "q", "output": answer} for answer in answers]
        return choose_layout(rows, SourceConfig(path="f.json", **settings), stage, "data.train")

    assert layout('["P", "L"]', "x", "y").kind == layout(["P", "L"], "x", "y").kind == "dialog"
    assert layout(["P", "L"], ["y", "n"], "x").kind == "preference"
    assert layout('["P", "L"]', '["y", "n"]').kind == "dialog"
    assert layout('["P", "L"]', '["y", "n"]', stage="dpo").kind == "preference"
    lone, dialog = [ANSWER], [USER, ANSWER]
    rows = [{"messages": turns} for turns in (lone, dialog, dialog, [USER])]
    assert choose_layout(rows, SourceConfig(path="f.json"), None, "data.train").kind == "dialog"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("q a", "dialog"),
        ("instruction input", "prompt"),
        ({"messages": [USER]}, "prompt"),
        ({"messages": [USER, ANSWER]}, "dialog"),
        ({"messages": [ANSWER]}, "text"),
        ({"conversation": [{"input": "", "output": "once"}]}, "text"),
        ("id text", "text"),
        ("prompt chosen rejected", "preference"),
        ({"q": "x", "a": "y", "label": True}, "labelled"),
    ],
)
def test_without_a_stage_rows_are_what_they_are(row: dict[str, Any] | str, kind: str) -> None:
    rows = [dict.fromkeys(row.split(), "x") if isinstance(row, str) else row]
    assert choose_layout(rows, SourceConfig(path="f.json"), None, "data.train").kind == kind


@pytest.mark.parametrize("row", ["question text", "id 年龄"])
def test_without_a_stage_what_fits_nothing_is_refused_without_one(row: str) -> None:
    with pytest.raises(UsageError, match=r"no columns for questions and answers were recognised .*response: …\}$"):
        choose_layout([dict.fromkeys(row.split(), "x")], SourceConfig(path="f.json"), None, "data.train")


RANKED = {"chosen": "y", "rejected": "n"}
HH = "\n\nHuman: x\n\nAssistant: y"


@pytest.mark.parametrize("stage", ["rm", "dpo", "orpo", "simpo", "sft", "grpo"])
@pytest.mark.parametrize(
    ("row", "form", "columns"),
    [
        ({"instruction": "q", **RANKED}, "alpaca", "prompt=instruction chosen rejected"),
        ({"prompt": "q", **RANKED}, "prompt-completion", "prompt chosen rejected"),
        ({"question": "q", "system": "s", **RANKED}, "alpaca", "prompt=question chosen rejected system"),
        ({"instruction": "q", "output": ["y", "n"]}, "alpaca", "prompt=instruction response=output"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "sharegpt",
         "messages=conversations chosen rejected"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "openai", "messages=prompt chosen rejected"),
        ({"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "openai", "chosen rejected"),
        ({"chosen": HH, "rejected": HH}, "hh", "chosen rejected"),
    ],
)  # fmt: skip
def test_better_and_worse_answers(row: dict[str, Any], form: str, columns: str, stage: str) -> None:
    layout = layout_of(row, stage)
    pairs = [name.split("=") for name in columns.split()]
    assert (layout.format, layout.kind, layout.columns) == (form, "preference", {pair[0]: pair[-1] for pair in pairs})
    assert layout.guessed == ("question" in row)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"query": "q", "response": "y", "rejected_response": "n"},
         {"prompt": "query", "response": "response", "rejected": "rejected_response"}),
        ({"messages": [USER, ANSWER], "rejected_response": "n"},
         {"messages": "messages", "rejected": "rejected_response"}),
    ],
)  # fmt: skip
def test_a_worse_answer_beside_a_dialog(row: dict[str, Any], columns: dict[str, str]) -> None:
    layout = layout_of(row, "dpo")
    assert (layout.kind, layout.columns, layout.guessed) == ("preference", columns, False)
    assert layout_of(row, "sft").kind == "dialog"


def test_whole_dialogs_win_where_answers_are_learnt() -> None:
    """UltraFeedback has both; the better answer is the dialog's."""
    row = {"prompt": "q", "messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}
    assert layout_of(row, "sft") == Layout("openai", {"messages": "messages"}, False)
    assert layout_of(row, "dpo").columns == {"chosen": "chosen", "rejected": "rejected"}
    named = layout_of(row, "sft", columns=ColumnsConfig(chosen="chosen", rejected="rejected"))
    assert named.kind == "preference"
    assert layout_of(row, "sft", kind="preference").kind == "preference"
    row |= {"chosen": "a", "rejected": "b"}
    assert layout_of(row, "dpo").columns == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize(
    ("row", "form", "columns"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, "prompt-completion",
         {"prompt": "prompt", "response": "completion", "label": "label"}),
        ({"instruction": "q", "output": "a", "kto_tag": False}, "alpaca",
         {"prompt": "instruction", "response": "output", "label": "kto_tag"}),
        ({"messages": [USER, ANSWER], "label": True}, "openai", {"messages": "messages", "label": "label"}),
        ({"prompt": [USER], "completion": [ANSWER], "label": True}, "openai",
         {"messages": "prompt", "response": "completion", "label": "label"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["kto", "sft"])
def test_labelled_answers(row: dict[str, Any], form: Any, columns: dict[str, str], stage: str) -> None:
    assert layout_of(row, stage) == Layout(form, columns, False, "labelled")


def test_a_column_called_label_may_be_something_else() -> None:
    assert layout_of({"q": "x", "a": "y", "label": 3}).kind == "dialog"
    assert layout_of({"q": "x", "a": "y", "label": "True"}).kind == "dialog"
    named = layout_of({"q": "x", "a": "y", "good": "True"}, columns=ColumnsConfig(label="good"))
    assert (named.kind, named.columns["label"]) == ("labelled", "good")
    assert layout_of({"q": "x", "a": "y", "label": True}, kind="dialog").kind == "dialog"


def test_prompts() -> None:
    assert layout_of("prompt id", "grpo") == Layout("prompt-completion", {"prompt": "prompt"}, False, "prompt")
    assert layout_of({"messages": [USER]}, "ppo") == Layout("openai", {"messages": "messages"}, False, "prompt")
    assert layout_of({"messages": [USER, ANSWER]}, "ppo").kind == "dialog"
    assert layout_of("问题 回答", "ppo").kind == "dialog"
    assert layout_of("问题 回答", "ppo", kind="prompt", columns=ColumnsConfig(prompt="问题")).kind == "prompt"


def test_text_columns() -> None:
    assert layout_of("id text", "pt") == Layout("text", {"text": "text"}, False, "text")
    assert layout_of("id 正文", "pt") == Layout("text", {"text": "正文"}, True, "text")
    assert layout_of("q a", "pt", columns=ColumnsConfig(text="a")) == Layout("text", {"text": "a"}, False, "text")


@pytest.mark.parametrize(
    ("cell", "form"),
    [([{"input": "", "output": "once"}], "xtuner"), ([{"role": "assistant", "content": "once"}], "openai")],
)
def test_raw_text_as_an_answer_to_nothing(cell: object, form: str) -> None:
    layout = layout_of({"conversation": cell}, "pt")
    assert (layout.format, layout.kind, layout.columns) == (form, "text", {"messages": "conversation"})


def test_exact_columns_are_not_guessed() -> None:
    """As LLaMA-Factory's registry means them: what is not named is not read."""
    row = "instruction input output system history"
    named = ColumnsConfig(prompt="instruction", response="output")
    assert layout_of(row, columns=named, guess=False).columns == {"prompt": "instruction", "response": "output"}
    assert layout_of(row, format="alpaca", guess=False) == Layout(
        "alpaca", {"prompt": "instruction", "response": "output", "query": "input"}, False
    )
    assert "query" not in layout_of("instruction output", format="alpaca", guess=False).columns
    text = layout_of("content x", "pt", format="alpaca", columns=ColumnsConfig(prompt="content"), guess=False)
    assert text == Layout("text", {"text": "content"}, True, "text")


def test_optional_columns_may_come_late_in_a_long_file() -> None:
    named = ColumnsConfig(history="history")
    assert layout_of("q a", rows=SAMPLE, columns=named).columns == {
        "prompt": "q",
        "response": "a",
        "history": "history",
    }
    with pytest.raises(UsageError, match="has no column 'history', it has q, a"):
        layout_of("q a", rows=SAMPLE - 1, columns=named)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
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
        ({"messages": [USER, ANSWER]}, {"stage": "pt"},
         "f.json: no columns for raw text were recognised among messages: "
         "name them, data.train.columns: {text: …}, or learn from questions and answers, method.stage: sft"),
        ("q a", {"format": "conversation"},
         "f.json: no columns for dialogs were recognised among q, a: name them, data.train.columns: {messages: …}"),
        ({"messages": [USER, ANSWER]}, {"format": "alpaca"},
         "f.json: no columns for questions and answers were recognised among messages: "
         "name them, data.train.columns: {prompt: …, response: …}"),
        ("q a", {"format": "text"}, "f.json: raw text is for method.stage: pt, but the stage is sft"),
        ("q a", {"kind": "text"}, "f.json: raw text is for method.stage: pt, but the stage is sft"),
        ("q a", {"columns": {"text": "a"}}, "f.json: raw text is for method.stage: pt, but the stage is sft"),
        ("q a", {"format": "alpaca", "stage": "pt"},
         "data.train.format: alpaca is for method.stage: sft, but pt learns from raw text"),
        ("q a", {"kind": "dialog", "stage": "pt"},
         "f.json holds questions and answers, but method.stage: pt learns from raw text"),
        ("q a", {"columns": {"prompt": "q", "response": "a"}, "guess": False, "stage": "pt"},
         "f.json holds questions and answers, but method.stage: pt learns from raw text"),
        ("q a label", {"kind": "labelled", "stage": "dpo"},
         "f.json holds answers labelled good or bad, but method.stage: dpo learns from better and worse answers"),
        ("q chosen rejected", {"kind": "preference", "stage": "kto"},
         "f.json holds better and worse answers, but method.stage: kto learns from answers labelled good or bad"),
        ("text x", {"stage": "pt", "columns": {"system": "x"}},
         "data.train.columns.system has no meaning for raw text: remove it"),
        ("q a messages", {"format": "alpaca", "columns": {"messages": "messages"}},
         "data.train.columns.messages has no meaning for questions and answers: remove it"),
        ("q a", {"tags": {"role_tag": "from"}},
         "data.train.tags.role_tag has no meaning for questions and answers: remove it"),
        ({"conversation": [{"input": "q", "output": "a"}]}, {"tags": {"user_tag": "me"}},
         "data.train.tags.user_tag has no meaning for turns of a question and its answer: remove it"),
        ("text", {"stage": "pt", "tags": {"role_tag": "from"}},
         "data.train.tags.role_tag has no meaning for raw text: remove it"),
        ({"messages": [USER, ANSWER], "x": "y"}, {"columns": {"messages": "messages", "history": "x"}},
         "data.train.columns.history has no meaning for dialogs: remove it"),
        ("q a", {"stage": "dpo"},
         "f.json: no columns for better and worse answers were recognised among q, a: "
         "name them, data.train.columns: {chosen: …, rejected: …}"),
        ("chosen rejected", {"stage": "dpo"},
         "f.json: no columns for better and worse answers were recognised among chosen, rejected: "
         "name them, data.train.columns: {prompt: …}"),
        ("q chosen", {"columns": {"chosen": "chosen"}},
         "f.json: no columns for better and worse answers were recognised among q, chosen: "
         "name them, data.train.columns: {rejected: …}"),
        ("q a label", {"stage": "kto"},
         "f.json: no columns for answers labelled good or bad were recognised among q, a, label: "
         "name them, data.train.columns: {label: …}"),
        ("id", {"stage": "grpo"},
         "f.json: no columns for prompts were recognised among id: name them, data.train.columns: {prompt: …}"),
        ("", {},
         "f.json: no columns for questions and answers were recognised among none: "
         "name them, data.train.columns: {prompt: …, response: …}"),
        (" ".join(f"c{index}" for index in range(15)), {"stage": "pt"},
         "f.json: no columns for raw text were recognised among c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 "
         "and 3 more: name them, data.train.columns: {text: …}"),
    ],
)  # fmt: skip
def test_what_fits_nothing(row: dict[str, Any] | str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        layout_of(row, **settings)
    assert str(caught.value) == message


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(HH),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "input", "output"]), inner, max_size=3)
    ),
    max_leaves=6,
)
named = st.sampled_from(
    ["prompt", "messages", "conversations", "chosen", "rejected", "output", "label", "text", "history"]
)


@given(
    st.lists(st.dictionaries(named, values, max_size=5), max_size=4),
    st.sampled_from(["auto", "alpaca", "conversation", "sharegpt", "xtuner", "prompt-completion", "hh"]),
    st.sampled_from(["pt", "sft", "dpo", "kto", "ppo", None]),
    st.booleans(),
)
def test_any_rows_have_a_layout_or_a_reason(
    rows: list[dict[str, Any]], form: Any, stage: str | None, guess: bool
) -> None:
    """No shape of cells makes it fail otherwise, and every row then is an example or has a reason too."""
    try:
        layout = choose_layout(rows, SourceConfig(path="f.json", format=form, guess=guess), stage, "data.train")
    except UsageError:
        return
    for row in rows:
        with contextlib.suppress(BadRow):
            for_stage(read_example(row, layout, None, Place("f.json", 1)), stage or "sft")
