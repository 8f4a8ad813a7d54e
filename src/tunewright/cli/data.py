"""Make data files out of data files.

    tunewright data join QUESTIONS ANSWERS --on COLUMN --prompt COLUMN --response COLUMN [--max N] -o OUT.jsonl
    tunewright data convert IN OUT.jsonl --to FORM

How an input is read can be said as in a config: that of `convert` is `data.train`, the two inputs of `join` are
`data.train.0` and `data.train.1`, as in `data.train.0.encoding=big5`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunewright.config.schema import SourceConfig
    from tunewright.data.examples import Place
    from tunewright.data.join import Account

data = typer.Typer(help="Make data files out of data files.", no_args_is_help=True)

# What says how a file is read, whatever its rows are.
READING = ("source", "subset", "split", "folder", "revision", "sheet", "encoding", "delimiter", "max_samples")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="How to read an input: data.train.0.encoding=big5.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]


@data.command()
def join(
    questions: Annotated[str, typer.Argument(metavar="QUESTIONS", help="Table that holds the questions.")],
    answers: Annotated[str, typer.Argument(metavar="ANSWERS", help="Table that holds the answers.")],
    output: Output,
    on: Annotated[str, typer.Option(help="Column that both share; LEFT=RIGHT where its names differ.")],
    prompt: Annotated[str, typer.Option(help="Column with the question.")],
    response: Annotated[str, typer.Option(help="Column with the answer.")],
    overrides: Overrides = None,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Draw this many pairs by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which pairs are drawn.")] = 42,
    force: Force = False,
) -> None:
    """Join a table of questions and a table of answers into one file to train on."""
    from tunewright.data.join import Table, join_tables

    sides = _sources([questions, answers], overrides, READING)
    left, _, right = on.partition("=")
    account = join_tables(
        Table(sides[0], "data.train.0", left, prompt),
        Table(sides[1], "data.train.1", right or left, response),
        output,
        most=most,
        seed=seed,
        replace=force,
    )
    _print_account(account, [questions, answers], output)


@data.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder or pattern to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File to write.")],
    to: Annotated[str, typer.Option(metavar="FORM", help="Form of the new rows; see tunewright ls formats.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="How to read: data.train.columns.prompt=ask.")
    ] = None,
    force: Force = False,
) -> None:
    """Write the rows of a file in another form: every example exactly, or nothing."""
    from tunewright.data.convert import convert_rows

    (given,) = _sources([source], overrides, (*READING, "format", "kind", "columns", "tags", "guess"))
    converted = convert_rows(given, output, to, replace=force)
    for report in converted.reports:
        columns = ", ".join(f"{part} = {name}" for part, name in report.columns.items())
        guessed = " (guessed)" if report.guessed else ""
        print(f"{report.path}: {report.rows:,} rows, {report.format}: {columns}{guessed}")
    for what, count, first in converted.lost():
        print(f"  not carried over: {what}, {'once' if count == 1 else f'{count:,} times'}, first {first}")
    print(f"{output}: {converted.rows:,} rows, {to}")


def _sources(paths: list[str], overrides: list[str] | None, known: Sequence[str]) -> "list[SourceConfig]":
    """What is to be read; of `overrides` only those of the `known` settings of a source mean something."""
    from tunewright.config.load import load_config
    from tunewright.errors import UsageError

    for override in overrides or []:
        key = override.partition("=")[0].strip()
        setting = re.fullmatch(r"data\.train\.(?:\d+\.)?(\w+)(\..*)?", key)
        if setting is None or setting[1] not in known:
            where = "data.train" if len(paths) == 1 else "data.train.0 or data.train.1"
            raise UsageError(f"{key} has no meaning here: remove it; what {where} can have is {', '.join(known)}")
    given = {"model": "none", "data": paths}
    return load_config(None, overrides or [], given).data.train


def _print_account(account: "Account", paths: list[str], output: Path) -> None:
    others = ("answer", "question")
    for side, path in enumerate(paths):
        print(f"{path}: {account.rows[side]:,} rows")
        _print_left_out(account.single[side], f"without {others[side]}", account.first_single[side])
        _print_left_out(account.empty[side], "without key or text", account.first_empty[side])
    drawn = "" if account.written == account.pairs else f" of {account.pairs:,}"
    print(f"{output}: {account.written:,}{drawn} pairs. Next: tunewright train --data {output} --model …")


def _print_left_out(count: int, what: str, first: "Place | None") -> None:
    if count:
        print(f"  {count:,} {what}, first {first}")
