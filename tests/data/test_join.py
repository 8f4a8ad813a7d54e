"""Two tables become one file of pairs: which rows meet, which are drawn, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.cli.app import main
from tunewright.config.schema import SourceConfig
from tunewright.data.examples import Place
from tunewright.data.join import Account, Table, join_tables
from tunewright.errors import UsageError

QUESTIONS = 'question_id,content\n1,"头痛, 怎么办"\n2,发烧\n3,咳嗽\n4,\n'
ANSWERS = "ans_id,question_id,content\n9,1,多休息\n8,2,喝水\n7,2,看医生\n6,5,没有\n5,,没有\n"
PAIRS = [("头痛, 怎么办", "多休息"), ("发烧", "喝水"), ("发烧", "看医生")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.csv").write_text(QUESTIONS, encoding="utf-8")
    (tmp_path / "a.csv").write_text(ANSWERS, encoding="utf-8")
    return tmp_path


def join(questions: str = "q.csv", answers: str = "a.csv", **settings: Any) -> tuple[Account, list[tuple[str, str]]]:
    target = Path("pairs.jsonl")
    account = join_tables(
        Table(SourceConfig(path=questions), "data.train.0", "question_id", "content"),
        Table(SourceConfig(path=answers), "data.train.1", "question_id", "content"),
        target,
        **settings,
    )
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert all(list(row) == ["instruction", "output"] for row in rows)
    return account, [(row["instruction"], row["output"]) for row in rows]


def complaint(*paths: str, **settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        join(*paths, **settings)
    return str(caught.value)


def test_pairs_stand_in_the_order_of_the_answers_and_every_row_is_accounted_for(folder: Path) -> None:
    account, pairs = join()
    assert pairs == PAIRS
    assert account == Account(
        rows=[4, 5],
        empty=[1, 1],
        first_empty=[Place("q.csv", 5), Place("a.csv", 6)],
        single=[1, 1],
        first_single=[Place("q.csv", 4), Place("a.csv", 5)],
        pairs=3,
        written=3,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["a.csv", "pairs.jsonl", "q.csv"]


def test_a_question_that_stands_twice_meets_each_answer_twice(folder: Path) -> None:
    (folder / "q.csv").write_text("question_id,content\n1,one\n1,uno\n", encoding="utf-8")
    assert join()[1] == [("one", "多休息"), ("uno", "多休息")]


def test_keys_of_other_kinds_of_files_are_the_same_keys(folder: Path) -> None:
    (folder / "a.jsonl").write_text(
        '{"question_id": 1, "content": "ja"}\n{"question_id": 2.0, "content": 7}\n{"content": "x"}\n', encoding="utf-8"
    )
    account, pairs = join("q.csv", "a.jsonl")
    assert pairs == [("头痛, 怎么办", "ja"), ("发烧", "7")]
    assert account.empty == [1, 1]


def test_drawing_is_decided_by_the_seed_and_even(folder: Path) -> None:
    ids = range(1, 201)
    (folder / "q.csv").write_text("question_id,content\n" + "".join(f"{i},q{i}\n" for i in ids), encoding="utf-8")
    (folder / "a.csv").write_text("question_id,content\n" + "".join(f"{i},a{i}\n" for i in ids), encoding="utf-8")
    drawn = [join(most=50, seed=seed, replace=True)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    numbers = [int(question[1:]) for question, _ in drawn[0]]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 50
    assert 60 < sum(numbers) / 50 < 140  # the mean of an even draw is 100.5, its deviation 7
    assert all(question[1:] == answer[1:] for question, answer in drawn[0])
    assert len(join(most=500, replace=True)[1]) == 200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "x", "你"])), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "y", "好"])), min_size=1, max_size=8),
)
def test_it_is_the_plain_double_loop(folder: Path, left: list[Any], right: list[Any]) -> None:
    for name, rows in (("q.csv", left), ("a.csv", right)):
        (folder / name).write_text("question_id,content\n" + "".join(f"{k},{t}\n" for k, t in rows), encoding="utf-8")
    expected = [(q, a) for key, a in right for other, q in left if key == other and q and a]
    if not expected:
        assert complaint(replace=True).startswith("no row of q.csv has the same question_id as one of a.csv")
        return
    account, pairs = join(replace=True)
    assert pairs == expected
    keys = [{key for key, text in rows if text} for rows in (left, right)]
    for side, rows in enumerate((left, right)):
        assert account.rows[side] == len(rows)
        assert account.empty[side] == sum(not text for _, text in rows)
        assert account.single[side] == sum(bool(text) and key not in keys[1 - side] for key, text in rows)


def test_what_cannot_be_joined_is_refused_and_nothing_is_left_behind(folder: Path) -> None:
    (folder / "b.csv").write_text("id,content\n1,x\n", encoding="utf-8")
    (folder / "c.csv").write_text("question_id,content\nA1,x\n", encoding="utf-8")
    (folder / "d.jsonl").write_text('{"question_id": [1], "content": "x"}', encoding="utf-8")
    (folder / "e.jsonl").write_text('{"question_id": 1, "content": "\\ud800"}', encoding="utf-8")
    assert complaint("q.csv", "b.csv") == "b.csv has no column 'question_id', it has id, content"
    assert complaint("q.csv", "c.csv") == (
        "no row of q.csv has the same question_id as one of c.csv: "
        "q.csv begins with question_id = '1' and c.csv begins with question_id = 'A1'"
    )
    assert complaint("q.csv", "d.jsonl") == "d.jsonl:1: the question_id is not text"
    assert complaint("q.csv", "e.jsonl") == "e.jsonl:1: the content holds half of a character (a lone surrogate)"
    assert complaint("q.csv", "f.csv").startswith("data.train.1: f.csv does not exist in ")
    assert not [path for path in folder.iterdir() if "pairs" in path.name]
    join()
    before = (folder / "pairs.jsonl").read_bytes()
    assert complaint() == "pairs.jsonl exists already: name another file, or replace it with --force"
    assert complaint("q.csv", "b.csv", replace=True) == "b.csv has no column 'question_id', it has id, content"
    assert (folder / "pairs.jsonl").read_bytes() == before


def test_no_number_is_no_answer(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"question_id": 1, "content": NaN}\n{"question_id": 2, "content": "x"}\n')
    account, pairs = join("q.csv", "a.jsonl")
    assert (pairs, account.empty) == ([("发烧", "x")], [1, 1])
    (folder / "a.jsonl").write_text('{"question_id": 1, "content": true}\n')
    assert complaint("q.csv", "a.jsonl", replace=True) == "a.jsonl:1: the content is not text"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["data", *words])
    return int(str(leaving.value.code))


def test_the_command_line_tells_what_became_of_every_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["join", "q.csv", "a.csv", "--on", "question_id", "--prompt", "content", "--response", "content"]
    assert run(*words, "--max", "2", "-o", "medical.jsonl") == 0
    assert capsys.readouterr().out.splitlines() == [
        "q.csv: 4 rows",
        "  1 without answer, first q.csv:4",
        "  1 without key or text, first q.csv:5",
        "a.csv: 5 rows",
        "  1 without question, first a.csv:5",
        "  1 without key or text, first a.csv:6",
        "medical.jsonl: 2 of 3 pairs. Next: tunewright train --data medical.jsonl --model …",
    ]
    assert run(*words, "-o", "medical.jsonl") == 2
    assert "exists already" in capsys.readouterr().err
    assert run(*words, "-o", "medical.csv") == 2
    assert "name a file that ends in .jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["data.train.0.columns.prompt", "train.seed", "data.train.1.weight"])
def test_settings_that_mean_nothing_are_refused(folder: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["join", "q.csv", "a.csv", "--on", "question_id", "--prompt", "content", "--response", "content"]
    assert run(*words, "-o", "out.jsonl", f"{key}=7") == 2
    assert f"{key} has no meaning here: remove it; what data.train.0 or data.train.1 can have is source, " in (
        capsys.readouterr().err
    )


def test_names_that_differ_and_encodings_of_each_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.csv").write_bytes("qid;回答\n1;好\n".encode("gb18030"))
    words = ["join", "q.csv", "a.csv", "--on", "question_id=qid", "--prompt", "content", "--response", "回答"]
    assert run(*words, "-o", "out.jsonl") == 2
    assert (
        "a.csv, line 1, column 5: byte 0xbb is not utf-8. This looks like GBK: set data.train.1.encoding: gb18030"
        in (capsys.readouterr().err)
    )
    assert run(*words, "-o", "out.jsonl", "data.train.1.encoding=gb18030") == 0
    assert (folder / "out.jsonl").read_text(encoding="utf-8") == '{"instruction":"头痛, 怎么办","output":"好"}\n'
