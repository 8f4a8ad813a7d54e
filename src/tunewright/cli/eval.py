"""Measure a run, base against tuned, or a plain model on your data.

    tunewright eval RUN [--checkpoint N] [--data FILE] [key=value …] [--json]
    tunewright eval MODEL --data FILE [key=value …] [--json]

A run is measured on what it held out, and its report is written anew; how it is measured may be set (`MEASURING`), what
it held out may not; nor can, of a plain model, what bears on training alone. With --checkpoint or --data, and for a run
that is not finished, the numbers are only printed: the report is that of the finished run on its own data.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli.output import print_json, print_table
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from tunewright.config.schema import RunConfig
    from tunewright.data.encode import Prepared
    from tunewright.evaluate.evaluation import Material
    from tunewright.evaluate.report import Report
    from tunewright.runs.folder import RunFolder

# What can be set: how a model is measured, how a file named with --data is read, and what a run knows of its model.
MEASURING = ("evaluate.prompts", "evaluate.max_new_tokens", "model.dtype", "train.forest_tokens")
SHOWN = ("samples.prompts",)
READING = (
    *("data.train.format", "data.train.kind", "data.train.columns.", "data.train.tags.", "data.train.guess"),
    *("data.train.sheet", "data.train.encoding", "data.train.delimiter", "data.train.max_samples"),
    *("data.system", "data.max_length", "data.too_long", "data.drop_bad_rows"),
)
OF_THE_MODEL = ("model.source", "model.revision", "method.stage", "data.template", "data.reasoning")
# What the run says about its own file that holds for another of the same kind, too.
LIKE = {"format", "kind", "columns", "tags", "guess", "sheet", "encoding", "delimiter"}


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or any model with --data.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value …]", help="Settings to change, as evaluate.prompts=64.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="N", help="Measure the checkpoint of step N instead of the final model.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Measure on this file instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Loss, perplexity, stop and loop rate, base against tuned."""
    from tunewright.runs.folder import RunFolder
    from tunewright.runs.names import is_run

    if is_run(Path(target)):
        report = _evaluate_run(RunFolder.open(Path(target)), overrides or [], checkpoint, data)
    elif data is None:
        raise UsageError(f"{target} is not a run; to measure a plain model, name the data: --data FILE")
    elif checkpoint is not None:
        raise UsageError(f"{target} is not a run, so it has no checkpoints; leave --checkpoint out")
    else:
        report = _evaluate_plain(target, overrides or [], data)
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _evaluate_run(run: "RunFolder", overrides: list[str], checkpoint: str | None, data: Path | None) -> "Report":
    from tunewright.chat.partner import load_tuned, weights_folder
    from tunewright.data.encode import prepare
    from tunewright.evaluate.report import build_report
    from tunewright.evaluate.run import (
        data_facts,
        evaluate_both,
        evaluate_run,
        require_same_data,
        run_facts,
    )
    from tunewright.models.dtype import dtype_of
    from tunewright.models.load import load_tokenizer, on_device

    weights, which = weights_folder(run, checkpoint)
    config = _config_of(run, overrides, data)
    if run.template_source is not None:
        config.data.template = str(run.template_path.absolute())
    tokenizer = load_tokenizer(run.model_folder)
    prepared = prepare(config, tokenizer, run.stop_ids, Path.cwd())
    if data is None:
        require_same_data(run, prepared.loaded.sha256)
    _say(f"{run.path}: {which}")
    model = on_device(load_tuned(run, weights, dtype_of(config.model.dtype)))
    if data is None and weights == run.path:
        return evaluate_run(run, model, tokenizer, prepared, config=config, say=_say)
    material = _material(config, tokenizer, prepared, all_of_it=data is not None)
    base, tuned = evaluate_both(run, model, tokenizer, material, say=_say)
    # the loss curve belongs to the finished run, not to this measurement
    return build_report(material, base, tuned, run=run_facts(run), data=data_facts(prepared), metrics=[])


def _evaluate_plain(name: str, overrides: list[str], data: Path) -> "Report":
    from tunewright.config.load import load_config
    from tunewright.data.encode import prepare
    from tunewright.evaluate.evaluation import evaluate_model
    from tunewright.evaluate.report import summary_line
    from tunewright.models.dtype import dtype_of
    from tunewright.models.load import eos_ids, load_model, load_tokenizer, on_device
    from tunewright.models.resolve import resolve_model

    # nothing was trained on: all of it is measured
    given = {"model": name, "data": {"train": _absolute(data), "validation": None}}
    config = load_config(None, overrides, given)
    allowed = (*MEASURING, *READING, *OF_THE_MODEL)
    _require_settable(load_config(None, [], given), config, allowed, f"{name} is measured on {data} and not trained")
    folder = resolve_model(config.model, Path.cwd())
    tokenizer = load_tokenizer(folder.path)
    prepared = prepare(config, tokenizer, eos_ids(folder.path, tokenizer), Path.cwd())
    model = on_device(load_model(folder.path, dtype_of(config.model.dtype)))
    material = _material(config, tokenizer, prepared, all_of_it=True)
    numbers = evaluate_model(model, tokenizer, material).as_json()
    return {"base": numbers, "summary": summary_line(numbers), "warnings": []}


def _config_of(run: "RunFolder", overrides: list[str], data: Path | None) -> "RunConfig":
    """The run's config, measured as the overrides say, with all its data replaced by the file `data` if there is one.

    Raises UsageError for a setting that would change which rows count as held out, or nothing at all.
    """
    from tunewright.config.load import load_config

    given = [] if data is None else _replace_data(run.config, data)
    config = load_config(run.config_path, [*given, *overrides])
    allowed = (*MEASURING, *SHOWN) if data is None else (*MEASURING, *SHOWN, *READING)
    other = "; for other data, name it with --data FILE" if data is None else ""
    before = load_config(run.config_path, given)
    _require_settable(before, config, allowed, f"{run.path} is measured as it was trained", other)
    return config


def _require_settable(
    before: "RunConfig", after: "RunConfig", allowed: Sequence[str], why: str, advice: str = ""
) -> None:
    """Raise UsageError for a setting that differs and is none of `allowed` (with a point at the end: a section)."""
    from tunewright.evaluate.comparison import flatten

    old, new = (flatten(one.model_dump()) for one in (before, after))
    for key in {**old, **new}:
        settable = any(key.startswith(name) if name.endswith(".") else key == name for name in allowed)
        if old.get(key) != new.get(key) and not settable:
            known = ", ".join(f"{name}*" if name.endswith(".") else name for name in allowed)
            raise UsageError(f"{key}: {why}, and only {known} can be set{advice}")


def _replace_data(config: "RunConfig", data: Path) -> list[str]:
    """Overrides that put one file in the place of all data, nothing of it held out."""
    from tunewright.config.overrides import as_override

    same_kind = [source for source in config.data.train[:1] if Path(source.path).suffix == data.suffix]
    like = same_kind[0].model_dump(include=LIKE) if same_kind else {}
    values = {"train": [{**like, "path": _absolute(data)}], "validation": None, "registry": None, "use": []}
    return [as_override(f"data.{key}", value) for key, value in values.items()]


def _absolute(data: Path) -> str:
    if not data.is_file():
        raise UsageError(f"--data: there is no file {data}")
    return str(data.absolute())


def _material(config: "RunConfig", tokenizer: Any, prepared: "Prepared", all_of_it: bool) -> "Material":
    from tunewright.evaluate.evaluation import gather_material

    sequences = prepared.train if all_of_it else prepared.validation
    examples = prepared.train_examples if all_of_it else prepared.validation_examples
    return gather_material(
        config, tokenizer, prepared.template, prepared.stop_ids, sequences, examples, prepared.train_examples
    )


def _print_report(report: "Report") -> None:
    from tunewright.evaluate.report import table_rows

    tuned = report.get("tuned")
    head = ("", "base", "tuned", "change") if tuned else ("", "model", "", "")
    first, *rest = _aligned([head, *(row[:4] for row in table_rows(report["base"], tuned))])
    print_table(first, rest)
    print(f"\n{report['summary']}")
    for warning in report["warnings"]:
        print(f"warning: {warning}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Numbers and their heads to the right within their column; a column with nothing in it stays empty."""
    widths = [0, *(max(len(row[column]) for row in rows[1:]) for column in (1, 2, 3))]
    return [[text.rjust(width) if width else text for text, width in zip(row, widths, strict=True)] for row in rows]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
