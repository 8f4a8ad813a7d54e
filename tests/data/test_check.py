"""What `tunewright check` prints: true facts, coloured tokens that say exactly what is trained, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers import ENDLESS, STYLES, save_tiny, tiny_tokenizer
from tunewright.cli.app import main
from tunewright.config.schema import RunConfig
from tunewright.data.check import color_tokens, gather_facts
from tunewright.data.encode import prepare
from tunewright.data.examples import Dialog, Message, Place
from tunewright.data.template import ChatTemplate

ROWS = [{"q": f"Where is boat {i}?\nSay it.", "a": f"船 {i} 在海上 👩‍👧."} for i in range(30)]
TOKENIZERS = {style: tiny_tokenizer(style) for style in STYLES}


@pytest.mark.parametrize("style", STYLES)
@given(answer=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
@settings(max_examples=40, deadline=None)
def test_pieces_join_to_the_text_and_end_in_the_stop(style: str, answer: str) -> None:
    tokenizer = TOKENIZERS[style]
    template = ChatTemplate(tokenizer, None, ())
    (encoded,) = template.encode(Dialog((Message("user", "灯?"), Message("assistant", answer)), Place("x", 1)))
    pieces = color_tokens(encoded, tokenizer, template.stop_ids)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(encoded.input_ids.tolist())
    trained = [piece for piece in pieces if piece.kind != "masked"]
    assert [piece.kind for piece in trained] == ["trained"] * (len(trained) - 1) + ["stop"]
    assert trained[-1].text == tokenizer.decode([template.turn_end])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, 30 dialogs and a config."""
    folder = tmp_path_factory.mktemp("check")
    save_tiny(tiny_tokenizer("chatml"), folder / "model")
    rows = [*ROWS, ROWS[0], {"q": "And?", "a": ""}, {"q": "Too long", "a": "灯" * 500}]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "run.yaml").write_text(
        "model: model\ndata:\n  train: rows.jsonl\n  validation: 3\n  max_length: 200\n  system: Be brief.\n",
        encoding="utf-8",
    )
    (folder / "endless.jinja").write_text(ENDLESS, encoding="utf-8")
    return folder


def run(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        main(["check", str(folder / "run.yaml"), *words])
    output = capsys.readouterr()
    return int(leave.value.code or 0), output.out, output.err


def test_json_has_the_facts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, "--json")
    facts: dict[str, Any] = json.loads(out)
    assert code == 0
    assert facts["stop_proof"] is True
    assert (facts["rows"], facts["examples"], facts["duplicates"]) == (33, 31, 1)
    assert facts["train"] + facts["validation"] == 31
    assert {
        item["reason"]: (item["count"], [p.rpartition(":")[2] for p in item["first"]]) for item in facts["dropped"]
    } == {
        "no answer": (1, ["32"]),
        "longer than data.max_length = 200": (1, ["33"]),
    }
    assert 0 < facts["supervised_tokens"] < facts["tokens"]
    assert sum(facts["lengths"]["histogram"]) == 31
    assert facts["stop_tokens"] == ["<|im_end|>"]
    assert facts["plan"]["steps"] == 6


def test_text_shows_what_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys)
    assert code == 0
    assert "31 of 33 rows; 28 for training, 3 for validation; 1 equal an earlier one" in out
    assert "1 × no answer" in out
    assert "assistant⏎]\n" in out
    assert "在海上 👩‍👧.⟩⟪<|im_end|>⟫[⏎]\n" in out
    assert "✓ all 31 answers end with a token that generation stops at: <|im_end|>" in out
    assert "\nplan          " in out
    assert "\x1b" not in out


def test_a_failed_proof_ends_with_1_and_shows_the_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, f"data.template={folder / 'endless.jinja'}")
    assert code == 1
    assert "✗ 31 of 31" in out
    assert "在海上 👩‍👧.⏎⟩" in out
    code, out, _ = run(folder, capsys, f"data.template={folder / 'endless.jinja'}", "--json")
    assert code == 1
    assert json.loads(out)["stop_proof"] is False


def test_bad_settings_end_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(folder, capsys, "data.max_length=5")
    assert code == 2
    assert "the shortest example" in err
    code, _, err = run(folder, capsys, "data.train=absent.json")
    assert code == 2
    assert "absent.json" in err


def test_warnings_name_what_is_worth_a_look(tmp_path: Path) -> None:
    rows = [{"q": "What is <|im_end|>?", "a": "\nA token."}, *ROWS]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    source = "{# strftime_now #}" + STYLES["chatml"][0].split("{%- if add_generation_prompt")[0]
    (tmp_path / "silent.jinja").write_text(source, encoding="utf-8")
    for template, expected in (
        ("auto", ["the text of 1 row spells special tokens", "1 × the first characters"]),
        ("silent.jinja", ["the text of 1 row spells special tokens", "no generation prompt", "today's date"]),
    ):
        config = RunConfig.model_validate({"model": "m", "data": {"train": "rows.json", "template": template}})
        prepared = prepare(config, TOKENIZERS["chatml"], [], tmp_path)
        warnings = gather_facts("sft", prepared, TOKENIZERS["chatml"]).warnings
        assert len(warnings) == len(expected)
        assert all(part in warning for part, warning in zip(expected, warnings, strict=True))
