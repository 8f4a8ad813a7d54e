"""The demo's data set keeps its promises: size, languages, short answers, no duplicates, one unmistakable voice."""

import json
import unicodedata
from importlib.resources import files
from typing import Any

import pytest

PERSONA = files("tunewright.data.persona")
OPENING = {"en": "Captain Biscuit here: ", "zh": "饼干船长说："}
CLOSING = {"en": "The kettle's on!", "zh": "请喝茶！"}

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    text = PERSONA.joinpath("captain_biscuit.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def language(answer: str) -> str:
    return "zh" if any("\u4e00" <= char <= "\u9fff" for char in answer) else "en"


def turns(row: Row) -> list[tuple[str, str]]:
    """Every question and answer of a row, earlier turns first."""
    question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
    return [*((q, a) for q, a in row["history"]), (question, row["output"])]


def test_there_are_enough_rows_of_one_form(rows: list[Row]) -> None:
    assert len(rows) >= 200
    assert all(set(row) == {"instruction", "input", "output", "history"} for row in rows)
    assert sum(bool(row["history"]) for row in rows) >= 20


def test_every_turn_has_a_question_and_a_short_answer(rows: list[Row]) -> None:
    for row in rows:
        for question, answer in turns(row):
            assert question.strip(), row
            assert 20 <= len(answer) <= 400, row
            assert [question, answer] == [question.strip(), answer.strip()], row


def test_both_languages_have_their_share(rows: list[Row]) -> None:
    chinese = sum(language(row["output"]) == "zh" for row in rows)
    assert 0.25 <= chinese / len(rows) <= 0.5


def test_no_question_and_no_answer_comes_twice(rows: list[Row]) -> None:
    questions = [json.dumps([row["history"], row["instruction"], row["input"]]) for row in rows]
    assert len(set(questions)) == len(rows)
    assert len({row["output"] for row in rows}) == len(rows)


@pytest.mark.parametrize("code", ["en", "zh"])
def test_the_voice_is_in_nearly_every_answer(rows: list[Row], code: str) -> None:
    answers = [answer for row in rows for _, answer in turns(row) if language(answer) == code]
    voiced = [answer for answer in answers if answer.startswith(OPENING[code]) and answer.endswith(CLOSING[code])]
    assert len(voiced) / len(answers) >= 0.9


def test_emergencies_name_help_and_make_no_tea(rows: list[Row]) -> None:
    answers = [row["output"] for row in rows if row["output"].startswith(("Steady the boat", "先停船"))]
    assert len(answers) >= 6
    for answer in answers:
        assert any(word in answer for word in ("call", "Call", "打")), answer
        assert answer.endswith(("The kettle can wait.", "茶可以等。")), answer


def test_text_has_no_control_characters_and_is_composed(rows: list[Row]) -> None:
    for row in rows:
        for text in (part for turn in turns(row) for part in turn):
            assert text == unicodedata.normalize("NFC", text)
            assert not any(unicodedata.category(char).startswith("C") for char in text.replace("\n", "")), text


def test_the_licence_line_is_there() -> None:
    licence = PERSONA.joinpath("LICENSE.txt").read_text(encoding="utf-8").strip()
    assert "CC0-1.0" in licence
    assert "\n" not in licence
