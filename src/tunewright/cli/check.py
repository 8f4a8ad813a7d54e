"""Prove data, template and stop token, and plan memory and time; trains nothing.

    tunewright check RUN.yaml [key=value …] [--json]

Ends with 1 where the stop proof fails. Looks at the model's tokenizer and config, and never at its weights.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.output import print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tunewright.data.account import SourceReport
    from tunewright.data.check import Facts, Kind, Piece, Shown
    from tunewright.engine.plan import Plan

# Neighbouring tokens take turns between two shades, so that their borders show.
SHADES: "dict[Kind, tuple[str, str]]" = {
    "masked": ("grey62", "grey46"),
    "trained": ("green3", "green4"),
    "stop": ("bold red", "bold red"),
}
BRACKETS: "dict[Kind, tuple[str, str]]" = {"masked": ("[", "]"), "trained": ("⟨", "⟩"), "stop": ("⟪", "⟫")}
LEGEND: "dict[Kind, str]" = {"masked": "read only", "trained": "trained", "stop": "trained stop token"}
BEGINNING, END = 240, 120  # tokens shown of a sequence that is longer than both
BARS = "▁▂▃▄▅▆▇█"
LABEL_WIDTH = 14


def check(
    config: Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run's config, or a recipe's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Settings to change, such as data.max_length=512.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove data, template and stop token, and plan memory and time; trains nothing."""
    from tunewright.config.load import load_config
    from tunewright.data.check import gather_facts
    from tunewright.data.encode import prepare
    from tunewright.engine.plan import plan_training
    from tunewright.models.load import eos_ids, load_tokenizer
    from tunewright.models.resolve import resolve_model

    run = load_config(Path(config), overrides or [])
    model = resolve_model(run.model, Path.cwd())
    tokenizer = load_tokenizer(model.path)
    prepared = prepare(run, tokenizer, eos_ids(model.path, tokenizer), Path.cwd(), require_stop=False)
    facts = gather_facts(run.method.stage, prepared, tokenizer)
    if as_json:
        print_json({**facts.to_dict(), "plan": plan_training(run, model.path, prepared).to_dict()})
    else:
        _print_facts(facts)
        _print_plan(plan_training(run, model.path, prepared))  # after the facts: it takes longer, or may not fit
    if not facts.stop_proof:
        raise typer.Exit(1)


def _print_facts(facts: "Facts") -> None:
    console = _console()
    _print_sections(console, _sections(facts, colored=console.is_terminal))


def _print_plan(plan: "Plan") -> None:
    from rich.text import Text

    _print_sections(_console(), [("plan", Text("\n".join(plan.lines())))])


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _print_sections(console: "Console", sections: "Sequence[tuple[str, Text]]") -> None:
    """Two columns, label and content: colours and wrapping in a terminal, plain lines elsewhere."""
    from rich.table import Table

    if not console.is_terminal:
        for label, content in sections:
            for i, line in enumerate(content.plain.split("\n")):
                print(f"{label if i == 0 else '':<{LABEL_WIDTH}}{line}".rstrip())
        return
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=LABEL_WIDTH - 1, style="bold cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, content in sections:
        grid.add_row(label, content)
    console.print(grid)


def _sections(facts: "Facts", colored: bool) -> "list[tuple[str, Text]]":
    from rich.text import Text

    from tunewright.data.account import places

    left_out = [f"{item.count:,} × {item.reason}: {places(item)}" for item in facts.dropped]
    mark = ("✓ ", "bold green") if facts.stop_proof else ("✗ ", "bold red")
    stops = f": {' '.join(facts.stop_tokens)}" if facts.stop_proof else ""
    sections = [
        ("data", Text("\n".join(map(_source, facts.sources)))),
        ("examples", Text(_counts(facts))),
        ("left out", Text("\n".join(left_out) or "nothing")),
        ("tokens", Text(_tokens(facts))),
        ("lengths", Text(_lengths(facts))),
        ("first example", _example(facts.first, colored)),
        ("stop proof", Text.assemble(mark, facts.stop_message, stops)),
    ]
    if facts.failing is not None and facts.failing.place != facts.first.place:
        sections.append(("does not stop", _example(facts.failing, colored)))
    if facts.warnings:
        sections.append(("look at", Text("\n".join(f"• {warning}" for warning in facts.warnings), "yellow")))
    return sections


def _source(source: "SourceReport") -> str:
    columns = ", ".join(f"{part} = {name}" for part, name in source.columns.items())
    guessed = " (guessed)" if source.guessed else ""
    ignored = f"; not read: {', '.join(source.ignored)}" if source.ignored else ""
    return f"{source.path}  {source.rows:,} rows, {source.format}: {columns}{guessed}{ignored}"


def _counts(facts: "Facts") -> str:
    unit = "windows for " if facts.stage == "pt" else "for "
    parts = [
        f"{facts.examples:,} of {facts.rows:,} rows",
        f"{facts.train:,} {unit}training, {facts.validation:,} {unit}validation",
    ]
    if facts.cut_documents:
        parts.append(f"{facts.cut_documents:,} long documents are cut into windows")
    if facts.duplicates:
        parts.append(f"{facts.duplicates:,} equal an earlier one")
    return "; ".join(parts)


def _tokens(facts: "Facts") -> str:
    share = facts.supervised_tokens / facts.tokens
    return f"{facts.tokens:,}, of which {facts.supervised_tokens:,} are trained ({share:.1%})"


def _lengths(facts: "Facts") -> str:
    lengths = facts.lengths
    tallest = max(lengths.histogram)
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // tallest)] if count else " " for count in lengths.histogram)
    numbers = f"median {lengths.median:,}, 95 % up to {lengths.p95:,}, 99 % up to {lengths.p99:,}"
    return f"{lengths.min:,} |{bars}| {lengths.max:,} tokens; {numbers}"


def _example(example: "Shown", colored: bool) -> "Text":
    """Place and legend, then the sequence; the middle of a long one is left out."""
    from rich.text import Text

    from tunewright.data.check import Piece

    legend = [_paint([Piece(meaning, kind)], colored) for kind, meaning in LEGEND.items()]
    head = Text.assemble((f"{example.place}   ", "dim"), Text("  " if colored else "").join(legend), "\n")
    pieces = example.pieces
    if len(pieces) <= BEGINNING + END:
        return head + _paint(pieces, colored)
    cut = Text(f"\n… {len(pieces) - BEGINNING - END:,} more tokens …\n", "italic")
    return head + _paint(pieces[:BEGINNING], colored) + cut + _paint(pieces[-END:], colored)


def _paint(pieces: "Sequence[Piece]", colored: bool) -> "Text":
    """Coloured tokens, or marks around stretches of one kind; line ends show as ⏎."""
    from rich.text import Text

    text = Text()
    line_end = ""
    for kind, stretch in groupby(pieces, key=lambda piece: piece.kind):
        opening, closing = ("", "") if colored else BRACKETS[kind]
        text.append(line_end + opening)
        line_end = ""
        for i, piece in enumerate(stretch):
            shown = line_end + piece.text.replace("\r", "␍").replace("\n", "⏎\n")
            line_end = "\n" if shown.endswith("⏎\n") else ""
            text.append(shown.removesuffix(line_end), SHADES[kind][i % 2])
        text.append(closing)
    return text
