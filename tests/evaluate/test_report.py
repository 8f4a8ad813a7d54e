"""The page a stranger reads, from made-up numbers: golden fragments, warnings, and safe tables."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.evaluate.made_up import metric
from tunewright.data.examples import Encoded, EncodedSet, Message
from tunewright.evaluate.answers import Question, summarise
from tunewright.evaluate.evaluation import Evaluation, Material
from tunewright.evaluate.metrics import LossMetrics
from tunewright.evaluate.report import (
    build_report,
    render_markdown,
    summarise_training,
    table_rows,
    validation_rise,
    write_report,
)
from tunewright.models.generate import Answer

RUN = {
    "name": "keeper",
    "path": "runs/the keeper",
    "model": "smollm2-135m-instruct",
    "stage": "sft",
    "tuning": "lora",
    "settings": {"learning rate": 2e-4, "LoRA rank": 8},
    "checkpoints": [60, 80, 100],
}
DATA = {
    "sources": ["keeper.json"],
    "rows": 1000,
    "examples": 980,
    "validation_examples": 20,
    "tokens": 123456,
    "supervised_tokens": 45678,
}


def loss_metrics(loss: float) -> LossMetrics:
    return LossMetrics(loss, math.exp(loss), 400, loss / 3, 0.5, 0.75)


def question(number: int) -> Question:
    return Question((Message("user", f"Question {number}?"),), f"Reference {number}.")


def reply(text: str, finish: Literal["stop", "length"] = "stop", ids: list[int] | None = None) -> Answer:
    return Answer(ids or list(range(20)), text, finish)


def evaluation(loss: float, replies: list[Answer]) -> Evaluation:
    questions = [question(number) for number in range(len(replies))]
    return Evaluation(loss_metrics(loss), summarise(questions, replies, 64), replies[:1])


def material(count: int = 20, held_out: bool = True) -> Material:
    questions = [question(number) for number in range(count)]
    sequences = EncodedSet.build([Encoded(*_arrays())] if held_out else [], [])
    return Material(sequences, questions, questions[:1], None, (2,), 64, 4096)


def _arrays() -> tuple[Any, Any]:
    import numpy as np

    return np.array([5, 6], np.int32), np.array([0, 1], np.float32)


GOOD = [reply(f"Answer {number}") for number in range(20)]
OLD = [reply(f"As a model {number}") for number in range(20)]
METRICS = [metric(step, 4 - step / 50) for step in range(1, 101)]


def report(tuned: Evaluation | None = None, base: Evaluation | None = None, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"run": RUN, "data": DATA, "metrics": METRICS, **changes}
    chosen = arguments.pop("material", material())
    return build_report(chosen, base or evaluation(3.0, OLD), tuned or evaluation(2.0, GOOD), **arguments)


def test_page_says_what_was_trained_and_what_came_out() -> None:
    page = render_markdown(report())
    for fragment in (
        "# keeper\n",
        "**smollm2-135m-instruct** learnt answers by LoRA from keeper.json: 980 examples trained on (123,456 tokens, "
        "45,678 of them learnt), 20 held out.",
        "100 steps (10 epochs) in 50 s: 8.0 samples/s, at most 1.0 GiB of memory. Training loss 3.890 → 2.090 "
        "(means over the first and the last steps).",
        "Settings: learning rate 0.0002, LoRA rank 8.",
        "**stops 20/20, loops 0/20**",
        "| validation loss | 3.000 | 2.000 | -1.000 | mean surprise",
        "| perplexity | 20.09 | 7.39 | -12.70 |",
        "| stop rate | 100.0% | 100.0% | +0.0 points |",
        "| Question 0? | As a model 0 | Answer 0 |",
        "tunewright chat 'runs/the keeper' ",
        "![Loss by step](loss.png)",
    ):
        assert fragment in page
    assert "Look at this first" not in page


def test_json_has_the_promised_keys(tmp_path: Path) -> None:
    write_report(report(tuned=evaluation(math.inf, GOOD)), tmp_path / "report.json", tmp_path / "report.md")
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    for side in ("base", "tuned"):
        assert {"validation_loss", "perplexity", "stop_rate", "loop_rate", "truncation_rate"} <= set(written[side])
    assert written["tuned"]["perplexity"] is None
    assert len(written["answers"]) == 20
    assert written["answers"][0]["fixed"] is True
    assert written["answers"][3]["reference"] == "Reference 3."
    assert (tmp_path / "report.md").read_text("utf-8").startswith("# keeper")


def test_healthy_run_has_no_warnings() -> None:
    assert report()["warnings"] == []


LOOPING = [reply("la " * 20, "length", [7] * 30), *GOOD[1:18], reply("cut", "length"), reply("cut too", "length")]
FEW = METRICS[:49]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuned": evaluation(2.0, LOOPING)}, "3 of 20 answers did not stop by themselves within 64 tokens"),
        ({"tuned": evaluation(3.0, GOOD)}, "no better than the base model"),
        ({"tuned": evaluation(2.0, OLD)}, "Base and tuned give the same answers"),
        ({"metrics": FEW}, "Only 49 steps"),
        ({"material": material(held_out=False)}, "No data was held out"),
        (
            {"material": material(4), "tuned": evaluation(2.0, GOOD[:4]), "base": evaluation(3.0, OLD[:4])},
            "4 held-out questions only",
        ),
        (
            {"metrics": [metric(s, 4 - s / 50, {50: 2.0, 100: 2.5}.get(s)) for s in range(1, 101)]},
            "Validation loss rose from 2.000 (step 50) to 2.500 (step 100)",
        ),
    ],
)
def test_each_fault_is_said_in_words(changes: dict[str, Any], words: str) -> None:
    made = report(**changes)
    assert len(made["warnings"]) == 1
    assert words in made["warnings"][0]
    assert made["warnings"][0] in render_markdown(made)


def test_loops_are_warned_of_above_a_twentieth() -> None:
    loop = reply("la la", "stop", [7] * 30)
    assert report(tuned=evaluation(2.0, [loop, *GOOD[1:]]))["warnings"] == []
    (warning,) = report(tuned=evaluation(2.0, [loop, loop, *GOOD[2:]]))["warnings"]
    assert "2 of 20 answers end repeating themselves" in warning


def test_loops_of_the_base_model_are_not_blamed_on_too_much_training() -> None:
    looping = [reply("la la", "stop", [7] * 30)] * 5
    tuned = evaluation(2.0, [*looping, *GOOD[5:]])
    assert "Usual causes: too many epochs" in report(tuned=tuned)["warnings"][0]
    (warning,) = report(tuned=tuned, base=evaluation(3.0, [*looping[:4], *looping[:2], *OLD[6:]]))["warnings"]
    assert report(tuned=tuned, metrics=FEW)["warnings"][0].endswith(
        "It has seen too little to have learnt to answer: train longer."
    )
    assert warning.endswith("So do 6 of the base model's: it has not learnt to answer yet, train longer.")


@pytest.mark.parametrize(
    ("best", "kept", "words"),
    [
        (50, [60, 80, 100], "Take the checkpoint of step 60 (--checkpoint 60), or train fewer epochs."),
        (50, [40, 50, 100], "Take the checkpoint of step 50 (--checkpoint 50), or train fewer epochs."),
        (
            50,
            [80, 90, 100],
            "No checkpoint near step 50 was kept: train fewer epochs, or raise train.keep_checkpoints.",
        ),
        (50, [], "No checkpoint near step 50 was kept: train fewer epochs, or raise train.keep_checkpoints."),
        (0, [60, 80, 100], "It was best before training: lower train.learning_rate, and look at the data with"),
    ],
)
def test_only_a_checkpoint_that_is_there_is_recommended(best: int, kept: list[int], words: str) -> None:
    validation = {best: 2.0, 100: 2.5}
    metrics = [metric(step, 4 - step / 50, validation.get(step)) for step in range(1, 101)]
    if best == 0:
        metrics.insert(0, {"step": 0, "validation_loss": 2.0})
    (warning,) = report(metrics=metrics, run={**RUN, "checkpoints": kept})["warnings"]
    assert f"the model memorises. {words}" in warning


def test_validation_rise_needs_falling_training_loss() -> None:
    validation = {50: 2.0, 100: 2.5}
    falling = [metric(step, 4 - step / 50, validation.get(step)) for step in range(1, 101)]
    rising = [metric(step, 2 + step / 50, validation.get(step)) for step in range(1, 101)]
    noise = [metric(step, 4 - step / 50, {50: 2.0, 100: 2.03}.get(step)) for step in range(1, 101)]
    found = validation_rise(falling)
    assert found is not None
    assert (found.best, found.best_step, found.last, found.last_step) == (2.0, 50, 2.5, 100)
    assert validation_rise(rising) is None
    assert validation_rise(noise) is None
    assert validation_rise([]) is None


def test_answers_cannot_break_the_table() -> None:
    nasty = "a | b\n\n<script>*x*</script>" + "长" * 500
    page = render_markdown(report(tuned=evaluation(2.0, [reply(nasty, "length"), *GOOD[1:]])))
    (line,) = [line for line in page.splitlines() if line.startswith("| Question 0?")]
    assert "a \\| b<br><br>&lt;script&gt;\\*x\\*&lt;/script&gt;" in line
    assert line.endswith("长… *(cut by length)* |")
    assert len(line) < 600


def test_rows_leave_out_what_nobody_has() -> None:
    rows = table_rows({"validation_loss": 2.0}, {"validation_loss": None, "stop_rate": 0.5})
    assert [row[:4] for row in rows] == [("validation loss", "2.000", "–", ""), ("stop rate", "–", "50.0%", "")]
    assert table_rows({"validation_loss": 2.0}, None)[0][2] == ""


def test_training_summary() -> None:
    start = {"step": 0, "epoch": 0.0, "seconds": 0.0, "validation_loss": 5.0}
    summary = summarise_training([start, *METRICS[:-1], metric(100, 2.0, 2.2)])
    assert summary["steps"] == 100
    assert summary["seconds"] == 50
    assert summary["tokens_per_second"] == 200
    assert (summary["last_validation_loss"], summary["best_validation_loss"]) == (2.2, 2.2)
    assert summarise_training([start]) == {}


def test_losses_of_a_short_run_are_means_over_a_quarter_of_it() -> None:
    summary = summarise_training([metric(step, float(step)) for step in range(1, 9)])
    assert (summary["first_loss"], summary["last_loss"]) == (1.5, 7.5)
    assert summarise_training([metric(1, 3.0)])["first_loss"] == 3.0
