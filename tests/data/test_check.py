"""What `tunewright check` prints: true facts, coloured tokens that say exactly what is trained, exit codes."""

import json
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers import ENDLESS, STYLES, save_tiny, tiny_tokenizer
from tunewright.cli.app import main
from tunewright.config.schema import RunConfig
from tunewright.data.check import color_tokens, gather_facts
from tunewright.data.encode import prepare
from tunewright.data.examples import Dialog, Message, Place
from tunewright.data.explain import explain_rows
from tunewright.data.template import ChatTemplate
from tunewright.errors import UsageError

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
    became = {fate["what"]: fate["count"] for fate in facts["account"] if not fate["counted_above"]}
    assert became == {
        "trained on": 28,
        "held out for validation": 3,
        "left out: no answer": 1,
        "left out: longer than data.max_length = 200": 1,
    }
    found = {one["name"]: one for one in facts["findings"]}
    assert (found["duplicates"]["count"], found["repeating_answers"]["level"]) == (1, "fine")
    assert facts["warnings"] == [one["message"] for one in facts["findings"] if one["level"] != "fine"]
    assert facts["scripts"]["questions"] == {"Latin": 31}
    assert {"text", "kind", "ids"} == set(facts["first"]["pieces"][0])


def test_text_shows_what_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys)
    assert code == 0
    assert "31 of 33 rows; 28 for training, 3 for validation\n" in out
    account = out.split("every row")[1].split("\ntokens")[0].splitlines()
    assert [line.split()[:4] for line in account[:2]] == [["28", "84.8", "%", "trained"], ["3", "9.1", "%", "held"]]
    assert account[2].split()[:6] == ["1", "3", "%", "left", "out:", "no"]
    assert account[2].endswith("rows.jsonl:32")
    assert "of all these, equal to an earlier one" in account[4]
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
        ("auto", {"special_tokens", "straddling", "one_prompt"}),
        ("silent.jinja", {"special_tokens", "silent_prompt", "date_in_prompt"}),
    ):
        config = RunConfig.model_validate({"model": "m", "data": {"train": "rows.json", "template": template}})
        prepared = prepare(config, TOKENIZERS["chatml"], [], tmp_path)
        facts = gather_facts("sft", prepared, TOKENIZERS["chatml"])
        found_out = {found.name for found in facts.findings if found.level in ("warning", "note")}
        assert expected <= found_out
        order = [["error", "warning", "note", "fine"].index(found.level) for found in facts.findings]
        assert order == sorted(order)


def test_any_row_is_shown_token_by_token(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(folder, capsys, "--row", "2", "--row", "rows.jsonl:32", "--row=33")
    assert code == 0
    assert out.startswith("row 2 ")
    assert "\nsource        q: Where is boat 1?" in out
    assert "⟨船 1 在海上 👩‍👧.⟩⟪<|im_end|>⟫[⏎]" in out
    assert "row 32 " in out
    assert "✗ left out: no answer" in out
    assert "✗ left out: longer than data.max_length = 200: it has" in out
    assert "stop proof" not in out
    code, out, _ = run(folder, capsys, "--row", "33", "--json")
    (row,) = json.loads(out)
    assert (row["row"], row["place"].rpartition(":")[2], row["kept"]) == (33, "33", False)
    assert row["source"]["q"] == "Too long"
    assert "".join(piece["text"] for piece in row["sequences"][0]).count("灯") == 500


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("34", "--row 34: the data has only 33 rows"),
        ("0", "--row 0: give a row's number, or its place as check prints it: FILE:LINE"),
        ("x", "--row x: give a row's number, or its place as check prints it: FILE:LINE"),
        ("other.json:3", "--row other.json:3: none of the data files is called other.json"),
    ],
)
def test_rows_that_are_not_there(row: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(folder, capsys, "--row", row)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_a_line_within_a_row_means_that_row(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = tmp_path / "pretty.json"
    rows.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    shown = {}
    for line in (2, 3, 5, 6, 9, 121):
        _, out, _ = run(folder, capsys, f"data.train={rows}", "--row", f"pretty.json:{line}", "--json")
        shown[line] = json.loads(out)[0]["row"]
    assert shown == {2: 1, 3: 1, 5: 1, 6: 2, 9: 2, 121: 30}


@pytest.fixture(scope="module")
def long_folder(folder: Path) -> Path:
    """The same with dialogs that do not fit: rows 31 and 33 lose turns, row 34 is one answer too long."""
    history = [[f"What is {i}?", f"It is {i}."] for i in range(9)]
    rows = [{"instruction": row["q"], "output": row["a"], "history": []} for row in ROWS]
    long = {"instruction": "And 9?", "output": "Nine.", "history": history}
    rows += [long, rows[0], {**long, "output": "9."}, {"instruction": "Too long", "output": "灯" * 500, "history": []}]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [{"text": "A lamp. " * (200 if i % 10 == 4 else 2)} for i in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    return folder


def test_what_is_cut_is_told_for_every_row(long_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"data.train={long_folder / 'long.jsonl'}", "data.max_length=150")
    code, out, _ = run(long_folder, capsys, *words)
    assert code == 0
    told = next(line for line in out.splitlines() if "cut between turns" in line)
    assert told.split()[:3] == ["2", "5.9", "%"]
    assert "of all these, cut between turns to fit data.max_length" in told
    assert told.endswith("long.jsonl:31, :33")
    assert "windows" not in out
    _, out, _ = run(long_folder, capsys, *words, "--json")
    facts = json.loads(out)
    assert (facts["cut"], facts["duplicates"]) == (2, 1)
    assert {one["name"]: one["count"] for one in facts["findings"]}["duplicates"] == 1
    _, out, _ = run(long_folder, capsys, *words, "--row=31", "--row=long.jsonl:32", "--row=34", "--json")
    cut, whole, left_out = json.loads(out)
    questions = sum(piece["text"] == "<|im_start|>" for piece in cut["sequences"][0]) // 2
    assert 0 < questions < 10
    assert cut["fate"] == f"kept without {20 - 2 * questions} messages, so that the rest fits data.max_length"
    assert whole["fate"] == "kept"
    assert left_out["fate"].startswith("left out: longer than data.max_length = 150: it has ")
    _, out, _ = run(long_folder, capsys, *words, "--row=31")
    assert f"becomes       ✓ {cut['fate']}\n" in out


def test_documents_are_told_to_be_cut_into_windows(long_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (f"data.train={long_folder / 'texts.jsonl'}", "method.stage=pt", "data.max_length=32")
    code, out, _ = run(long_folder, capsys, *words)
    assert code == 0
    assert next(line for line in out.splitlines() if "cut into windows of data.max_length" in line).endswith(":5, :15")
    _, out, _ = run(long_folder, capsys, *words, "--row=5", "--row=6", "--json")
    cut, whole = json.loads(out)
    assert cut["fate"] == f"kept, cut into {len(cut['sequences'])} windows of data.max_length"
    assert (whole["fate"], whole["kept"], len(whole["sequences"])) == ("kept", True, 1)


def test_every_form_of_output_has_the_rows_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "check.html"
    _, out, _ = run(folder, capsys, "--json", "--html", str(page), "--row=2", "--row=32")
    explained = json.loads(out)["explained"]
    assert [(row["row"], row["fate"]) for row in explained] == [(2, "kept"), (32, "left out: no answer")]
    assert "left out: no answer" in unescape(page.read_text("utf-8"))
    _, out, _ = run(folder, capsys, "--html", str(page), "--row=32")
    assert "✗ left out: no answer" in out
    assert "stop proof" in out


def test_rows_that_json_cannot_hold_are_shown(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    columns = {
        "q": ["Where is boat 1?"] * 12,
        "a": ["At sea."] * 12,
        "photo": [b"\xff\x00"] * 12,
        "price": [Decimal("1.50")] * 12,
        "more": [{"when": [b"", None]}] * 12,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    note = {"half \ud800": "half \udc00"}
    rows = [{"q": f"Where is {i}?", "a": "At sea.", "note": note, "big": 1 << 70} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, expected in (
        ("rows.parquet", {"photo": "(2 bytes)", "price": "1.50", "more": {"when": ["(0 bytes)", None]}}),
        ("rows.jsonl", {"note": {"half \\ud800": "half \\udc00"}}),
    ):
        code, out, _ = run(folder, capsys, f"data.train={tmp_path / name}", "--row=1", "--json")
        assert code == 0
        assert expected.items() <= json.loads(out)[0]["source"].items()
        code, out, _ = run(folder, capsys, f"data.train={tmp_path / name}", "--row=1")
        assert (code, "✓ kept" in out) == (0, True)


def test_a_row_says_what_check_says_of_it(tmp_path: Path) -> None:
    """Also where no token is trained, and where nothing could end a text."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "texts.json").write_text(json.dumps([{"text": row["a"]} for row in ROWS]), encoding="utf-8")
    unmarked = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% endgeneration %}{% endif %}"
    unmarked += "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    (tmp_path / "unmarked.jinja").write_text(unmarked, encoding="utf-8")
    config = RunConfig.model_validate({"model": "m", "data": {"train": "rows.json", "template": "unmarked.jinja"}})
    (row,) = explain_rows(config, TOKENIZERS["chatml"], [], tmp_path, ["1"])
    assert row.fate == "left out: no token of it is trained"
    endless = tiny_tokenizer("chatml")
    endless.chat_template = endless.eos_token = None
    texts = RunConfig.model_validate({"model": "m", "data": {"train": "texts.json"}, "method": {"stage": "pt"}})
    with pytest.raises(UsageError, match="names no end-of-text token"):
        explain_rows(texts, endless, [], tmp_path, ["1"])
