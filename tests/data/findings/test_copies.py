"""Equal and nearly equal rows, leaks between the sides, questions with several answers; MinHash against exact sets."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.findings.made import found_in, lines, plain_rows, prepared, sentence
from tunewright.data.examples import Encoded, EncodedSet, FlatSet, Place
from tunewright.data.findings import copies
from tunewright.data.findings.copies import ALIKE, Copies, nearest_earlier, sign
from tunewright.data.findings.rows import Batch, Row, Rows


def batch(texts: list[str]) -> Batch:
    return Batch([Row(i, False, Place("f", i + 1), "", (text,), i, i, ()) for i, text in enumerate(texts)])


def pieces(text: str) -> set[str]:
    """What the signature stands for: four neighbouring letters or digits, also over the end."""
    letters = [c for c in text.lower() if c.isalnum()] + [""] * 3
    return {"".join(letters[i : i + 4]) for i in range(len(letters) - 3)}


def jaccard(one: str, other: str) -> float:
    a, b = pieces(one), pieces(other)
    return len(a & b) / len(a | b)


def test_similarity_is_estimated_within_sampling_error() -> None:
    errors = []
    for number in range(60):
        whole = sentence(number, 40)
        other = whole[: len(whole) - number * 3] + sentence(number + 500, 1 + number // 3)
        signatures, worded = sign(batch([whole, other]))
        assert worded.all()
        errors.append((signatures[0] == signatures[1]).mean() - jaccard(whole, other))
    assert abs(np.mean(errors)) < 0.02
    assert np.abs(errors).max() < 0.25  # 64 values: a standard deviation of 0.06 at most


def test_case_spaces_and_punctuation_make_no_difference() -> None:
    signatures, worded = sign(batch(["灯塔 HERON, 7!", "灯塔heron7", "…… !?", ""]))
    assert (signatures[0] == signatures[1]).all()
    assert worded.tolist() == [True, True, False, False]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_a_signature_depends_on_its_own_row_alone(texts: list[str]) -> None:
    together, worded = sign(batch(texts))
    for i, text in enumerate(texts):
        alone, alone_worded = sign(batch([text]))
        assert worded[i] == alone_worded[0]
        assert (together[i] == alone[0]).all()


def test_a_signature_reads_question_then_answer() -> None:
    split = Batch([Row(0, False, Place("f", 1), "The fog comes", ("down at noon.",), 0, 0, ())])
    assert (sign(split)[0] == sign(batch(["The fog comes down at noon."]))[0]).all()


def test_every_close_pair_meets_and_no_other_is_told() -> None:
    random = np.random.default_rng(0)
    unrelated = random.integers(0, 256, (3000, 64), np.uint8)
    near = unrelated[:200].copy()
    near[:, random.permutation(64)[:8]] = 7  # 87 % alike
    far = unrelated[200:400].copy()
    far[:, random.permutation(64)[:32]] = 9  # 50 % alike
    like, alike = nearest_earlier(np.concatenate([unrelated, near, far]), 3400)
    assert (like[:3000] == -1).all()
    assert (like[3000:3200] == np.arange(200)).all()
    assert (like[3200:] == -1).all()
    assert alike[3000:3200].min() >= ALIKE


def test_large_groups_are_compared_in_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    inner = copies._compare

    def counting(signatures: np.ndarray, mine: np.ndarray, *rest: np.ndarray) -> None:
        nonlocal compared
        compared += len(mine)
        inner(signatures, mine, *rest)

    monkeypatch.setattr(copies, "_compare", counting)
    like, _ = nearest_earlier(np.zeros((5000, 64), np.uint8), 4000)
    assert (like[1:] >= 0).all()
    assert (like[4000:] < 4000).all()
    assert compared <= 16 * 3 * 5000


def test_held_out_rows_are_compared_with_training_rows_only() -> None:
    rows = np.random.default_rng(1).integers(0, 256, (4, 64), np.uint8)
    rows[3] = rows[2]  # two held-out rows are alike
    assert nearest_earlier(rows, 2)[0].tolist() == [-1, -1, -1, -1]
    assert nearest_earlier(rows, 3)[0].tolist() == [-1, -1, -1, 2]


def test_copies_are_counted_with_their_places(tmp_path: Path) -> None:
    rows = plain_rows(20)
    rows += [rows[3]] * 3 + [rows[5]]
    rows.append({"q": rows[7]["q"] + "!", "a": rows[7]["a"].replace("So", "so")})
    found = found_in(tmp_path, rows)
    assert found["duplicates"].count == 4
    assert found["duplicates"].message == (
        "4 examples equal an earlier one: rows.jsonl:4 stands 4 times, rows.jsonl:6 stands 2 times"
    )
    assert (found["near_duplicates"].count, lines(found["near_duplicates"])) == (1, [25])
    (sample,) = found["near_duplicates"].samples
    assert (sample.place.line, sample.other and sample.other.line) == (25, 8)
    assert found["leakage"].level == "fine"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert {found.level for found in found_in(tmp_path, plain_rows(60), validation=6).values()} == {"fine"}


def test_leaks_into_a_validation_file_are_told(tmp_path: Path) -> None:
    rows = plain_rows(30)
    held_out = [{"q": "Is it new?", "a": sentence(77)}, rows[4], {**rows[9], "a": rows[9]["a"] + "!"}, rows[4]]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    found = found_in(tmp_path, rows, validation="held.jsonl")
    leak = found["leakage"]
    assert leak.level == "warning"
    assert leak.message == "of 4 held-out examples, 2 equal and about 1 nearly equal to a training example"
    assert [str(place) for place in leak.first] == ["held.jsonl:2", "held.jsonl:3", "held.jsonl:4"]
    assert [sample.other and sample.other.line for sample in leak.samples] == [5, 10, 5]
    assert found["duplicates"].count == 1  # within the held-out file


def test_one_question_with_several_answers(tmp_path: Path) -> None:
    rows = [*plain_rows(20), {"q": "Soup?", "a": "Fish."}, {"q": "Soup?", "a": "Always."}, {"q": "Soup?", "a": "Fish."}]
    found = found_in(tmp_path, rows)["several_answers"]
    assert (found.count, lines(found)) == (1, [21])
    assert "1 question has different answers; the one at rows.jsonl:21 has 2" in found.message


def test_beyond_the_limit_only_equality_is_looked_at(tmp_path: Path) -> None:
    rows = plain_rows(12)
    rows += [{**rows[0], "a": rows[0]["a"] + "!"}, rows[1]]
    with patch.object(copies, "MOST_COMPARED", 10):
        found = found_in(tmp_path, rows)
    assert found["near_duplicates"].message == (
        "no two training examples are nearly equal among the 10 that were compared"
    )
    assert found["duplicates"].count == 1


def test_held_out_rows_are_compared_however_much_is_trained_on(tmp_path: Path) -> None:
    rows = plain_rows(30)
    near, other = {**rows[3], "a": rows[3]["a"] + "!"}, {"q": "Is it new?", "a": sentence(77)}
    found = {}
    for name, held_out in (("near", [other, near]), ("other", [other])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
        with patch.object(copies, "MOST_COMPARED", 10):
            found[name] = found_in(tmp_path, rows, validation=f"{name}.jsonl")["leakage"]
    assert (found["near"].level, [str(place) for place in found["near"].first]) == ("warning", ["near.jsonl:2"])
    assert found["near"].message == (
        "of 2 held-out examples, about 1 nearly equal to a training example among the 10 that were compared"
    )
    assert found["other"].message == "no held-out example is trained on, nor nearly so among the 10 that were compared"


def test_rows_come_once_in_order_and_again(tmp_path: Path) -> None:
    made = prepared(tmp_path, plain_rows(2500), validation=40)
    rows = Rows(made)
    walked = [row for part in rows.batches() for row in part.rows]
    assert [row.number for row in walked] == list(range(2500))
    assert [row.held_out for row in walked] == [False] * 2460 + [True] * 40
    for number in (0, 17, 2459, 2460, 2499):
        again = rows.again(number)
        assert (again.place, again.text, again.content) == (
            walked[number].place,
            walked[number].text,
            walked[number].content,
        )
    assert rows.place(2470) == made.validation.places[10]
    finding = Copies(rows, 2460, 40)
    assert finding._contents.nbytes + finding._asked.nbytes + finding._signatures.nbytes <= 2500 * 80


def test_windows_of_a_document_are_one_row(tmp_path: Path) -> None:
    texts = [{"text": sentence(i, 60 if i % 3 == 0 else 3)} for i in range(12)]
    made = prepared(tmp_path, texts, stage="pt", max_length=32)
    assert len(made.train) > 12
    walked = [row for part in Rows(made).batches() for row in part.rows]
    assert [row.place.line for row in walked] == list(range(1, 13))
    assert sum(len(row.sequences) for row in walked) == len(made.train)
    assert [row.answer for row in walked] == [text["text"] for text in texts]


def test_a_dialog_of_several_sequences_is_one_row(tmp_path: Path) -> None:
    made = prepared(tmp_path, [*plain_rows(3), plain_rows(3)[2]])
    encoded = [made.train[index] for index in range(4)]
    shorter = Encoded(encoded[1].input_ids[:-3], encoded[1].weights[:-3])
    order = [0, 1, 1, 2, 3]  # the second row needs two sequences, the last equals the one before
    flat = EncodedSet.build([encoded[0], shorter, *encoded[1:]], [Place("rows.json", 1)] * 5)  # all on one line

    class OfRows(FlatSet):
        rows = np.array(order)

    made.train = OfRows(flat.input_ids, flat.weights, flat.offsets, flat.places)
    examples = [replace(made.train_examples[index], place=Place("rows.json", 1)) for index in order]
    made.train_examples = examples
    walked = [row for part in Rows(made).batches() for row in part.rows]
    assert [len(row.sequences) for row in walked] == [1, 2, 1, 1]
    assert walked[2].content == walked[3].content


def test_a_long_document_is_read_once(tmp_path: Path) -> None:
    made = prepared(tmp_path, [{"text": sentence(1, 400)}, {"text": "A."}], stage="pt", max_length=32)
    reads: list[int] = []

    class Reading(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    made.train_examples = Reading(made.train_examples)
    assert [row.place.line for part in Rows(made).batches() for row in part.rows] == [1, 2]
    assert reads == [0, len(made.train) - 1]
