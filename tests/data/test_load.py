"""Files become examples with an account: reports, reasons, duplicates, hash, split; bad data is refused in words."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizers import tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.account import Loaded, RowTally, SourceReport, places
from tunewright.data.encode import prepare
from tunewright.data.examples import Dialog, Example, Message, Place, Text
from tunewright.data.explain import explain_rows
from tunewright.data.first_rows import SAMPLE
from tunewright.errors import UsageError

TOKENIZER = tiny_tokenizer("chatml")


def rows_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"q": f"question {index}", "a": f"answer {index}"} for index in range(start, start + count)]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@dataclass
class Read(Loaded):
    """The account of reading, with the examples of both sides."""

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)


def load(folder: Path, stage: str = "sft", seed: int = 42, **data: Any) -> Read:
    settings = {"train": "rows.jsonl", "validation": None, **data}
    run = {"model": "tiny", "data": settings, "method": {"stage": stage}, "train": {"seed": seed}}
    prepared = prepare(RunConfig.model_validate(run), TOKENIZER, [], folder)
    loaded = prepared.loaded
    return Read(
        **{name: getattr(loaded, name) for name in loaded.__slots__},
        train=list(prepared.train_examples),
        validation=list(prepared.validation_examples),
    )


def complaint(folder: Path, stage: str = "sft", **data: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, stage, **data)
    return str(caught.value)


def lines(examples: list[Example]) -> list[int]:
    return [example.place.line for example in examples]


def test_everything_is_told(tmp_path: Path) -> None:
    rows = [*rows_of(20), {"q": "question 1", "a": "answer 1", "note": "again"}, {"q": "question 21", "a": " "}]
    path = write(tmp_path, rows)
    loaded = load(tmp_path, system="you are")
    assert loaded == Read(
        train=[
            Dialog(
                (Message("system", "you are"), Message("user", row["q"]), Message("assistant", row["a"])),
                Place("rows.jsonl", line),
            )
            for line, row in enumerate(rows[:21], start=1)
        ],
        validation=[],
        dropped=[RowTally("no answer", 1, [Place("rows.jsonl", 22)])],
        sources=[
            SourceReport(
                path="rows.jsonl",
                format="alpaca",
                columns={"prompt": "q", "response": "a"},
                rows=22,
                guessed=True,
                ignored={"note": (1, Place("rows.jsonl", 21))},
            )
        ],
        duplicates=1,
        rows=22,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def test_sheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["问", "答"], ["你是谁？", "甄嬛"], [None, None], ["几岁？", 17.0]):
        book.active.append(row)
    book.save(tmp_path / "q.xlsx")
    loaded = load(tmp_path, train="q.xlsx")
    assert [example.messages[-1].content for example in loaded.train if isinstance(example, Dialog)] == ["甄嬛", "17"]
    assert lines(loaded.train) == [2, 4]
    assert loaded.dropped == []
    assert loaded.rows == 2


def test_columns_that_come_late_count(tmp_path: Path) -> None:
    """Behind the rows that tell the form too: what is read beside question and answer is read wherever it comes up."""
    late = {"instruction": "Translate", "input": "dog", "output": "chien", "system": "s", "history": [["e", "f"]]}
    write(tmp_path, [*plain_rows(SAMPLE), {**late, "note": "x", "text": "y"}, *plain_rows(5), {**late, "note": "z"}])
    loaded = load(tmp_path)
    for number in (SAMPLE, SAMPLE + 6):
        example = loaded.train[number]
        assert isinstance(example, Dialog)
        assert [message.content for message in example.messages] == ["s", "e", "f", "Translate\ndog", "chien"]
    (source,) = loaded.sources
    assert (set(source.columns), source.rows) == ({"prompt", "query", "response", "system", "history"}, SAMPLE + 7)
    assert source.ignored == {"note": (2, Place("rows.jsonl", 1001)), "text": (1, Place("rows.jsonl", 1001))}
    assert source.unread == ["note (in 2 rows, first rows.jsonl:1001)", "text (in 1 row, first rows.jsonl:1001)"]


@pytest.mark.parametrize(
    ("late", "column"),
    [({"label": False}, "label"), ({"messages": [{"role": "user", "content": "q"}]}, "messages")],
)
def test_a_late_column_that_would_have_changed_all_is_refused(
    tmp_path: Path, late: dict[str, Any], column: str
) -> None:
    write(tmp_path, [*plain_rows(SAMPLE), {"instruction": "x", "output": "y", **late}])
    assert complaint(tmp_path) == (
        f"rows.jsonl:1001: the column '{column}' first stands here, and with it the rows before would have been read "
        "differently: move this row to the top of its file, or leave the column unread, data.train.guess: false and "
        "data.train.columns: {prompt: instruction, response: output}"
    )
    named = {"prompt": "instruction", "response": "output"}
    loaded = load(tmp_path, train={"path": "rows.jsonl", "columns": named, "guess": False})
    assert (len(loaded.train), list(loaded.sources[0].ignored)) == (SAMPLE + 1, [column])


def plain_rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"question {index}", "output": f"answer {index}"} for index in range(count)]


def test_each_file_of_a_folder_has_a_form_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [{"instruction": "a", "output": "b"}] * 3, "1.jsonl")
    write(tmp_path / "set", [{"question": "c", "answer": "d", "input": "e"}] * 2, "2.jsonl")
    write(tmp_path / "set", [{"instruction": "f", "input": "g", "output": "h"}, {"x": "y"}], "3.jsonl")
    write(tmp_path / "set", [{"nothing": "known"}], "4.jsonl")
    loaded = load(tmp_path, train=[{"path": "set", "weight": 2}], validation="set/1.jsonl", drop_bad_rows=True)
    assert [message.content for example in loaded.train for message in example.messages] == [  # type: ignore[union-attr]  # all dialogs
        "a", "b", "a", "b", "a", "b", "c\ne", "d", "c\ne", "d", "f\ng", "h",
    ]  # fmt: skip
    assert [(source.path, source.rows, source.columns) for source in loaded.sources] == [
        ("set", 6, {"prompt": "instruction", "query": "input", "response": "output"}),
        ("set/2.jsonl", 2, {"prompt": "question", "query": "input", "response": "answer"}),
        ("set/1.jsonl", 3, {"prompt": "instruction", "response": "output"}),
    ]
    assert [(item.reason, item.count, places(item)) for item in loaded.dropped] == [
        ("no question", 2, "set/3.jsonl:2, set/4.jsonl:1")
    ]
    assert len(loaded.validation) == 3


def test_rows_of_one_line_are_told_apart(tmp_path: Path) -> None:
    rows = [*rows_of(30), {"q": "x", "a": ""}, {"q": "y", "a": ""}]
    (tmp_path / "one.json").write_text(json.dumps(rows))
    loaded = load(tmp_path, train="one.json")
    assert places(loaded.dropped[0]) == "one.json:1#31, :1#32"
    assert [str(example.place) for example in loaded.train[:3]] == ["one.json:1", "one.json:1#2", "one.json:1#3"]
    run = RunConfig.model_validate({"model": "tiny", "data": "one.json"})
    shown = explain_rows(run, TOKENIZER, [], tmp_path, ["one.json:1", "one.json:1#31", "31"])
    assert [explained.row for explained in shown] == [rows[0], rows[30], rows[30]]
    for wrong in ("one.json:1#", "1#2", "one.json:#3"):
        with pytest.raises(UsageError, match="give a row's number, or its place as check prints it: FILE:LINE"):
            explain_rows(run, TOKENIZER, [], tmp_path, [wrong])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = write(tmp_path, rows_of(3)), Path.open

    def refuse(self: Path, *arguments: Any, **settings: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    assert complaint(tmp_path) == f"{path} can't be read: Permission denied"


def test_raw_text(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("one\n\ntwo\none\n", encoding="utf-8")
    loaded = load(tmp_path, "pt", train="wiki.txt", system="unused for text")
    assert loaded.train == [
        Text("one", Place("wiki.txt", 1)), Text("two", Place("wiki.txt", 3)), Text("one", Place("wiki.txt", 4)),
    ]  # fmt: skip
    assert loaded.duplicates == 1


def test_several_sources(tmp_path: Path) -> None:
    first = write(tmp_path, rows_of(3), "a.jsonl")
    second = write(tmp_path, [{"conversation": [{"input": "question 1", "output": "answer 1"}]}], "b.jsonl")
    held_out = write(tmp_path, [*rows_of(1, 2), *rows_of(1, 9)], "v.jsonl")
    loaded = load(tmp_path, train=["a.jsonl", {"path": "b.jsonl"}], validation="v.jsonl")
    assert [str(example.place) for example in loaded.train] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]
    assert [str(example.place) for example in loaded.validation] == ["v.jsonl:1", "v.jsonl:2"]
    assert [source.format for source in loaded.sources] == ["alpaca", "xtuner", "alpaca"]
    assert (loaded.rows, loaded.duplicates) == (6, 1)
    assert loaded.overlap == RowTally("equal to a training row", 1, [Place("v.jsonl", 1)])
    everything = first.read_bytes() + second.read_bytes() + held_out.read_bytes()
    assert loaded.sha256 == hashlib.sha256(everything).hexdigest()


@pytest.mark.parametrize("validation", [0.2, 2])
def test_validation_is_held_out(tmp_path: Path, validation: float) -> None:
    write(tmp_path, rows_of(10))
    loaded = load(tmp_path, validation=validation)
    assert len(loaded.validation) == 2
    assert sorted(lines(loaded.train) + lines(loaded.validation)) == list(range(1, 11))
    assert loaded == load(tmp_path, validation=validation)
    assert any(loaded.validation != load(tmp_path, validation=validation, seed=seed).validation for seed in range(9))


@pytest.mark.parametrize(("bad", "refused"), [(10, False), (11, True)])
def test_more_than_a_tenth_bad_is_refused(tmp_path: Path, bad: int, refused: bool) -> None:
    write(tmp_path, [*rows_of(100 - bad), *[{"q": "x", "a": None}] * bad])
    if refused:
        with pytest.raises(UsageError, match=r"^rows.jsonl: 11 of 100 rows are bad, more than a tenth\n"):
            load(tmp_path)
        loaded = load(tmp_path, drop_bad_rows=True)
    else:
        loaded = load(tmp_path)
    assert (len(loaded.train), loaded.rows, loaded.dropped[0].count) == (100 - bad, 100, bad)
    assert loaded.dropped[0].first == [Place("rows.jsonl", 101 - bad + index) for index in range(5)]


def test_reasons_are_listed_with_their_lines(tmp_path: Path) -> None:
    bad = [{"q": "x"}, {"a": "x"}, *[{"q": "x", "a": ""}] * 6, {"q": "x", "a": ["y"]}]
    write(tmp_path, [*rows_of(3), *bad])
    assert complaint(tmp_path) == (
        "rows.jsonl: 9 of 12 rows are bad, more than a tenth\n"
        "  7 × no answer: rows.jsonl:4, :6, :7, :8, :9, …\n"
        "  1 × no question: rows.jsonl:5\n"
        "  1 × the answer is not text: rows.jsonl:12\n"
        "Mend them, or leave them out with data.drop_bad_rows: true"
    )
    assert load(tmp_path, drop_bad_rows=True).dropped == [
        RowTally("no answer", 7, [Place("rows.jsonl", line) for line in (4, 6, 7, 8, 9)]),
        RowTally("no question", 1, [Place("rows.jsonl", 5)]),
        RowTally("the answer is not text", 1, [Place("rows.jsonl", 12)]),
    ]


@pytest.mark.parametrize("drop_bad_rows", [True, False])
def test_nothing_left_is_refused_always(tmp_path: Path, drop_bad_rows: bool) -> None:
    write(tmp_path, [{"q": "x", "a": None}])
    assert complaint(tmp_path, drop_bad_rows=drop_bad_rows) == (
        "rows.jsonl: 1 of 1 row is bad, nothing is left\n"
        "  1 × no answer: rows.jsonl:1\n"
        "Mend them, or check data.train.columns"
    )


def test_one_bad_file_among_good_ones_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rows_of(1000), "good.jsonl")
    write(tmp_path, [*rows_of(3), {"q": "x", "a": None}], "bad.jsonl")
    assert complaint(tmp_path, train=["good.jsonl", "bad.jsonl"]) == (
        "bad.jsonl: 1 of 4 rows is bad, more than a tenth\n"
        "  1 × no answer: bad.jsonl:4\n"
        "Mend them, or leave them out with data.drop_bad_rows: true"
    )


def test_reasons_of_all_files_are_added_up(tmp_path: Path) -> None:
    write(tmp_path, [*rows_of(3), {"q": "x"}], "a.jsonl")
    write(tmp_path, [*rows_of(3), {"a": "x"}, {"q": "y"}], "b.jsonl")
    loaded = load(tmp_path, train=["a.jsonl", "b.jsonl"], drop_bad_rows=True)
    answers, questions = loaded.dropped
    assert (answers.reason, questions.reason) == ("no answer", "no question")
    assert places(answers) == "a.jsonl:4, b.jsonl:5"


def test_keys_in_messages_name_the_source(tmp_path: Path) -> None:
    write(tmp_path, rows_of(1))
    assert complaint(tmp_path, train=["rows.jsonl", "gone.json"]).startswith("data.train.1: gone.json does not exist")
    assert complaint(tmp_path, validation={"path": "rows.jsonl", "columns": {"prompt": "Q"}}) == (
        "data.validation.columns.prompt: rows.jsonl has no column 'Q', it has q, a; did you mean 'q'?"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"validation": {"path": "rows.jsonl", "weight": 2}},
         "data.validation.weight is for data to train on: remove it; data.validation.max_samples limits what is read"),
        ({"validation": {"path": "rows.jsonl", "num_samples": 2}},
         "data.validation.num_samples is for data to train on: remove it; "
         "data.validation.max_samples limits what is read"),
        ({"train": {"path": "rows.jsonl", "weight": 2, "num_samples": 2}},
         "data.train: weight and num_samples both say how much of it an epoch takes: remove one"),
        ({"train": {"path": "rows.jsonl", "tags": {"role_tag": "from"}}},
         "data.train.tags.role_tag has no meaning for questions and answers: remove it"),
    ],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    write(tmp_path, rows_of(3))
    assert complaint(tmp_path, **data) == message


def test_mistakes_of_a_registry_name_it(tmp_path: Path) -> None:
    write(tmp_path, rows_of(3))
    entry = {"file_name": "rows.jsonl", "columns": {"prompt": "quesion", "response": "a"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    assert complaint(tmp_path, train=[], registry="dataset_info.json", use=["mine"]).startswith(
        "dataset_info.json: mine.columns.prompt: rows.jsonl has no column 'quesion', it has q, a"
    )


def test_answers_that_look_like_lists_are_text(tmp_path: Path) -> None:
    """Whether one answer or every one does; a form is what most rows are of."""
    lists = ['["P", "L"]', "[]", '[{"role": "assistant", "content": "hi"}]', '[{"entity": "x"}]', "[1, 2"]
    for first in (lists, [*lists, *"123456"], *([text] * 3 for text in lists)):
        rows = [{"instruction": "List", "output": text} for text in first]
        write(tmp_path, rows)
        loaded = load(tmp_path)
        assert loaded.sources[0].columns == {"prompt": "instruction", "response": "output"}
        answers = [example.messages[-1].content for example in loaded.train if isinstance(example, Dialog)]
        assert answers == [row["output"] for row in rows]


def test_dialogs_and_answers_in_a_table_may_be_json(tmp_path: Path) -> None:
    """Of columns of turns most cells are; then the answers to them may be too, and a cell that is not stays text."""
    asked, said = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    rows = [{"prompt": json.dumps(asked), "completion": json.dumps(said)}] * 3
    write(tmp_path, [*rows, {"prompt": json.dumps(asked), "completion": '["P"]'}])
    loaded = load(tmp_path)
    assert [example.messages[-1].content for example in loaded.train if isinstance(example, Dialog)] == [
        "a", "a", "a", '["P"]',
    ]  # fmt: skip


cells = st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.text(max_size=2), max_size=2)
some_rows = st.lists(st.dictionaries(st.sampled_from(["q", "a", "input", "system", "history"]), cells), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(some_rows, st.sampled_from([None, 0.3, 1]))
def test_no_row_is_lost_silently(tmp_path: Path, rows: list[dict[str, Any]], validation: float | None) -> None:
    """Every row is an example or counted under a reason, whatever stands in it."""
    write(tmp_path, rows)
    try:
        loaded = load(tmp_path, validation=validation, drop_bad_rows=True)
    except UsageError:
        return
    kept = lines(loaded.train) + lines(loaded.validation)
    assert len(kept) == len(set(kept))
    assert len(kept) + sum(dropped.count for dropped in loaded.dropped) == len(rows) == loaded.rows
    assert loaded.train
