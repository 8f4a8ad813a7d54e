import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.folders import SYSTEM, tiny_folder, tiny_run, write_tuned
from tunewright.chat import partner as partner_module
from tunewright.chat.partner import open_partner, weights_folder
from tunewright.cli.app import main
from tunewright.cli.chat import chat
from tunewright.data.examples import Message
from tunewright.data.template import ChatTemplate
from tunewright.errors import UsageError
from tunewright.models.generate import generate
from tunewright.models.load import load_model, load_tokenizer
from tunewright.runs.folder import RunFolder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", model, strength=3.0)


def ask(*arguments: str, lines: str) -> tuple[list[str], str]:
    """What `tunewright chat` prints for questions from a pipe: answers, remarks."""
    app = typer.Typer()
    app.command()(chat)
    result = CliRunner().invoke(app, [*arguments], input=lines, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout.splitlines(), result.stderr


def checkpoint(run: RunFolder, step: int, model: Path, strength: float) -> Path:
    """A checkpoint folder in the engine's form."""
    folder = run.checkpoint_path(step)
    folder.mkdir(parents=True)
    write_tuned(folder, model, run.config, strength)
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": None} for path in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def expected(run: RunFolder, question: str, limit: int, tuned: bool = True) -> str:
    """The greedy answer by the shortest way there is."""
    partner = open_partner(str(run.path))
    model = partner.model if tuned else load_model(run.model_folder, torch.float32)
    template = ChatTemplate(load_tokenizer(run.model_folder), run.template_source, run.stop_ids)
    ids = template.prompt_ids([Message("system", SYSTEM), Message("user", question)])
    return generate(model, partner.tokenizer, [ids], run.stop_ids, limit)[0].text


def test_questions_from_a_pipe_are_answered_with_the_runs_template_and_system(run: RunFolder) -> None:
    answers, remarks = ask(str(run.path), "--temperature", "0", "--max-new-tokens", "7", lines="Who are you?\n")
    assert "\n".join(answers) == expected(run, "Who are you?", 7)
    assert "(cut at 7 tokens)" in remarks
    other, _ = ask(
        str(run.path), "--temperature", "0", "--max-new-tokens", "7", "--system", "X", lines="Who are you?\n"
    )
    assert other != answers


def test_base_and_tuned_answer_one_after_the_other(run: RunFolder) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "5"]
    answers, _ = ask(str(run.path), *options, "--base", lines="Who are you?\n")
    base, tuned = (expected(run, "Who are you?", 5, tuned=which) for which in (False, True))
    assert base != tuned
    assert "\n".join(answers) == f"base: {base}\ntuned: {tuned}"
    toggled, remarks = ask(str(run.path), *options, lines="/base\nWho are you?\n")
    assert toggled == answers
    assert "answers too" in remarks


def test_after_full_tuning_the_base_is_a_second_model(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "full", model, "full", strength=0.5)
    answers, _ = ask(str(run.path), "--base", "--temperature", "0", "--max-new-tokens", "5", lines="Who are you?\n")
    base, tuned = (expected(run, "Who are you?", 5, tuned=which) for which in (False, True))
    assert base != tuned
    assert "\n".join(answers) == f"base: {base}\ntuned: {tuned}"


def test_commands(run: RunFolder) -> None:
    options = [str(run.path), "--temperature", "0", "--max-new-tokens", "5"]
    once, _ = ask(*options, lines="Who?\n")
    twice, _ = ask(*options, lines="Who?\nWho?\n")
    reset, _ = ask(*options, lines="Who?\n/reset\nWho?\n/exit\nnever asked\n")
    assert reset == once + once
    assert twice != reset  # the second question saw the first
    _, remarks = ask(*options, lines="/system Be brief.\n")
    assert "(system prompt: Be brief.; the dialog is forgotten)" in remarks


def test_same_seed_same_answers(run: RunFolder) -> None:
    options = [str(run.path), "--temperature", "2", "--seed", "3"]
    assert ask(*options, lines="Who?\n") == ask(*options, lines="Who?\n")
    assert ask(*options, lines="Who?\n") != ask(*options[:-1], "4", lines="Who?\n")


def test_a_plain_model_chats_with_its_own_template(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partner = open_partner(str(model))
    assert partner.system is None
    assert partner.template.source == load_tokenizer(model).chat_template
    monkeypatch.setattr(partner_module, "load_model", lambda *_: pytest.fail("loaded before it was refused"))
    with pytest.raises(UsageError, match="no base"):
        ask(str(model), "--base", lines="")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # as Python reads a pipe, and in the C locale
def test_questions_in_another_encoding_are_refused(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], errors: str
) -> None:
    pipe = io.TextIOWrapper(io.BytesIO("你是谁？\n".encode("gbk")), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", pipe)
    with pytest.raises(SystemExit) as left:
        main(["chat", str(run.path)])
    assert left.value.code == 2
    assert "error: the questions from the pipe are not utf-8 text; convert them" in capsys.readouterr().err


def test_checkpoints_are_found_by_number_name_and_path(tmp_path: Path, model: Path) -> None:
    run = tiny_run(tmp_path / "run", model)
    early, late = checkpoint(run, 5, model, 0.1), checkpoint(run, 10, model, 0.2)
    assert weights_folder(run) == (run.path, "end of training")
    for name in ("5", "step-5", str(early)):
        assert weights_folder(run, name) == (early, "step-5")
    with pytest.raises(UsageError, match="checkpoints of this run: 5, 10"):
        weights_folder(run, "7")
    assert open_partner(str(early)).name.endswith("step-5")

    shutil.rmtree(run.adapter_path)
    assert weights_folder(run) == (late, "step-10 (the run is not finished)")
    (late / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    assert weights_folder(run)[0] == early
    with pytest.raises(UsageError, match="damaged"):
        weights_folder(run, "10")
    shutil.rmtree(run.checkpoints_path)
    with pytest.raises(UsageError, match="no weights yet"):
        weights_folder(run)


def test_checkpoint_of_a_model_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="needs a run"):
        open_partner(str(model), "5")


TALK = """
import signal
import sys
from pathlib import Path
from tunewright.chat.partner import open_partner
from tunewright.chat.session import Session
from tunewright.cli.chat import Terminal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with Ctrl-C ignored
partner = open_partner(sys.argv[1])
partner.stop_ids = (10_000,)  # outside the vocabulary: the answer goes on until the context is full
partner.model.config.max_position_embeddings = 20_000  # far beyond what the signal takes to come
partner.sampling = partner.sampling.model_copy(update={"max_new_tokens": 10_000})
session = Session(partner.template, partner.system, partner.context, 100)
terminal = Terminal(partner, session, False, 1)
terminal.interactive = True
terminal._lines = lambda: iter(["Tell me everything.", "/reset"])
terminal.run()
"""


def test_ctrl_c_stops_the_answer_and_not_the_program(run: RunFolder) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TALK, str(run.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the greeting: the model is loaded
    process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "(stopped)" in out
    assert out.rstrip().endswith("(the dialog is forgotten)")
