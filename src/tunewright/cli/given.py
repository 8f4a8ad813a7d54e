"""The config that a command line gives: RUN.yaml or a recipe, or a model and data alone, with settings to change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.errors import UsageError

if TYPE_CHECKING:
    from tunewright.config.load import ReadConfig

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN.yaml] [key=value …]", help="A config or recipe, and settings to change in it."),
]
Model = Annotated[str | None, typer.Option("--model", help="Model to start from, instead of the config's.")]
Data = Annotated[
    list[str] | None, typer.Option("--data", help="Training file, instead of the config's; may be repeated.")
]

BUILTIN = "smollm2-135m-instruct"


def read_given(
    verb: str,
    words: Sequence[str],
    model: str | None,
    data: Sequence[str] | None,
    flags: Mapping[str, str | None] | None = None,
) -> "ReadConfig":
    """The config of `[RUN.yaml] [key=value …]` with `--model`, `--data` and further flags, by their keys, over it.

    Raises UsageError where neither a config nor both a model and data are given, and for data given as the config.
    """
    from tunewright.config.load import read_config
    from tunewright.config.overrides import as_override, split_arguments

    path, overrides = split_arguments(words)
    if path is None and (model is None or not data):
        raise UsageError(
            f"{verb} needs a config (tunewright {verb} RUN.yaml), or a model and data "
            f"(tunewright {verb} --model {BUILTIN} --data FILE.xlsx)"
        )
    if path is not None and _is_data(path):
        raise UsageError(
            f"{path} holds data and is no config; name it as such, with a model: "
            f"tunewright {verb} --model {model or BUILTIN} --data {path}"
        )
    given = {"model": model, "data.train": data, **(flags or {})}
    return read_config(path, [*(as_override(key, value) for key, value in given.items() if value), *overrides])


def _is_data(path: Path) -> bool:
    """Whether a file is one of rows, by its name; a .json file, which may be a config, by how it begins."""
    from tunewright.data.kinds import kind_of

    if kind_of(path.name) is None or not path.is_file():
        return False
    if path.suffix.lower() != ".json":
        return True
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
