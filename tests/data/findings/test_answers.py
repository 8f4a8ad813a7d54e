"""Answers that are too short, repeat themselves or stop early."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.findings.made import CHATML, found_in, lines, plain_rows, prepared
from tunewright.data.check import gather_facts
from tunewright.data.examples import Encoded, Place
from tunewright.data.findings.answers import _SUSPICIOUS, RepeatingAnswers, _repeated_grams, look_at_ranks
from tunewright.data.findings.rows import Batch, Row
from tunewright.data.loops import loop_period
from tunewright.errors import UsageError

LOOPS = [
    "The fog comes down. " * 7,
    "谁要害他？" * 7 + "不知道。",
    "ha" * 40,
    "First a word, then " + "again and " * 12,
    "-" * 60,
    "A line that stands here.\n" * 3,
]


@pytest.mark.parametrize("answer", LOOPS)
def test_loops_are_found(answer: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, [*plain_rows(20), {"q": "Well?", "a": answer}])["repeating_answers"]
    assert (found.level, found.count, lines(found)) == ("warning", 1, [21])
    assert found.samples[0].text.startswith(answer[:10])


@pytest.mark.parametrize(
    "answer", ["Ha ha ha!", "Yes, yes, yes.", "1. One\n2. Two\n3. Three\n4. Four", "是是是是是。", "哈哈哈哈哈哈"]
)
def test_style_is_no_loop(answer: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, [*plain_rows(20), {"q": "Well?", "a": answer}])["repeating_answers"].level == "fine"


@given(st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=6))
def test_repeated_grams_equal_a_plain_count(answers: list[list[int]]) -> None:
    counted = [
        sum(times - 1 for times in Counter(tuple(ids[i : i + 4]) for i in range(len(ids) - 3)).values())
        for ids in answers
    ]
    stretch = np.repeat(np.arange(len(answers)), [len(ids) for ids in answers])
    flat = np.array([id for ids in answers for id in ids], np.int32)
    assert _repeated_grams(flat, stretch).tolist() == [counted[index] for index in stretch]


@given(
    st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(3, 14)
)
def test_no_loop_is_skipped_by_the_quick_look(start: list[int], block: list[int], times: int) -> None:
    ids = np.array([*start, *block * times], np.int32)
    if loop_period(ids.tolist()) is not None:
        assert _repeated_grams(ids, np.zeros(len(ids), np.int64))[0] >= _SUSPICIOUS


def test_a_stop_inside_an_answer_is_found() -> None:
    def row(number: int, ids: list[int], weights: list[int]) -> Row:
        encoded = Encoded(np.array(ids, np.int32), np.array(weights, np.float32))
        return Row(number, False, Place("f", number + 1), "q", ("a",), number, number, (encoded,))

    finding = RepeatingAnswers([2, 3])
    fine = row(0, [2, 5, 6, 2, 7, 8, 3], [0, 1, 1, 1, 0, 1, 1])
    finding.add(Batch([fine, row(1, [5, 6, 3, 8, 2], [0, 1, 1, 1, 1]), row(2, [5, 2, 2], [0, 1, 1])]))
    early = finding.result()[1]
    assert (early.name, early.level, early.count, lines(early)) == ("early_stops", "warning", 2, [2, 3])


def test_a_stop_spelled_in_raw_text_stops_and_one_in_an_answer_is_text(tmp_path: Path) -> None:
    spelled = f"It ends{CHATML.eos_token} and goes on."
    raw = found_in(tmp_path, [*({"text": row["a"]} for row in plain_rows(20)), {"text": spelled}], stage="pt")
    assert (raw["early_stops"].level, raw["early_stops"].count, lines(raw["early_stops"])) == ("warning", 1, [21])
    dialogs = found_in(tmp_path, [*plain_rows(20), {"q": "Well?", "a": spelled}])
    assert dialogs["early_stops"].level == "fine"


def test_short_answers(tmp_path: Path) -> None:
    rows = plain_rows(20) + [{"q": "Well?", "a": a} for a in ("Y", " 3 ", "……", "!?", "OK", "好", "是的", "🙂🙂")]
    found = found_in(tmp_path, rows)
    assert lines(found["short_answers"]) == [21, 22, 26]
    assert found["short_answers"].message == "3 answers are one character or nothing"
    assert lines(found["wordless_answers"]) == [23, 24, 28]


def test_ranked_rows_say_that_the_worse_answer_is_not_learnt(tmp_path: Path) -> None:
    ranked = [{"q": row["q"], "chosen": row["a"], "rejected": f"No. {row['a']}"} for row in plain_rows(20)]
    made = prepared(tmp_path, [*ranked, {"q": "?", "chosen": "", "rejected": "x"}])
    assert made.loaded.ranked == 20
    found = {one.name: one for one in gather_facts("sft", made, CHATML).findings}["ranked_answers"]
    assert (found.level, found.count) == ("note", 20)
    assert found.message == "20 rows rank a better and a worse answer: method.stage sft learns the better one alone"
    assert "take those rows out" in found.advice


def test_only_what_is_not_learnt_is_noted(tmp_path: Path) -> None:
    assert look_at_ranks(prepared(tmp_path, plain_rows(20)).loaded, "sft") == []
    labelled = [{**row, "label": number != 3} for number, row in enumerate(plain_rows(20))]
    made = prepared(tmp_path, labelled)
    assert look_at_ranks(made.loaded, "sft") == []
    assert [(tally.reason, tally.count) for tally in made.dropped] == [("its answer is labelled bad", 1)]


def test_rows_labelled_bad_are_left_out_however_many_and_are_no_excuse_for_others(tmp_path: Path) -> None:
    labelled = [{**row, "label": number % 2 == 0} for number, row in enumerate(plain_rows(40))]
    made = prepared(tmp_path, labelled)
    assert [(tally.reason, tally.count) for tally in made.dropped] == [("its answer is labelled bad", 20)]
    assert len(made.train) + len(made.validation) == 20
    broken = [{"q": "?", "a": "", "label": True} for _ in range(3)]
    with pytest.raises(UsageError, match="3 of 23 rows are bad, more than a tenth"):
        prepared(tmp_path, [*labelled, *broken])
    with pytest.raises(UsageError, match="nothing is left"):
        prepared(tmp_path, [{**row, "label": False} for row in labelled])
