"""The report of a run: `report.json` for programs, `report.md` for a stranger, both from one dictionary.

Base and tuned were measured on the same questions; what looks wrong is said in words at the top.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tunewright.evaluate.evaluation import Evaluation, Material
from tunewright.files import write_atomic
from tunewright.units import duration, gib

if TYPE_CHECKING:
    from tunewright.models.generate import Answer

Report = dict[str, Any]

SHOWN_ANSWERS = 6  # questions in report.md; report.json has all
SHOWN_CHARACTERS = 400
RECENT_STEPS = (
    10  # training loss is noisy: what is said of it is the mean of so many steps, or a quarter of a short run
)

TUNINGS = {"lora": "LoRA", "full": "full tuning"}

# key, name, format and meaning of each number in the tables
MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    ("validation_loss", "validation loss", ".3f", "mean surprise per held-out answer token, in nats; lower is better"),
    ("perplexity", "perplexity", ".2f", "the same as a number of equally likely tokens to choose from"),
    ("bits_per_byte", "bits per byte", ".3f", "the same per byte of text, comparable across tokenizers"),
    ("stop_probability_median", "P(stop)", ".2g", "probability of stopping where the reference answer ends (median)"),
    ("stop_rate", "stop rate", ".1%", "share of generated answers that end by themselves; the rest was cut by length"),
    ("loop_rate", "loop rate", ".1%", "share of answers that end in one block repeated over and over"),
    ("seq_rep_4_mean", "seq-rep-4", ".3f", "share of four-token runs an answer says again (mean)"),
    ("distinct_2", "distinct-2", ".3f", "share of different token pairs over equal amounts of text: variety"),
    ("reply_tokens.p50", "answer length", ".0f", "median answer in tokens"),
)  # fmt: skip


def build_report(
    material: Material,
    base: Evaluation,
    tuned: Evaluation,
    *,
    run: Mapping[str, Any],
    data: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> Report:
    """Everything the report says, as plain data.

    `run` has name, path, model, stage, tuning, settings (a dict), checkpoints (their steps); `data` has sources, rows,
    examples, validation_examples, tokens, supervised_tokens; `metrics` are the records of metrics.jsonl.
    """
    training = summarise_training(metrics)
    report: Report = {
        "base": base.as_json(),
        "tuned": tuned.as_json(),
        "summary": summary_line(tuned.as_json()),
        "warnings": [],
        "run": dict(run),
        "data": dict(data),
        "training": training,
        "answers": _side_by_side(material, base, tuned),
    }
    report["warnings"] = find_warnings(report, metrics, material)
    return report


def write_report(report: Report, json_path: Path, markdown_path: Path) -> None:
    """Write both files; JSON has no infinity, so an overflown perplexity is null there."""
    write_atomic(json_path, orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    write_atomic(markdown_path, render_markdown(report).encode())


def summarise_training(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, time, speed, memory and losses of a run from its metrics.jsonl; empty for a run without steps."""
    steps = [record for record in metrics if record.get("loss") is not None]
    if not steps:
        return {}
    validation = [record["validation_loss"] for record in metrics if record.get("validation_loss") is not None]
    seconds = sum(record["step_seconds"] for record in steps)
    span = min(RECENT_STEPS, max(1, len(steps) // 4))  # single steps are noisy
    return {
        "steps": steps[-1]["step"],
        "epochs": steps[-1]["epoch"],
        "seconds": seconds,
        "samples_per_second": sum(record["samples"] for record in steps) / seconds,
        "tokens_per_second": sum(record["tokens"] for record in steps) / seconds,
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in steps),
        "first_loss": float(np.mean([record["loss"] for record in steps[:span]])),
        "last_loss": float(np.mean([record["loss"] for record in steps[-span:]])),
        "last_validation_loss": validation[-1] if validation else None,
        "best_validation_loss": min(validation, default=None),
    }


def summary_line(numbers: Mapping[str, Any]) -> str:
    """For example "stops 31/32, loops 0/32"."""
    if "stops" not in numbers:
        return "no answers generated: raw text has no questions"
    return f"stops {numbers['stops']}/{numbers['prompts']}, loops {numbers['loops']}/{numbers['prompts']}"


def find_warnings(report: Report, metrics: Sequence[Mapping[str, Any]], material: Material) -> list[str]:
    """What a person should look at before trusting the model, in words."""
    base, tuned, training = report["base"], report["tuned"], report["training"]
    found = []
    if tuned.get("stop_rate", 1.0) < 0.9:
        cut = tuned["prompts"] - tuned["stops"]
        found.append(
            f"{cut} of {tuned['prompts']} answers did not stop by themselves within {tuned['max_new_tokens']} tokens. "
            "Train longer, or look at the stop token with `tunewright check`."
        )
    if tuned.get("loop_rate", 0.0) > 0.05:
        found.append(
            f"{tuned['loops']} of {tuned['prompts']} answers end repeating themselves. "
            f"{_cause_of_loops(tuned['loops'], base['loops'], training.get('steps', 50))}"
        )
    if (rise := validation_rise(metrics)) is not None:
        found.append(
            f"Validation loss rose from {rise.best:.3f} (step {rise.best_step}) to {rise.last:.3f} (step "
            f"{rise.last_step}) while training loss fell: the model memorises. "
            f"{_way_back(rise, report['run']['checkpoints'])}"
        )
    if "validation_loss" in tuned and tuned["validation_loss"] >= base["validation_loss"]:
        found.append("The tuned model is no better than the base model on held-out data.")
    if training and training["steps"] < 50:
        found.append(f"Only {training['steps']} steps: the model has seen little. 50 and more are usual.")
    answers = report["answers"]
    if answers and all(answer["base"]["text"] == answer["tuned"]["text"] for answer in answers):
        found.append("Base and tuned give the same answers: training has changed nothing that shows.")
    if not len(material.sequences):
        found.append(
            "No data was held out: there is no validation loss, and the questions are ones the model was trained on, "
            "so the rates flatter it. Set data.validation."
        )
    elif 0 < len(material.questions) < 16:
        found.append(
            f"The rates rest on {len(material.questions)} held-out questions only: one answer more or less moves them."
        )
    return found


def _cause_of_loops(tuned: int, base: int, steps: int) -> str:
    if tuned <= base:
        return f"So do {base} of the base model's: it has not learnt to answer yet, train longer."
    if steps < 50:
        return "It has seen too little to have learnt to answer: train longer."
    return "Usual causes: too many epochs, too high a learning rate, or rows that repeat themselves."


def _way_back(rise: "ValidationRise", kept: Sequence[int]) -> str:
    """What is left of the model at its best: a checkpoint in the half of the rise that is nearer to it, or none."""
    if rise.best_step == 0:
        return "It was best before training: lower train.learning_rate, and look at the data with `tunewright check`."
    near = min(kept, key=lambda step: abs(step - rise.best_step), default=rise.last_step)
    if 2 * abs(near - rise.best_step) < rise.last_step - rise.best_step:
        return f"Take the checkpoint of step {near} (--checkpoint {near}), or train fewer epochs."
    return f"No checkpoint near step {rise.best_step} was kept: train fewer epochs, or raise train.keep_checkpoints."


@dataclass(frozen=True, slots=True)
class ValidationRise:
    """Validation loss after its best point."""

    best: float
    best_step: int
    last: float
    last_step: int


def validation_rise(metrics: Sequence[Mapping[str, Any]]) -> ValidationRise | None:
    """Whether validation loss ended more than 2 % above its best while training loss kept falling."""
    points = [(r["validation_loss"], r["step"]) for r in metrics if r.get("validation_loss") is not None]
    if len(points) < 2:
        return None
    best, best_step = min(points)
    last, last_step = points[-1]
    losses = [(r["step"], r["loss"]) for r in metrics if r.get("loss") is not None]
    around_best = [loss for step, loss in losses if abs(step - best_step) <= RECENT_STEPS]
    at_end = [loss for step, loss in losses if step > last_step - RECENT_STEPS]
    if last <= 1.02 * best or not around_best or not at_end or np.mean(at_end) >= np.mean(around_best):
        return None
    return ValidationRise(best, best_step, last, last_step)


def table_rows(base: Mapping[str, Any], tuned: Mapping[str, Any] | None) -> list[tuple[str, str, str, str, str]]:
    """Rows (name, base, tuned, change, meaning) as text, leaving out what neither model has."""
    rows = []
    for key, name, form, meaning in MEANINGS:
        before, after = _lookup(base, key), _lookup(tuned, key) if tuned is not None else None
        if before is None and after is None:
            continue
        change = _change(after - before, form) if before is not None and after is not None else ""
        rows.append((name, _format(before, form), _format(after, form) if tuned is not None else "", change, meaning))
    return rows


def render_markdown(report: Report) -> str:
    """The page a stranger reads: what was trained, what came out, what it says, what to do next."""
    run, data, training = report["run"], report["data"], report["training"]
    parts = [f"# {run['name']}", _what_was_trained(run, data, training), f"**{report['summary']}**"]
    if report["warnings"]:
        parts.append("## Look at this first\n\n" + "\n".join(f"- {warning}" for warning in report["warnings"]))
    numbers = "\n".join(f"| {' | '.join(row)} |" for row in table_rows(report["base"], report["tuned"]))
    parts.append(f"## Numbers\n\n| | base | tuned | change | meaning |\n|---|---:|---:|---:|---|\n{numbers}")
    if training:
        parts.append("![Loss by step](loss.png)")
    if report["answers"]:
        parts.append("## Answers, side by side\n\n" + _answer_table(report["answers"][:SHOWN_ANSWERS]))
    parts.append(_next_commands(run["path"], run["tuning"]))
    return "\n\n".join(parts) + "\n"


def _what_was_trained(run: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    verb = {"sft": "learnt answers", "pt": "continued pre-training"}[run["stage"]]
    lines = [
        f"**{run['model']}** {verb} by {TUNINGS[run['tuning']]} from {', '.join(data['sources'])}: "
        f"{_count(data['examples'], 'example')} trained on ({data['tokens']:,} tokens, "
        f"{data['supervised_tokens']:,} of them learnt), {data['validation_examples']:,} held out."
    ]
    if training:
        lines.append(
            f"{_count(training['steps'], 'step')} ({training['epochs']:.3g} epochs) in "
            f"{duration(training['seconds'])}: {training['samples_per_second']:.1f} samples/s, at most "
            f"{gib(training['peak_memory_bytes'])} of memory. Training loss {training['first_loss']:.3f} "
            f"→ {training['last_loss']:.3f} (means over the first and the last steps)."
        )
    settings = ", ".join(f"{name} {value}" for name, value in run["settings"].items())
    lines.append(f"Settings: {settings}. Whatever is not named here stands in `config.yaml`.")
    return "\n\n".join(lines)


def _answer_table(answers: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {_cell(answer['question'])} | {_reply_cell(answer['base'])} | {_reply_cell(answer['tuned'])} |"
        for answer in answers
    ]
    return "| question | base | tuned |\n|---|---|---|\n" + "\n".join(rows)


def _next_commands(path: str, tuning: str) -> str:
    run = shlex.quote(path)
    merged = "merged weights" if tuning == "lora" else "weights"
    return (
        "## Next\n\n```sh\n"
        f"tunewright chat {run}                # talk to it; --base talks to the model it came from\n"
        f"tunewright export {run} DEST         # {merged} that load anywhere, proven by reloading them\n"
        f"tunewright eval {run} --data FILE    # the same numbers on other data\n"
        "```"
    )


def _side_by_side(material: Material, base: Evaluation, tuned: Evaluation) -> list[dict[str, Any]]:
    """Fixed questions first, then the held-out ones that are not among them."""
    groups = [(True, material.fixed, base.fixed, tuned.fixed)]
    if base.replies is not None and tuned.replies is not None:
        groups.append((False, material.questions, base.replies.replies, tuned.replies.replies))
    shown, answers = set(), []
    for fixed, questions, before, after in groups:
        for question, old, new in zip(questions, before, after, strict=True):
            if question in shown:
                continue
            shown.add(question)
            answers.append(
                {
                    "question": question.text,
                    "messages": [{"role": message.role, "content": message.content} for message in question.messages],
                    "tools": question.tools,
                    "reference": question.reference,
                    "fixed": fixed,
                    "base": _reply_json(old),
                    "tuned": _reply_json(new),
                }
            )
    return answers


def _reply_json(reply: "Answer") -> dict[str, Any]:
    return {"text": reply.text, "finish": reply.finish, "tokens": len(reply.ids)}


def _reply_cell(reply: Mapping[str, Any]) -> str:
    text = _cell(reply["text"]) or "*(empty)*"
    return f"{text} *(cut by length)*" if reply["finish"] == "length" else text


def _cell(text: str) -> str:
    """One table cell: short, on one line, nothing in it read as markup."""
    short = text.strip() if len(text) <= SHOWN_CHARACTERS else text.strip()[:SHOWN_CHARACTERS] + "…"
    for mark in "\\`*_[]<>|":
        short = short.replace(mark, "&lt;" if mark == "<" else "&gt;" if mark == ">" else "\\" + mark)
    return "<br>".join(short.splitlines())


def _lookup(numbers: Mapping[str, Any], key: str) -> float | None:
    value: Any = numbers
    for part in key.split("."):
        value = value.get(part) if value is not None else None
    return value if value is None else float(value)


def _format(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _change(delta: float, form: str) -> str:
    if form.endswith("%"):
        return f"{delta * 100:+.1f} points"
    return format(delta, "+" + form)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
