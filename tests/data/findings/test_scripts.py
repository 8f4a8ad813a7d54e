"""Scripts of questions and answers, and characters no text should hold."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.findings.made import CHATML, found_in, lines, plain_rows, prepared
from tunewright.data.findings.characters import DIGIT, FIRST_ODD, ODD, SCRIPTS, classes_of
from tunewright.data.findings.find import look
from tunewright.data.findings.rows import Characters, fold
from tunewright.data.findings.scripts import excerpt, letters

TEXTS = {
    "Latin": "Où est la lumière? Ærlig.",
    "Han and kana": "灯台の守り人は本に書く。𠮷",
    "Hangul": "등대지기는 배를 기록한다.",
    "Cyrillic": "Смотритель маяка пишет в книгу.",
    "Greek": "Ο φύλακας του φάρου",
    "Arabic": "حارس المنارة يكتب",
    "Hebrew": "שומר המגדלור כותב",
    "Devanagari": "प्रकाशस्तंभ का रखवाला",
    "Thai": "คนเฝ้าประภาคารเขียน",
    "other": "Փարոսի պահապանը գրում է",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_told_apart(script: str) -> None:
    counts = letters(Characters.of(["1 ! ", TEXTS[script], ""]))
    assert SCRIPTS[int(counts[1].argmax())] == script
    assert not counts[0].any()
    assert not counts[2].any()


@given(st.text())
def test_letters_and_digits_are_those_of_unicode(text: str) -> None:
    for one, kind in zip(text, classes_of(np.array([ord(c) for c in text], np.uint32)).tolist(), strict=True):
        if ord(one) >= 0x10000:
            continue  # beyond the basic plane only ideographs are told
        assert (1 <= kind <= len(SCRIPTS)) == (one.isalpha() and kind < FIRST_ODD)
        if kind == DIGIT:
            assert one.isdigit()
        if kind >= FIRST_ODD:
            assert unicodedata.category(one) in ("Cc", "Cf", "Co", "Cn", "So")


@given(st.text(), st.text())
def test_lower_case_is_that_of_python(one: str, other: str) -> None:
    codes = Characters.of([one, other]).codes
    for before, after in zip(one + other, fold(codes).tolist(), strict=True):
        small = before.lower()
        assert chr(after) == (small if len(small) == 1 and ord(before) < 0x10000 else before)


def test_answers_in_another_script_are_found(tmp_path: Path) -> None:
    rows = [
        *plain_rows(20),
        {"q": "灯塔看守人每天都做些什么？", "a": "She writes every ship into her book."},
        {"q": "灯塔看守人每天都做些什么？", "a": "她把每一条船写进本子里，这叫 logbook。"},
        {"q": "What does the keeper do all day?", "a": "她把每一条船写进本子里。"},
        {"q": "What does the keeper do all day?", "a": "好"},  # too short to tell
    ]
    found = found_in(tmp_path, rows)
    assert lines(found["changed_script"]) == [21, 23]
    assert found["changed_script"].message.startswith("2 answers (8.7 %) are written in another script")
    assert found["scripts"].message == "answers are written in 87.5 % Latin, 12.5 % Han and kana"
    assert lines(found["scripts"]) == [22, 23, 24]
    shares = look(prepared(tmp_path, rows), CHATML).scripts
    assert shares.questions == {"Latin": 22, "Han and kana": 2}
    assert shares.answers == {"Latin": 21, "Han and kana": 3}


@pytest.mark.parametrize(
    ("character", "kind"),
    [("\x07", 0), ("\x9f", 0), ("\ufffd", 1), ("\u200b", 2), ("\ufeff", 2), ("\u202e", 3), ("\ue123", 4)],
)
def test_odd_characters_are_found(character: str, kind: int, tmp_path: Path) -> None:
    rows = [*plain_rows(20), {"q": "Well?", "a": f"It is{character}so{character}."}]
    found = found_in(tmp_path, rows)["odd_characters"]
    assert found.message == f"1 text holds {ODD[kind]}; 2 in all"
    assert (found.count, lines(found)) == (1, [21])
    assert f"It is<U+{ord(character):04X}>so" in found.samples[0].text


def test_ordinary_writing_holds_no_odd_characters(tmp_path: Path) -> None:
    rows = [*plain_rows(20), {"q": "\tFamily\r\n?", "a": "👩\u200d👧 می\u200cخواهم ❤\ufe0f soft\u00adly"}]
    assert found_in(tmp_path, rows)["odd_characters"].level == "fine"


def test_an_excerpt_shows_what_is_odd() -> None:
    assert excerpt("a" * 100 + "\u200b" + "b" * 100, FIRST_ODD + 2) == f"…{'a' * 60}<U+200B>{'b' * 59}…"
