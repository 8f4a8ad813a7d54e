"""Prove data, template and stop token, and plan memory and time; trains nothing.

    tunewright check RUN.yaml [key=value …] [--json] [--html FILE]
    tunewright check --model smollm2-135m-instruct --data FILE.xlsx
    tunewright check RUN.yaml --row 7 --row rows.jsonl:412

Ends with 1 where the stop proof fails. Looks at the model's tokenizer and config, and never at its weights.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.given import Data, Model, Words, read_given
from tunewright.cli.output import cells, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tunewright.data.account import SourceReport
    from tunewright.data.check import Facts, Fate, Kind, Piece, Shown
    from tunewright.data.explain import Explained
    from tunewright.data.findings.found import Found, Level
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
MARKS: "dict[Level, tuple[str, str]]" = {
    "error": ("✗", "bold red"),
    "warning": ("!", "yellow"),
    "note": ("•", ""),
    "fine": ("✓", "green"),
}


def check(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="N|FILE:LINE", help="Show what becomes of this row, token by token; may be repeated."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as one page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove data, template and stop token, and plan memory and time; trains nothing."""
    from tunewright.cli.imports import heavy_imports
    from tunewright.config.paths import shown
    from tunewright.data.check import gather_facts
    from tunewright.data.encode import prepare
    from tunewright.data.explain import explain_rows
    from tunewright.data.findings.markers import look_at_markers
    from tunewright.data.page import write_page
    from tunewright.models.load import eos_ids, load_tokenizer
    from tunewright.models.resolve import resolve_model

    run = read_given("check", words or [], model, data).config
    folder = resolve_model(run.model, Path.cwd())
    with heavy_imports():
        from tunewright.engine.plan import plan_training
    tokenizer = load_tokenizer(folder.path)
    stated = eos_ids(folder.path, tokenizer)
    rows = explain_rows(run, tokenizer, stated, Path.cwd(), row or [])
    if rows and html is None:
        if as_json:
            print_json([explained.to_dict() for explained in rows])
        else:
            _print_rows(rows)
        return
    prepared = prepare(run, tokenizer, stated, Path.cwd(), require_stop=False)
    known = []
    if prepared.template is not None and run.method.stage != "pt":
        known.append(look_at_markers(prepared.template, tokenizer, folder.path, run.method.tuning == "full"))
    facts = gather_facts(run.method.stage, prepared, tokenizer, stated, known)
    if as_json:
        plan = plan_training(run, folder.path, prepared)
        asked = {"explained": [explained.to_dict() for explained in rows]} if rows else {}
        print_json({**facts.to_dict(), "plan": plan.to_dict(), **asked})
    else:
        _print_facts(facts)
        plan = plan_training(run, folder.path, prepared)  # after the facts: it takes longer, or may not fit
        _print_plan(plan)
        _print_rows(rows)
    if html is not None:
        names = ", ".join(shown(source.path) for source in facts.sources)
        write_page(html, facts, names, folder.name, plan.lines(), rows)
        if not as_json:
            print(f"\nwritten to {html}")
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

    mark = ("✓ ", "bold green") if facts.stop_proof else ("✗ ", "bold red")
    stops = f": {' '.join(facts.stop_tokens)}" if facts.stop_proof else ""
    sections = [
        ("data", Text("\n".join(map(_source, facts.sources)))),
        ("examples", Text(_counts(facts))),
        ("every row", _account(facts.account, facts.rows)),
        ("tokens", Text(_tokens(facts))),
        ("lengths", Text(_lengths(facts))),
        ("first example", _example(facts.first, colored)),
        ("stop proof", Text.assemble(mark, facts.stop_message, stops)),
    ]
    if facts.failing is not None and facts.failing.place != facts.first.place:
        sections.append(("does not stop", _example(facts.failing, colored)))
    looked = [found for found in facts.findings if found.level != "fine"]
    if looked:
        sections.append(("look at", Text("\n").join(map(_found, looked))))
    fine = [f"✓ {found.message}" for found in facts.findings if found.level == "fine"]
    return [*sections, ("fine", Text("\n".join(fine), "dim"))]


def _account(fates: "Sequence[Fate]", rows: int) -> "Text":
    """What became of every row: count, share, first places."""
    from rich.text import Text

    from tunewright.data.account import places
    from tunewright.data.findings.found import percent

    counts = [f"{fate.count:,}" for fate in fates]
    shares = [percent(fate.count, rows) for fate in fates]
    names = [f"of all these, {fate.what}" if fate.counted_above else fate.what for fate in fates]
    widths = [max(map(cells, column)) for column in (counts, shares, names)]
    lines = []
    for fate, count, share, name in zip(fates, counts, shares, names, strict=True):
        padding = " " * (widths[2] - cells(name))
        line = Text(f"{count:>{widths[0]}}  {share:>{widths[1]}}  {name}{padding}  ")
        lines.append(line.append(places(fate), "dim"))
    return Text("\n").join(lines)


def _found(found: "Found") -> "Text":
    """One finding: the sentence, where first, what to do."""
    from rich.text import Text

    from tunewright.data.account import places

    mark, style = MARKS[found.level]
    text = Text.assemble((f"{mark} ", style), (found.message, style))
    if found.first:
        text.append(f"\n  {places(found)}", "dim")
    return text.append(f"\n  {found.advice}") if found.advice else text


def _print_rows(rows: "Sequence[Explained]") -> None:
    from rich.text import Text

    console = _console()
    for row in rows:
        source = "\n".join(f"{name}: {value}" for name, value in row.row.items())
        fate = Text(f"✓ {row.fate}", "green") if row.reason is None else Text(f"✗ {row.fate}", "red")
        sections = [(f"row {row.number:,}", Text(str(row.place))), ("source", Text(source)), ("becomes", fate)]
        sections += [("tokens", _example(sequence, console.is_terminal)) for sequence in row.shown]
        _print_sections(console, sections)


def _source(source: "SourceReport") -> str:
    from tunewright.config.paths import shown

    columns = ", ".join(f"{part} = {name}" for part, name in source.columns.items())
    guessed = " (guessed)" if source.guessed else ""
    ignored = f"; not read: {', '.join(source.unread)}" if source.ignored else ""
    return f"{shown(source.path)}  {source.rows:,} rows, {source.format}: {columns}{guessed}{ignored}"


def _counts(facts: "Facts") -> str:
    unit = "windows for " if facts.stage == "pt" else "for "
    sides = f"{facts.train:,} {unit}training, {facts.validation:,} {unit}validation"
    return f"{facts.examples:,} of {facts.rows:,} rows; {sides}"


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
