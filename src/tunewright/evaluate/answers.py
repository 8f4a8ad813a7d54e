"""Ask a model held-out questions and keep what it said: the evidence behind stop rate and loop rate.

A question is a held-out dialog up to its last assistant turn; that turn is the reference. Answers are greedy, so the
same model always gives the same ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunewright.data.examples import Dialog, Example, Message, opening
from tunewright.evaluate.metrics import ReplyMetrics, answer_limit, evaluate_replies

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.data.template import ChatTemplate
    from tunewright.models.generate import Answer

BATCH = 16  # prompts generated between two polls


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with the tools at hand; `reference` is the right answer where the data holds one."""

    messages: tuple[Message, ...]
    reference: str | None = None
    tools: str | None = None

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies to the held-out questions, in their order, with their rates; `limit` is the budget in tokens."""

    questions: list[Question]
    replies: "list[Answer]"
    metrics: ReplyMetrics
    limit: int

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.metrics), "max_new_tokens": self.limit}


def held_out_questions(examples: Sequence[Example], count: int) -> list[Question]:
    """The first `count` different questions of the dialogs among `examples`, each with its reference."""
    chosen: dict[tuple[tuple[Message, ...], str | None], Question] = {}
    for example in examples:
        if len(chosen) == count:
            break
        if isinstance(example, Dialog):
            *prompt, answer = example.messages
            question = Question(tuple(prompt), _said(answer), example.tools)
            chosen.setdefault((question.messages, question.tools), question)
    return list(chosen.values())


def fixed_questions(prompts: Sequence[str] | None, system: str | None, examples: Sequence[Example]) -> list[Question]:
    """The questions whose answers are shown: `samples.prompts` of the config, else the first three of the data."""
    if prompts is None:
        return held_out_questions(examples, 3)
    return [Question((*opening(system), Message("user", prompt))) for prompt in prompts]


def token_limit(questions: Sequence[Question], tokenizer: "PreTrainedTokenizerBase", setting: int | None) -> int:
    """`setting`, or four times the 99th percentile of the references' lengths (see metrics.answer_limit)."""
    if setting is not None:
        return setting
    texts = [question.reference for question in questions if question.reference is not None]
    if not texts:
        return answer_limit([128])
    # one more for the stop token, which the limit counts too
    return answer_limit([len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])


def ask(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    template: "ChatTemplate",
    questions: Sequence[Question],
    limit: int,
    poll: Callable[[], None] = lambda: None,
) -> "list[Answer]":
    """Greedy replies in the order of `questions`, at most `limit` tokens each.

    Prompts of like length are generated together, since a batch is padded to its longest. `poll` is called before
    each batch; what it raises ends the work. Raises UsageError for a prompt that fills the model's context.
    """
    from tunewright.models.generate import generate

    prompts = [template.prompt_ids(question.messages, question.tools) for question in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: dict[int, Answer] = {}
    for start in range(0, len(order), BATCH):
        poll()
        batch = order[start : start + BATCH]
        answers = generate(model, tokenizer, [prompts[i] for i in batch], template.stop_ids, max_new_tokens=limit)
        replies.update(zip(batch, answers, strict=True))
    return [replies[index] for index in range(len(prompts))]


def summarise(questions: Sequence[Question], replies: "Sequence[Answer]", limit: int) -> Replies:
    """Replies with their rates. Raises ValueError when there is none."""
    metrics = evaluate_replies([reply.ids for reply in replies], [reply.finish == "stop" for reply in replies])
    return Replies(list(questions), list(replies), metrics, limit)


def _said(answer: Message) -> str:
    """An answer as text; what it calls stands behind what it says."""
    return "\n".join(filter(None, [answer.content, *(f"{call.name} {call.arguments}" for call in answer.tool_calls)]))
