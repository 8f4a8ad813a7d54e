"""The command line as a whole: help that imports nothing, exit codes, errors without tracebacks."""

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunewright.cli import app
from tunewright.errors import Interrupted, RunError, UsageError

HEAVY = {"torch", "transformers", "peft", "accelerate", "numpy", "pydantic", "rich", "typer", "ruamel", "matplotlib"}


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tunewright", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "tunewright" in imported
    assert not imported & HEAVY
    assert "Usage: tunewright VERB" in done.stdout


def test_help_lists_each_verb(tunewright) -> None:
    done = tunewright("--help")
    assert done.code == 0
    for name, verb in app.VERBS.items():
        assert f"  {name} " in done.out
        assert verb.help in done.out


@pytest.mark.parametrize("name", app.VERBS)
def test_each_verb_explains_itself(tunewright, name: str) -> None:
    done = tunewright(name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: tunewright {name} ")
    verb = app.VERBS[name]
    module = import_module(f"tunewright.cli.{verb.module}")
    assert f"tunewright {name}" in (module.__doc__ or ""), "a verb's module opens with the line that runs it"


def test_nothing_said_is_a_usage_error_with_help(tunewright) -> None:
    done = tunewright()
    assert (done.code, done.out.split("\n")[0]) == (2, "Usage: tunewright VERB …")


def test_version(tunewright) -> None:
    from tunewright import __version__

    assert tunewright("--version").out == f"tunewright {__version__}\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shwo", "error: there is no verb 'shwo'; did you mean 'tunewright show'?\n"),
        ("zzzzz", "error: there is no verb 'zzzzz'; 'tunewright --help' lists the verbs\n"),
    ],
)
def test_unknown_verb(tunewright, word: str, message: str) -> None:
    assert tunewright(word) == (2, "", message)


def test_usage_mistakes_of_a_verb_exit_with_2(tunewright) -> None:
    done = tunewright("ls", "--jsno")
    assert done.code == 2
    assert "No such option: --jsno" in done.err
    assert tunewright("cp").code == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("wrong config"), 2, "error: wrong config\n"),
        (RunError("loss is not finite"), 1, "error: loss is not finite\n"),
        (Interrupted("checkpoint written"), 130, "checkpoint written\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_for_users(tunewright, monkeypatch, error: BaseException, code: int, message: str) -> None:
    monkeypatch.setattr(app, "import_module", lambda name: SimpleNamespace(ls=_raiser(error)))
    assert tunewright("ls") == (code, "", message)


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(app, "import_module", lambda name: SimpleNamespace(ls=_raiser(ZeroDivisionError("a bug"))))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        app.main(["ls"])


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tunewright", "show", "smollm2-135m-instruct/lora-persona"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
    process.stderr.close()


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
