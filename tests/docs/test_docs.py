"""What README and docs say holds: their commands run, their configs load, their links lead somewhere.

Commands run on a tiny model and made-up data; the names below say what stands in for what.
"""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import openpyxl
import pytest

from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.cli.app import VERBS, main
from tunewright.config.load import load_config
from tunewright.config.schema import DataConfig
from tunewright.data.account import SourceAccount
from tunewright.data.examples import Place
from tunewright.data.formats import for_stage, read_example
from tunewright.data.load import find_sources, read_sources
from tunewright.data.pack import Chunk
from tunewright.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread", "no_probe")

ROOT = Path(__file__).parents[2]
PAGES = ("guide.md", "data.md", "config.md", "how-it-works.md")
DOCS = [ROOT / "README.md", *(ROOT / "docs" / language / page for language in ("en", "zh") for page in PAGES)]

MODEL = "smollm2-135m-instruct"  # a tiny model stands in for it
SHEET = "questions.xlsx"
OTHER_LINES = {". .venv/bin/activate"}  # lines of the shell that are neither tunewright's nor make's
SMALL = (
    "data.validation=4",
    "data.max_length=400",
    "train.batch_size=4",
    "train.epochs=1",
    "train.max_steps=2",
    "train.save_steps=1",
    "samples.max_new_tokens=4",
    "evaluate.prompts=2",
    "evaluate.max_new_tokens=4",
    "chat.max_new_tokens=4",
)
MEASURED = ("data.max_length", "evaluate.")  # what a model that is not trained may be told
WORDS = {"100": "1"}  # the documented run has a checkpoint at step 100, the small one at step 1


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(language, text) for language, text in found]


def mentioned(page: Path) -> list[str]:
    """Commands within sentences and tables, in order."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`(tunewright [^`]+)`", text)


def sections(page: Path) -> list[str]:
    """The level of every heading, in order; a heading that is a key stands for itself."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [m[1] + (m[2] if m[2].startswith("`") else "") for m in re.finditer(r"^(#+) (.*)$", text, re.M)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tiny_tokenizer("chatml"), tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the sheet and the tables that the docs speak of."""
    monkeypatch.chdir(tmp_path)
    book = openpyxl.Workbook()
    book.active.append(["q", "a"])
    for number in range(30):
        book.active.append([f"What is boat {number}?", f"The Heron {number}."])
    book.save(tmp_path / SHEET)
    for table in ("questions", "answers"):
        (tmp_path / f"{table}.csv").write_text(f"question_id,content\n1,{table}\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/en/guide.md"])
def test_commands_and_configs_of_a_page_work_in_their_order(
    page: str, tiny: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    for language, text in blocks(ROOT / page):
        if language == "yaml":
            write_config(text, tiny)
        elif language == "python":
            exec(compile(text.replace("run.yaml", "python.yaml"), page, "exec"), {})
        elif language == "sh":
            for line in filter(None, map(str.strip, text.splitlines())):
                run_line(line, tiny, monkeypatch, capsys)
                ran += 1
    for line in mentioned(ROOT / page):
        _, verb, *arguments = line.split()
        assert verb in VERBS
        if arguments and "DIR" not in arguments:
            run_line(line, tiny, monkeypatch, capsys)
    assert ran >= 8


def write_config(text: str, tiny: str) -> None:
    """Load a block of YAML; a whole config becomes `run.yaml`, and `python.yaml` with the small settings in it."""
    Path("block.yaml").write_text(text, encoding="utf-8")
    config = load_config(Path("block.yaml"), [], {"model": tiny, "data": SHEET})
    if not text.startswith("model: "):
        return
    whole = text.replace(MODEL, json.dumps(tiny))
    Path("run.yaml").write_text(whole, encoding="utf-8")
    assert config.output is not None
    small = load_config(Path("run.yaml"), SMALL)
    Path("python.yaml").write_text(json.dumps(small.model_dump(mode="json")), encoding="utf-8")


def run_line(line: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if words[0] != "tunewright":
        assert " ".join(words) in OTHER_LINES, f"nobody knows how to try this line: {line}"
        return
    verb, *rest = [tiny if word == MODEL else WORDS.get(word, word) for word in words[1:]]
    if verb in ("train", "check"):
        rest += [f"model={json.dumps(tiny)}", *SMALL]
    elif verb == "eval":
        rest += [setting for setting in SMALL if tiny in rest and setting.startswith(MEASURED)]
    elif verb == "chat":
        rest += ["--max-new-tokens", "4"]
        question = Path("question.txt")
        question.write_text("Who are you?\n", encoding="utf-8")
        monkeypatch.setattr("sys.stdin", question.open(encoding="utf-8"))
    elif verb == "resume":
        interrupt(RunFolder.open(Path(rest[0])))
    with pytest.raises(SystemExit) as left:
        main([verb, *rest])
    out, err = capsys.readouterr()
    assert left.value.code == 0, f"{line}\n{out}\n{err}"
    assert out.strip() or verb in ("chat", "train", "resume"), f"{line} prints nothing"


def interrupt(run: RunFolder) -> None:
    """Leave of a finished run what an interruption after its first step leaves."""
    for made in (run.checkpoints_path / "step-2", run.adapter_path):
        shutil.rmtree(made)
    run.write_status("interrupted", 1, 2)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: "-".join(page.relative_to(ROOT).parts))
def test_configs_load_and_rows_are_read(page: Path, tiny: str, folder: Path) -> None:
    for language, text in blocks(page):
        if language == "yaml":
            write_config(text if "output:" in text or "model" not in text else f"{text}output: runs/x\n", tiny)
        elif language == "json":
            for number, line in enumerate(text.splitlines()):
                (folder / f"{number}.jsonl").write_text(line, encoding="utf-8")
                data, stage = {"train": f"{number}.jsonl", "validation": None}, "pt" if '"text"' in line else "sft"
                (account, chunk) = read_sources(find_sources(DataConfig.model_validate(data), folder), stage)
                assert isinstance(account, SourceAccount)
                assert isinstance(chunk, Chunk)
                (row,) = chunk.rows
                assert for_stage(read_example(row, chunk.layout, None, Place(chunk.file, 1)), stage)
        else:
            assert language in ("sh", "python", "text"), f"a block of {language!r} is not looked at"


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_have_the_same_sections_and_commands(page: str) -> None:
    """So that what runs of the English page (above) holds for the Chinese one too, command by command."""
    english, chinese = (ROOT / "docs" / language / page for language in ("en", "zh"))
    assert sections(english) == sections(chinese)
    assert blocks(english) == blocks(chinese)
    assert mentioned(english) == mentioned(chinese)
    assert page == "guide.md" or not any(block.language == "sh" for block in blocks(english))
    keys = [re.findall(r"^\| (`.*?`)", path.read_text(encoding="utf-8"), re.M) for path in (english, chinese)]
    assert keys[0] == keys[1]


def test_config_pages_are_what_the_schema_says() -> None:
    generator = load_generator()
    names = [key.name for key in generator.all_keys()]
    assert list(generator.chinese()) == names
    for language in ("en", "zh"):
        written = (ROOT / "docs" / language / "config.md").read_text(encoding="utf-8")
        assert written == generator.page(language), "run: python docs/generate_config.py"
        assert all(f"`{name}`" in written for name in names)


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_config", ROOT / "docs" / "generate_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", DOCS, ids=lambda page: "-".join(page.relative_to(ROOT).parts))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_has_room_for_the_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert re.search(r"<!-- demo capture -->\n```text\n.+?\n```\n<!-- end -->", text, re.S)
