"""What `tunewright check` says as one self-contained HTML page: no script, no font, nothing fetched.

tunewright check RUN.yaml --html FILE
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from tunewright.data.account import places
from tunewright.data.check import Facts, Kind, Lengths, Piece, Shown
from tunewright.data.explain import Explained
from tunewright.data.findings.found import percent
from tunewright.errors import UsageError

_MOST_PIECES = 1200  # tokens shown of one sequence
_KINDS: dict[Kind, str] = {"masked": "read only", "trained": "trained", "stop": "trained stop token"}
_LEVELS = {"error": "Error", "warning": "Look at this", "note": "Worth knowing", "fine": "Fine"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of the length histogram; `height` in percent of the tallest."""

    low: int
    high: int
    count: int
    height: float


def write_page(
    path: Path, facts: Facts, title: str, model: str, plan: Sequence[str] = (), rows: Sequence[Explained] = ()
) -> None:
    """Write the page aside, then rename it. Raises UsageError where the folder cannot be written to."""
    aside = path.with_name(path.name + ".new")
    try:
        aside.write_text(render_page(facts, title, model, plan, rows), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise UsageError(f"--html {path}: cannot be written ({error.strerror})") from error


def render_page(facts: Facts, title: str, model: str, plan: Sequence[str] = (), rows: Sequence[Explained] = ()) -> str:
    """The page; `plan` are its lines, `rows` what was asked for with --row."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["clip"] = _clip
    source = files("tunewright.data").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        facts=facts,
        title=title,
        model=model,
        plan=plan,
        rows=rows,
        bars=_bars(facts.lengths),
        share=percent(facts.supervised_tokens, facts.tokens),
        percent=percent,
        places=places,
        kinds=_KINDS,
        levels=_LEVELS,
        findings=[found for found in facts.findings if found.level != "fine"],
        fine=[found for found in facts.findings if found.level == "fine"],
        sequences=_sequences(facts),
        lines=_lines,
    )


def _sequences(facts: Facts) -> list[tuple[str, Shown]]:
    shown = [("First training example", facts.first)]
    if facts.failing is not None:
        shown.insert(0, ("First answer that does not stop", facts.failing))
    return shown


def _bars(lengths: Lengths) -> list[Bar]:
    tallest = max(lengths.histogram)
    width = (lengths.max - lengths.min) / len(lengths.histogram)
    return [
        Bar(
            round(lengths.min + index * width),
            round(lengths.min + (index + 1) * width),
            count,
            max(2.0, 100 * count / tallest) if count else 0.0,
        )
        for index, count in enumerate(lengths.histogram)
    ]


def _clip(pieces: Sequence[Piece]) -> Sequence[Piece]:
    return pieces[:_MOST_PIECES]


def _lines(piece: Piece) -> list[str]:
    """The text of a token, cut behind each line end, which shows as ⏎."""
    return [part.replace("\r", "␍").replace("\n", "⏎\n") for part in piece.text.splitlines(keepends=True)]
