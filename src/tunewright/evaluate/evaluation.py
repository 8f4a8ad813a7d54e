"""Evaluate one model: held-out loss, and answers to held-out and fixed questions.

`Material` is what is asked, made once; base and tuned are measured on the very same one.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunewright.config.schema import RunConfig
from tunewright.data.examples import EncodedSet, Example
from tunewright.evaluate.answers import (
    Question,
    Replies,
    ask,
    fixed_questions,
    held_out_questions,
    summarise,
    token_limit,
)
from tunewright.evaluate.metrics import LossMetrics, evaluate_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.data.template import ChatTemplate
    from tunewright.models.generate import Answer

FOREST_TOKENS = 4096  # tokens scored at once where the run does not say: about 1 GB of activations at 8B


@dataclass(frozen=True, slots=True)
class Material:
    """What a model is measured on. Without held-out `sequences`, training data stands in for the questions."""

    sequences: EncodedSet
    questions: list[Question]
    fixed: list[Question]
    template: "ChatTemplate | None"
    stop_ids: tuple[int, ...]
    limit: int
    forest_tokens: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's numbers and answers; what could not be measured (no held-out data, raw text) is None or empty."""

    loss: LossMetrics | None
    replies: Replies | None
    fixed: "list[Answer]"

    def as_json(self) -> dict[str, Any]:
        """Flat numbers under the names of the report."""
        loss = asdict(self.loss) if self.loss else {}
        return {**loss, **(self.replies.as_json() if self.replies else {})}


def gather_material(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    template: "ChatTemplate | None",
    stop_ids: Sequence[int],
    sequences: EncodedSet,
    held_out: Sequence[Example],
    trained_on: Sequence[Example],
    forest_tokens: int | None = None,
) -> Material:
    """Choose the questions from `held_out`, or from `trained_on` when nothing is held out."""
    examples = held_out or trained_on
    questions = held_out_questions(examples, config.evaluate.prompts) if template else []
    fixed = fixed_questions(config.samples.prompts, config.data.system, examples) if template else []
    return Material(
        sequences=sequences,
        questions=questions,
        fixed=fixed,
        template=template,
        stop_ids=tuple(stop_ids),
        limit=token_limit(questions, tokenizer, config.evaluate.max_new_tokens),
        forest_tokens=forest_tokens or config.train.forest_tokens or FOREST_TOKENS,
    )


def evaluate_model(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure `model` as it is now; it is left in the mode it was in. `poll` may raise to end the work early."""
    loss = held_out_loss(model, tokenizer, material, poll) if len(material.sequences) else None
    # a fixed question that is a held-out one too needs no second answer
    asked = list(dict.fromkeys([*material.questions, *material.fixed]))
    answers: dict[Question, Answer] = {}
    if material.template is not None and asked:
        replies = ask(model, tokenizer, material.template, asked, material.limit, poll)
        answers = dict(zip(asked, replies, strict=True))
    return Evaluation(
        loss=loss,
        replies=summarise(material.questions, [answers[question] for question in material.questions], material.limit)
        if material.questions
        else None,
        fixed=[answers[question] for question in material.fixed],
    )


def held_out_loss(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    material: Material,
    poll: Callable[[], None] = lambda: None,
) -> LossMetrics:
    """Teacher-forced numbers over the held-out sequences, with the mask of training."""
    from tunewright.forest.score import score

    sequences = [material.sequences[index] for index in range(len(material.sequences))]
    scores = score(model, sequences, material.forest_tokens, poll)
    special = {*material.stop_ids, *tokenizer.all_special_ids}
    text_bytes = 0
    for sequence in sequences:
        supervised = sequence.input_ids[1:][sequence.weights[1:] > 0].tolist()
        plain = [token for token in supervised if token not in special]
        text_bytes += len(str(tokenizer.decode(plain, clean_up_tokenization_spaces=False)).encode())
    return evaluate_loss(scores, material.stop_ids, text_bytes)
