"""Fine-tune a model on your data.

    tunewright train RUN.yaml [key=value …]
    tunewright train --model smollm2-135m-instruct --data FILE.xlsx [--output DIR] [key=value …]

Ctrl-C writes a checkpoint and ends with 130; `tunewright resume DIR` goes on from it.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.cli.given import Data, Model, Words, read_given

if TYPE_CHECKING:
    from tunewright.cli.progress import Progress
    from tunewright.engine.start import Ready
    from tunewright.runs.folder import RunFolder


def train(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    output: Annotated[str | None, typer.Option("--output", help="Run folder to make.")] = None,
) -> None:
    """Fine-tune a model on your data."""
    from tunewright.cli.imports import heavy_imports
    from tunewright.cli.progress import Progress
    from tunewright.config.load import non_defaults

    read = read_given("train", words or [], model, data, {"output": output})
    with heavy_imports():  # after the config: its mistakes are told at once
        from tunewright.engine.processes import Processes
        from tunewright.engine.start import make_ready, start
    with Progress(shown=Processes().is_main) as progress:
        for setting in non_defaults(read):
            progress.say(f"  {setting}")
        ready = make_ready(read.config, Path.cwd())
        show_ready(ready, progress)
        run = start(ready, shlex.join(["tunewright", *sys.argv[1:]]), progress)
        show_end(run, progress)


def show_ready(ready: "Ready", progress: "Progress") -> None:
    """What was found in the data and what is planned."""
    from tunewright.config.paths import shown
    from tunewright.data.account import places
    from tunewright.data.findings.answers import look_at_ranks
    from tunewright.data.findings.found import are, count_of

    for source in ready.prepared.loaded.sources:
        columns = ", ".join(f"{part} = {column}" for part, column in source.columns.items())
        form = f"{source.format}: {columns}" if columns else source.format
        found = " (guessed)" if source.guessed else ""
        progress.say(f"data {shown(source.path)}: {source.rows:,} rows, {form}{found}")
    for dropped in ready.prepared.dropped:
        progress.say(f"  left out {dropped.count:,}: {dropped.reason} ({places(dropped)})")
    cut, overlap = ready.prepared.cut, ready.prepared.loaded.overlap
    if cut.count:
        progress.say(f"  {cut.count:,} {cut.reason} ({places(cut)})")
    if overlap.count:
        progress.say(
            f"  ! {count_of(overlap.count, 'validation row')} {are(overlap.count)} trained on too ({places(overlap)}), "
            "so validation will look better than the model is: hold out a file of other rows"
        )
    for ranked in look_at_ranks(ready.prepared.loaded, ready.config.method.stage):
        progress.say(f"  {ranked.message}; {ranked.advice}")
    train, validation = ready.prepared.train, ready.prepared.validation
    counts = f"to train on with {train.supervised_tokens:,} trained tokens, {len(validation):,} held out"
    if ready.config.method.stage == "pt":
        progress.say(f"  {len(train):,} windows of the documents {counts}")
    else:
        progress.say(f"  {len(train):,} examples {counts}; every answer ends with a stop token")
    progress.say("plan")
    for line in ready.plan.lines():
        progress.say(f"  {line}")


def show_end(run: "RunFolder", progress: "Progress") -> None:
    """The report's line, and what to do next."""
    import json

    if run.report_json.exists():
        report = json.loads(run.report_json.read_text(encoding="utf-8"))
        before, after = report["base"].get("validation_loss"), report["tuned"].get("validation_loss")
        losses = f"validation loss {before:.3f} → {after:.3f}; " if before is not None and after is not None else ""
        progress.say(f"report {run.report_md}: {losses}{report['summary']}")
        for warning in report["warnings"]:
            progress.say(f"  note: {warning}")
    show_commands(run, progress)


def show_commands(run: "RunFolder", progress: "Progress") -> None:
    """What to try now."""
    progress.say("next")
    for command in (
        f"tunewright chat {shlex.quote(str(run.path))}",
        f"tunewright eval {shlex.quote(str(run.path))}",
        f"tunewright export {shlex.quote(str(run.path))} {shlex.quote(str(run.path))}-merged",
    ):
        progress.say(f"  {command}")
