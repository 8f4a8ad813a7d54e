"""Run the command line in this process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tunewright.cli.app import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def tunewright(capsys: pytest.CaptureFixture[str]) -> Command:
    """`tunewright("ls", "--json")` gives exit code, standard output and standard error."""

    def run(*words: str) -> Result:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        out, err = capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return run
