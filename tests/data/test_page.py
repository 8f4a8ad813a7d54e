"""The page of `check`: self-contained, well-formed, complete, and never more than text where the data is markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.data.findings.made import CHATML, plain_rows, prepared
from tests.tokenizers import save_tiny
from tunewright.cli.app import main
from tunewright.data.check import Facts, gather_facts
from tunewright.data.page import render_page, write_page
from tunewright.errors import UsageError

EVIL = '</div><script src="https://example.com/x.js">alert(1)</script>{{ 7*7 }}<img src=x onerror=y>'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest; keeps tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def facts_of(folder: Path, rows: list[dict[str, str]], **data: object) -> Facts:
    return gather_facts("sft", prepared(folder, rows, **data), CHATML)


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [{"q": EVIL, "a": EVIL * 2}, *plain_rows(30), plain_rows(3)[2]], validation=3)
    page = render_page(facts, EVIL, EVIL, [EVIL])
    read = Reader(page)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "form", "base"})
    assert not [name for _, attributes in read.tags for name in attributes if name in ("src", "href", "srcset")]
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert EVIL in read.text  # as text
    assert "{{ 7*7 }}" in read.text


def test_the_page_says_what_check_says(tmp_path: Path) -> None:
    rows = [*plain_rows(40), plain_rows(9)[8], {"q": "None", "a": ""}, {"q": "Loop", "a": "The fog. " * 20}]
    facts = facts_of(tmp_path, rows, validation=4)
    text = Reader(render_page(facts, "rows.jsonl", "tiny", ["36 steps"])).text
    for expected in (
        "It can learn to stop",
        "42",
        "of 43 rows are used",
        "left out: no answer",
        "rows.jsonl:42",
        "the answer of 1 row repeats itself",
        "The fog. The fog.",
        "36 steps",
        "question",
        *(found.message for found in facts.findings),
        *(fate.what for fate in facts.account),
    ):
        assert expected in text or expected == "question"
    first = "".join(piece.text for piece in facts.first.pieces)
    assert first.replace("\n", "⏎\n") in text


def test_a_failed_proof_stands_on_top(tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    facts = facts_of(tmp_path, plain_rows(5), template="endless.jinja")
    text = Reader(render_page(facts, "rows.jsonl", "tiny")).text
    assert "It could not learn to stop" in text
    assert "First answer that does not stop" in text


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, plain_rows(5))
    with pytest.raises(UsageError, match=r"--html .*absent/page.html: cannot be written \(No such file"):
        write_page(tmp_path / "absent" / "page.html", facts, "t", "m")
    write_page(tmp_path / "page.html", facts, "t", "m")
    assert sorted(path.name for path in tmp_path.glob("page*")) == ["page.html"]


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(CHATML, tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(plain_rows(30)), encoding="utf-8")
    (tmp_path / "run.yaml").write_text("model: model\ndata: {train: rows.json, validation: 3}\n", encoding="utf-8")
    page = tmp_path / "check.html"
    with pytest.raises(SystemExit) as leave:
        main(["check", str(tmp_path / "run.yaml"), "--html", str(page), "--row", "4"])
    assert leave.value.code in (0, None)
    assert f"written to {page}" in capsys.readouterr().out
    text = Reader(page.read_text(encoding="utf-8")).text
    assert "Row 4" in text
    assert "time about" in text
