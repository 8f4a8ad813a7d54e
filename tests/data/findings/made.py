"""Prepared data of a few rows, and the findings in it by name."""

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.tokenizers import tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared, prepare
from tunewright.data.findings.find import look
from tunewright.data.findings.found import Found

CHATML = tiny_tokenizer("chatml")
WORDS = "lamp fog ship pier gull rope tide book keeper stone wind night salt map oar bell sail star".split()  # noqa: SIM905 one line reads better


def sentence(number: int, length: int = 9) -> str:
    """A sentence of words that no other number has in this order."""
    return " ".join(Random(number).choices(WORDS, k=length)) + f" {number}"


def plain_rows(count: int) -> list[dict[str, Any]]:
    """Rows in which nothing is to be found."""
    return [{"q": f"Tell {sentence(i)}?", "a": f"So {sentence(i + 1000, 12)}."} for i in range(count)]


def prepared(
    folder: Path, rows: list[dict[str, Any]], tokenizer: Any = CHATML, stage: str = "sft", **data: Any
) -> Prepared:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8", newline="\n")
    data = {"train": "rows.jsonl", "validation": None, "max_length": 512, **data}
    config = RunConfig.model_validate({"model": "tiny", "data": data, "method": {"stage": stage}})
    return prepare(config, tokenizer, [], folder, require_stop=False)


def found_in(
    folder: Path, rows: list[dict[str, Any]], tokenizer: Any = CHATML, stage: str = "sft", **data: Any
) -> dict[str, Found]:
    """By name; of odd characters the first kind."""
    looked = look(prepared(folder, rows, tokenizer, stage, **data), tokenizer)
    return {found.name: found for found in reversed(looked.found)}


def lines(found: Found) -> list[int]:
    return [place.line for place in found.first]
