"""Template, tokenizer and stop tokens that do not fit together, each found; those that do, in every style, are fine."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.findings.made import CHATML, found_in, plain_rows, prepared
from tests.tokenizers import STYLES, THINKING, tiny_tokenizer
from tunewright.data.findings.find import look

SILENT = STYLES["chatml"][0].split("{%- if add_generation_prompt")[0]
# The answer is written otherwise than the generation prompt begins it.
OTHER_PROMPT = STYLES["chatml"][0].replace("assistant\\n' }}{% endif", "assistant' }}{% endif")


@pytest.mark.parametrize("style", STYLES)
def test_well_known_styles_are_fine(style: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(style)
    found = found_in(tmp_path, plain_rows(40), tokenizer, system="Be brief.")
    names = {"padding", "stop_tokens", "one_prompt", "markers", "special_tokens"}
    assert {name: found[name].level for name in names} == dict.fromkeys(names, "fine")
    assert "(32 prompts made again)" in found["one_prompt"].message


def test_stop_tokens_that_the_files_do_not_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama3")
    made = prepared(tmp_path, plain_rows(5), tokenizer)
    (end, turn) = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    base = {found.name: found for found in look(made, tokenizer, [end]).found}
    assert base["stop_tokens"].level == "note"
    assert "stop at <|end_of_text|>, but the template ends answers with <|eot_id|>" in base["stop_tokens"].message
    assert {found.name: found.level for found in look(made, tokenizer, [end, turn]).found}["stop_tokens"] == "fine"


def test_a_stop_id_outside_the_vocabulary(tmp_path: Path) -> None:
    made = prepared(tmp_path, plain_rows(5))
    made.stop_ids = (*made.stop_ids, 99_999)
    found = {found.name: found for found in look(made, CHATML, [99_999]).found}
    assert found["unknown_stop"].level == "error"
    assert "99999" in found["unknown_stop"].message


def test_padding_with_the_stop_token_is_said_to_be_harmless(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.pad_token = tokenizer.eos_token
    assert found_in(tmp_path, plain_rows(5), tokenizer)["padding"].message == (
        "<|im_end|> pads and stops; padding is told by length, so the stop stays trained"
    )


def test_a_template_for_another_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "llama3.jinja").write_text(STYLES["llama3"][0], encoding="utf-8")
    found = found_in(tmp_path, plain_rows(5), template="llama3.jinja")["markers"]
    assert found.level == "warning"
    assert "<|start_header_id|>, which this tokenizer has no token for" in found.message


def test_prompts_that_differ_from_training(tmp_path: Path) -> None:
    (tmp_path / "other.jinja").write_text(OTHER_PROMPT, encoding="utf-8")
    rows = [{"q": row["q"], "a": "\n" + row["a"]} for row in plain_rows(5)]
    found = found_in(tmp_path, rows, template="auto")["one_prompt"]
    assert (found.level, found.count) == ("warning", 5)
    assert found.message == "5 of 5 prompts have other tokens in chat than in training"
    assert "trained after" in found.samples[0].text


def test_a_silent_prompt_and_a_date(tmp_path: Path) -> None:
    (tmp_path / "silent.jinja").write_text("{# strftime_now #}" + SILENT, encoding="utf-8")
    found = found_in(tmp_path, plain_rows(5), template="silent.jinja")
    assert (found["silent_prompt"].level, found["date_in_prompt"].level) == ("warning", "warning")


def test_text_for_pre_training_needs_no_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    (tmp_path / "x.json").write_text(json.dumps({}), encoding="utf-8")
    found = found_in(tmp_path, [{"text": row["a"]} for row in plain_rows(8)], tokenizer, stage="pt")
    assert "one_prompt" not in found
    assert {one.level for one in found.values()} == {"fine"}


def long_dialogs(count: int, answer: str = "So {}.") -> list[dict[str, Any]]:
    """Rows of four questions each."""
    rows = plain_rows(count)
    history = [[[f"{row['q']} {i}", answer.format(row["a"])] for i in range(3)] for row in rows]
    return [
        {"instruction": row["q"], "output": row["a"], "history": turns}
        for row, turns in zip(rows, history, strict=True)
    ]


def test_a_prompt_is_made_again_with_its_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
    turns = [[("user", row["q"]), ("assistant", row["a"])] for row in plain_rows(20)]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in dialog], "tools": tools} for dialog in turns
    ]
    found = found_in(tmp_path, rows, template="chatml", max_length=2048)["one_prompt"]
    assert (found.level, found.samples) == ("fine", ())
    assert "(20 prompts made again)" in found.message


@pytest.mark.parametrize("too_long", ["keep_oldest", "keep_newest"])
def test_prompts_of_cut_dialogs_are_not_compared(too_long: str, tmp_path: Path) -> None:
    cut = long_dialogs(20)
    whole = [{**row, "history": []} for row in long_dialogs(6)]
    made = prepared(tmp_path, [*cut, *whole], max_length=250, too_long=too_long)
    assert (made.cut.count, made.dropped) == (20, [])
    found = {one.name: one for one in look(made, CHATML).found}["one_prompt"]
    assert found.level == "fine"
    assert "(6 prompts made again)" in found.message
    assert "one_prompt" not in found_in(tmp_path, cut, max_length=250, too_long=too_long)


def test_a_rewritten_dialog_is_compared_where_its_last_answer_is_trained(tmp_path: Path) -> None:
    (tmp_path / "thinking.jinja").write_text(THINKING, encoding="utf-8")
    made = prepared(tmp_path, long_dialogs(8, "<think>Hm.</think>{}"), template="thinking.jinja", max_length=2048)
    assert len(made.train) == 8 * 4
    found = {one.name: one for one in look(made, CHATML).found}["one_prompt"]
    assert found.level == "fine"
    assert "(8 prompts made again)" in found.message
