"""Base and tuned measured on a real (tiny) model: the numbers are transformers' own, and the right model gets them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from tests.evaluate.made_up import MadeUp, make_run, metric
from tunewright.data.examples import Encoded, EncodedSet, Message, Place
from tunewright.errors import Interrupted, UsageError
from tunewright.evaluate.answers import ask, fixed_questions, held_out_questions
from tunewright.evaluate.evaluation import evaluate_model, gather_material, held_out_loss
from tunewright.evaluate.run import evaluate_run, require_same_data
from tunewright.forest.score import score


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    metrics = [metric(step, 3 - step / 100, 3.0 if step == 60 else None) for step in range(1, 61)]
    return make_run(tmp_path_factory.mktemp("evaluate"), metrics=metrics)


def plain_loss(made_up: MadeUp) -> tuple[float, list[float]]:
    """Mean nll over all supervised tokens and P(stop) of each answer, one sequence at a time by transformers."""
    nll: list[float] = []
    stops: list[float] = []
    prepared = made_up.prepared
    for index in range(len(prepared.validation)):
        sequence = prepared.validation[index]
        ids = torch.tensor(sequence.input_ids, dtype=torch.long)
        with torch.no_grad():
            log_p = made_up.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for position in range(1, len(ids)):
            if sequence.weights[position] > 0:
                value = float(log_p[position - 1, ids[position]])
                nll.append(-value)
                if int(ids[position]) in prepared.stop_ids:
                    stops.append(math.exp(value))
    return sum(nll) / len(nll), stops


def test_validation_loss_is_that_of_the_loop_for_weighted_tokens(made_up: MadeUp) -> None:
    """The loop writes the mean of the very same scores to metrics.jsonl."""
    prepared = made_up.prepared
    drawn = np.random.default_rng(0)
    sequences = []
    for index in range(len(prepared.validation)):
        sequence = prepared.validation[index]
        weights = (sequence.weights * drawn.choice([0.25, 1.0, 4.0], len(sequence))).astype(sequence.weights.dtype)
        sequences.append(Encoded(sequence.input_ids, weights))
    places = [Place("made-up.jsonl", line) for line in range(len(sequences))]
    material = gather_material(
        made_up.run.config, made_up.tokenizer, prepared.template, prepared.stop_ids, prepared.validation, [], []
    )
    weighted = replace(material, sequences=EncodedSet.build(sequences, places))
    found = held_out_loss(made_up.model, made_up.tokenizer, weighted)
    scores = score(made_up.model, sequences, material.forest_tokens)
    assert found.validation_loss == pytest.approx(scores.mean, rel=1e-12)
    assert found.validation_loss != pytest.approx(float(scores.nll.mean()), rel=1e-5)


def test_report_holds_the_numbers_of_both_models(made_up: MadeUp) -> None:
    report = evaluate_run(made_up.run, made_up.model, made_up.tokenizer, made_up.prepared)

    tuned_loss, stops = plain_loss(made_up)
    with made_up.model.disable_adapter():
        base_loss, _ = plain_loss(made_up)
    assert report["tuned"]["validation_loss"] == pytest.approx(tuned_loss, rel=1e-5)
    assert report["base"]["validation_loss"] == pytest.approx(base_loss, rel=1e-5)
    assert report["tuned"]["perplexity"] == pytest.approx(math.exp(tuned_loss), rel=1e-4)
    assert report["tuned"]["stop_probability_median"] == pytest.approx(median(stops), rel=1e-3)
    assert base_loss != pytest.approx(tuned_loss, rel=1e-3)

    answers = [example.messages[-1].content for example in made_up.prepared.validation_examples]
    bits = (tuned_loss * report["tuned"]["supervised_tokens"] + sum(map(math.log, stops))) / math.log(2)
    assert report["tuned"]["bits_per_byte"] == pytest.approx(bits / sum(len(a.encode()) for a in answers), rel=1e-4)
    assert report["tuned"]["prompts"] == 5
    assert json.loads(made_up.run.report_json.read_text("utf-8"))["tuned"] == report["tuned"]
    assert made_up.run.loss_png.read_bytes().startswith(b"\x89PNG")
    assert report["training"]["samples_per_second"] == pytest.approx(8.0)


def test_answers_belong_to_their_questions(made_up: MadeUp) -> None:
    template = made_up.prepared.template
    assert template is not None
    questions = held_out_questions(made_up.prepared.train_examples, 20)
    together = ask(made_up.model, made_up.tokenizer, template, questions, 8)
    alone = [ask(made_up.model, made_up.tokenizer, template, [question], 8)[0] for question in questions[:6]]
    assert [reply.ids for reply in together[:6]] == [reply.ids for reply in alone]
    assert all(len(reply.ids) == 8 for reply in together if reply.finish == "length")
    assert len({tuple(reply.ids) for reply in together}) > 1


def test_model_is_left_as_it_was(made_up: MadeUp) -> None:
    made_up.model.train()
    material = gather_material(made_up.run.config, made_up.tokenizer, None, (2,), made_up.prepared.validation, [], [])
    first = evaluate_model(made_up.model, made_up.tokenizer, material)
    assert made_up.model.training
    made_up.model.eval()
    assert evaluate_model(made_up.model, made_up.tokenizer, material) == first
    assert first.replies is None
    assert first.fixed == []


def test_poll_ends_the_work(made_up: MadeUp) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        evaluate_run(made_up.run, made_up.model, made_up.tokenizer, made_up.prepared, poll=stop)


def test_scoring_is_left_between_two_forests(made_up: MadeUp) -> None:
    held_out = made_up.prepared.validation
    material = gather_material(made_up.run.config, made_up.tokenizer, None, (2,), held_out, [], [], forest_tokens=1)
    polls = 0

    def stop_at_the_third() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        evaluate_model(made_up.model, made_up.tokenizer, material, stop_at_the_third)
    assert len(held_out) > 3


def test_changed_data_is_refused(made_up: MadeUp) -> None:
    require_same_data(made_up.run, made_up.prepared.loaded.sha256)
    with pytest.raises(UsageError, match="have changed since it was trained"):
        require_same_data(made_up.run, "0" * 64)


def test_raw_text_has_loss_but_no_answers(tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text(
        "".join(json.dumps({"text": f"The keeper writes line {i}, and the fog comes down."}) + "\n" for i in range(20)),
        encoding="utf-8",
    )
    data = {"train": str(tmp_path / "book.jsonl"), "system": None}
    made_up = make_run(tmp_path, method={"stage": "pt"}, data=data)
    report = evaluate_run(made_up.run, made_up.model, made_up.tokenizer, made_up.prepared)
    assert report["tuned"]["validation_loss"] > 0
    assert "stop_rate" not in report["tuned"]
    assert report["summary"] == "no answers generated: raw text has no questions"
    assert "continued pre-training" in made_up.run.report_md.read_text("utf-8")


def test_without_held_out_data_training_questions_stand_in(tmp_path: Path) -> None:
    made_up = make_run(tmp_path, data={"validation": None}, evaluate={"prompts": 2})
    report = evaluate_run(made_up.run, made_up.model, made_up.tokenizer, made_up.prepared)
    assert "validation_loss" not in report["tuned"]
    assert report["tuned"]["prompts"] == 2
    assert any("No data was held out" in warning for warning in report["warnings"])


def test_questions_are_different_and_keep_their_references(made_up: MadeUp) -> None:
    examples = made_up.prepared.train_examples
    questions = held_out_questions([examples[0], examples[0], examples[1]], 5)
    assert [question.reference for question in questions] == [e.messages[-1].content for e in examples[:2]]
    assert [message.role for message in questions[0].messages] == ["system", "user"]


def test_fixed_questions_get_the_system_prompt() -> None:
    (question,) = fixed_questions(["你是谁？"], "Be brief.", [])
    assert question.messages == (Message("system", "Be brief."), Message("user", "你是谁？"))
    assert fixed_questions(["Hi"], None, [])[0].messages == (Message("user", "Hi"),)
