"""From files to training sequences: what is kept, what is left out and why, windows of long texts, the stop proof."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers import ENDLESS, STYLES, THINKING, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared, prepare
from tunewright.data.examples import Dialog, Encoded, EncodedSet, Place, Text
from tunewright.data.pack import encode_texts
from tunewright.data.sampler import Sampler
from tunewright.data.stop import prove_answers_stop
from tunewright.errors import UsageError

CHATML = tiny_tokenizer("chatml")
LLAMA3 = tiny_tokenizer("llama3")
ROWS = [{"instruction": f"What is {i}?", "input": "", "output": f"它是 {i}." + " more" * (i % 5)} for i in range(40)]


def config(folder: Path, rows: list[dict[str, Any]] | None = None, stage: str = "sft", **data: Any) -> RunConfig:
    (folder / "rows.json").write_text(json.dumps(ROWS if rows is None else rows, ensure_ascii=False), encoding="utf-8")
    return RunConfig.model_validate(
        {"model": "tiny", "data": {"train": "rows.json", **data}, "method": {"stage": stage}}
    )


def decoded(tokenizer: Any, encoded: Encoded, trained: bool) -> str:
    return str(tokenizer.decode(encoded.input_ids[(encoded.weights > 0) == trained].tolist()))


@pytest.mark.parametrize("style", STYLES)
def test_examples_and_sequences_run_parallel(style: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(style)
    prepared = prepare(config(tmp_path, validation=5, system="Be kind."), tokenizer, [], tmp_path)
    assert (len(prepared.train), len(prepared.validation)) == (35, 5)
    assert prepared.stop_proof.holds
    assert prepared.stop_proof.stretches == 40
    for side, examples in (
        (prepared.train, prepared.train_examples),
        (prepared.validation, prepared.validation_examples),
    ):
        assert len(examples) == len(side)
        for i, example in enumerate(examples):
            assert isinstance(example, Dialog)
            assert side.places[i] == example.place
            trained = decoded(tokenizer, side[i], trained=True).strip()
            stop = tokenizer.convert_ids_to_tokens(prepared.template.turn_end) if prepared.template else None
            assert trained == f"{example.messages[-1].content}{stop}"
            assert "Be kind." in decoded(tokenizer, side[i], trained=False)


def test_long_dialogs_are_left_out_with_their_places(tmp_path: Path) -> None:
    rows = [*ROWS, {"instruction": "Go on", "output": "灯" * 200}]
    prepared = prepare(config(tmp_path, rows, max_length=100, validation=None), CHATML, [], tmp_path)
    (dropped,) = prepared.dropped
    assert (dropped.reason, dropped.count) == ("longer than data.max_length = 100", 1)
    assert [place.line for place in dropped.first] == [1]  # the file is one line
    assert len(prepared.train) == 40
    assert prepared.train.lengths.max() <= 100


def test_rows_the_reader_leaves_out_are_counted_too(tmp_path: Path) -> None:
    rows = [*ROWS, {"instruction": "no answer", "output": ""}, {"instruction": "Go on", "output": "灯" * 200}]
    prepared = prepare(config(tmp_path, rows, max_length=100), CHATML, [], tmp_path)
    assert sorted(item.count for item in prepared.dropped) == [1, 1]
    assert prepared.loaded.rows == 42


def test_more_than_a_tenth_left_out_is_refused_until_allowed(tmp_path: Path) -> None:
    rows = [*ROWS, *({"instruction": str(i), "output": "灯" * 100} for i in range(5))]
    with pytest.raises(
        UsageError, match=r"5 of 45 rows.*\n  5 × longer.*\nRaise data.max_length to \d+,.*drop_bad_rows"
    ) as e:
        prepare(config(tmp_path, rows, max_length=100), CHATML, [], tmp_path)
    named = int(str(e.value).split("Raise data.max_length to ")[1].split(",")[0])
    assert not prepare(config(tmp_path, rows, max_length=named), CHATML, [], tmp_path).dropped
    allowed = prepare(config(tmp_path, rows, max_length=100, drop_bad_rows=True), CHATML, [], tmp_path)
    assert [item.count for item in allowed.dropped] == [5]


def test_a_length_nothing_fits_in_names_the_shortest(tmp_path: Path) -> None:
    lengths = prepare(config(tmp_path, validation=None), CHATML, [], tmp_path).train.lengths
    with pytest.raises(UsageError, match=rf"data\.max_length is 10, but the shortest .* has {lengths.min()} tokens"):
        prepare(config(tmp_path, max_length=10, validation=None), CHATML, [], tmp_path)


def test_dialogs_a_template_rewrites_stand_once_per_sequence(tmp_path: Path) -> None:
    (tmp_path / "thinking.jinja").write_text(THINKING, encoding="utf-8")
    two_turns = {"instruction": "b", "output": "c", "history": [["a", "<think>x</think>y"]]}
    rows = [two_turns, *({**row, "history": []} for row in ROWS)]
    prepared = prepare(config(tmp_path, rows, template="thinking.jinja", validation=None), CHATML, [], tmp_path)
    assert not prepared.dropped
    assert len(prepared.train) == len(prepared.train_examples) == 42
    both = [i for i, example in enumerate(prepared.train_examples) if len(example.messages) == 4]  # type: ignore[union-attr]  # all dialogs
    assert [decoded(CHATML, prepared.train[i], trained=True) for i in both] == [
        "<think>\nx\n</think>\n\ny<|im_end|>",
        "c<|im_end|>",
    ]


def test_num_samples_take_whole_dialogs(tmp_path: Path) -> None:
    (tmp_path / "thinking.jinja").write_text(THINKING, encoding="utf-8")
    two_turns = [{"instruction": f"b{i}", "output": "c", "history": [["a", f"<think>{i}</think>y"]]} for i in range(10)]
    given = config(tmp_path, two_turns, template="thinking.jinja", validation=None)
    for wanted in (10, 3):
        given.data.train[0].num_samples = wanted
        prepared = prepare(given, CHATML, [], tmp_path)
        sampler = Sampler.over(prepared.train, given.train)
        assert (len(prepared.train), sampler.num_examples) == (20, 2 * wanted)
        drawn = np.bincount(prepared.train.rows[sampler._epoch(0)], minlength=10)
        assert sorted(set(drawn.tolist()) - {0}) == [2]


def test_dialogs_a_template_refuses_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "single.jinja").write_text(
        "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + STYLES["chatml"][0],
        encoding="utf-8",
    )
    two_turns = {"instruction": "b", "output": "c", "history": [["a", "y"]]}
    rows = [*({**row, "history": []} for row in ROWS), two_turns]
    prepared = prepare(config(tmp_path, rows, template="single.jinja"), CHATML, [], tmp_path)
    assert [(item.count, "one turn only" in item.reason) for item in prepared.dropped] == [(1, True)]
    with pytest.raises(
        UsageError, match=r"none of the 2 dialogs can be trained on; first rows\.json:1: .*data\.template"
    ):
        prepare(config(tmp_path, [two_turns] * 2, template="single.jinja"), CHATML, [], tmp_path)


def test_long_dialogs_are_cut_between_turns_and_told(tmp_path: Path) -> None:
    history = [[f"What is {i}?", f"It is {i}."] for i in range(9)]
    rows = [*({**row, "history": []} for row in ROWS), {"instruction": "And 9?", "output": "Nine.", "history": history}]
    prepared = prepare(config(tmp_path, rows, max_length=100, validation=None), CHATML, [], tmp_path)
    assert not prepared.dropped
    assert prepared.cut.count == 1
    assert prepared.train.lengths.max() <= 100
    dropped = prepare(config(tmp_path, rows, max_length=100, too_long="drop"), CHATML, [], tmp_path).dropped
    assert [(item.reason, item.count) for item in dropped] == [("longer than data.max_length = 100", 1)]


def test_the_length_advised_is_that_of_the_whole_dialogs(tmp_path: Path) -> None:
    history = [[f"What is {i}?", f"It is {i}."] for i in range(9)]
    cut = [{"instruction": f"And {i}?", "output": "Nine.", "history": history} for i in range(30)]
    rows = [*cut, *({"instruction": str(i), "output": "灯" * 50, "history": []} for i in range(10))]
    with pytest.raises(UsageError, match=r"10 of 40 rows .*\n.*\nRaise data\.max_length to \d+, which 99 %") as error:
        prepare(config(tmp_path, rows, max_length=100, validation=None), CHATML, [], tmp_path)
    named = int(str(error.value).split("Raise data.max_length to ")[1].split(",")[0])
    fitting = prepare(config(tmp_path, rows, max_length=named, validation=None), CHATML, [], tmp_path)
    assert (fitting.dropped, fitting.cut.count) == ([], 0)
    assert fitting.train.lengths.max() == named


def test_no_length_is_advised_where_nothing_is_too_long_to_be_cut(tmp_path: Path) -> None:
    history = [[f"What is {i}?", f"It is {i}."] for i in range(9)]
    cut = [{"instruction": f"And {i}?", "output": "Nine.", "history": history} for i in range(30)]
    assert prepare(config(tmp_path, cut, max_length=100), CHATML, [], tmp_path).cut.count == 30
    (tmp_path / "picky.jinja").write_text(
        "{% if '7' in messages[0].content %}{{ raise_exception('no sevens') }}{% endif %}" + STYLES["chatml"][0],
        encoding="utf-8",
    )
    refused = [{"instruction": "7", "output": "Seven.", "history": []}] * 10
    run = config(tmp_path, [*cut, *refused], template="picky.jinja", max_length=100)
    with pytest.raises(UsageError, match=r"10 of 40 rows .*\n.*no sevens.*\nMend them, or leave them out"):
        prepare(run, CHATML, [], tmp_path)


def test_equal_rows_are_counted_among_those_kept(tmp_path: Path) -> None:
    long = {"instruction": "Go on", "output": "灯" * 200}
    prepared = prepare(config(tmp_path, [*ROWS, ROWS[3], long, long], max_length=100), CHATML, [], tmp_path)
    assert prepared.loaded.duplicates == 1
    (tmp_path / "held.json").write_text(json.dumps([ROWS[3], ROWS[4], ROWS[4], long]), encoding="utf-8")
    run = config(tmp_path, ROWS, max_length=100, validation="held.json", drop_bad_rows=True)
    loaded = prepare(run, CHATML, [], tmp_path).loaded
    assert (loaded.duplicates, loaded.overlap.count) == (1, 3)


def test_nothing_trains_on_answers_that_do_not_stop(tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(ENDLESS, encoding="utf-8")
    run = config(tmp_path, template="endless.jinja")
    with pytest.raises(UsageError, match=r"40 of 40 .* do not end .*first at rows\.json:1, .*data\.template"):
        prepare(run, CHATML, [], tmp_path)
    shown = prepare(run, CHATML, [], tmp_path, require_stop=False)
    assert not shown.stop_proof.holds
    assert shown.stop_proof.failing == 40


def test_one_answer_without_a_stop_is_found() -> None:
    def sequence(ids: list[int], weights: list[float]) -> Encoded:
        return Encoded(np.array(ids, np.int32), np.array(weights, np.float32))

    good = sequence([5, 6, 2, 7, 8, 2, 1], [0, 1, 1, 0, 1, 1, 0])
    ends_with_the_sequence = sequence([5, 2], [0, 1])
    bad = sequence([5, 6, 2, 7, 8, 9], [0, 1, 1, 0, 1, 1])
    places = [Place("f", line) for line in (1, 2, 3)]
    proof = prove_answers_stop(EncodedSet.build([good, ends_with_the_sequence, bad], places), [2, 3])
    assert (proof.stretches, proof.failing, proof.holds) == (5, 1, False)
    assert proof.first is not None
    assert (proof.first.place.line, proof.first.sequence, proof.first.token) == (3, 2, 5)
    assert prove_answers_stop(EncodedSet.build([good, ends_with_the_sequence], places[:2]), [2, 3]).holds
    assert not prove_answers_stop(EncodedSet.build([], []), [2]).holds


@given(
    texts=st.lists(st.text(alphabet="ab 灯。\n", min_size=1, max_size=40), min_size=1, max_size=4),
    max_length=st.integers(2, 12),
)
@settings(max_examples=60, deadline=None)
def test_windows_cover_a_document_and_predict_each_token_once(texts: list[str], max_length: int) -> None:
    eos = LLAMA3.eos_token_id
    for text, windows in zip(texts, encode_texts(texts, LLAMA3, eos, max_length), strict=True):
        document = [*LLAMA3(text)["input_ids"], eos]
        assert document[0] == LLAMA3.bos_token_id
        assert all(2 <= len(window) <= max_length for window in windows)
        assert [id for window in windows for id in window.input_ids[window.weights > 0].tolist()] == document[1:]
        assert all(np.array_equal(b.input_ids[:1], a.input_ids[-1:]) for a, b in pairwise(windows))


def prepared_texts(folder: Path, tokenizer: Any, **data: Any) -> Prepared:
    rows = [{"text": sentence} for sentence in ("A lamp. " * 30, "灯塔", "B", "A lamp. " * 30)]
    return prepare(config(folder, rows, stage="pt", **data), tokenizer, [], folder)


def test_pre_training_cuts_long_texts_and_ends_each(tmp_path: Path) -> None:
    prepared = prepared_texts(tmp_path, LLAMA3, max_length=32, validation=None)
    assert prepared.cut.count == 2
    assert (prepared.stop_proof.stretches, prepared.stop_proof.holds) == (4, True)
    assert len(prepared.train) == len(prepared.train_examples) > 4
    assert prepared.train.lengths.max() == 32
    assert all(isinstance(example, Text) for example in prepared.train_examples)
    assert not prepared.dropped


def test_pre_training_needs_no_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    assert prepared_texts(tmp_path, tokenizer).template is None
    with pytest.raises(UsageError, match=r"no chat template.*data\.template: path\.jinja"):
        prepare(config(tmp_path), tokenizer, [], tmp_path)
