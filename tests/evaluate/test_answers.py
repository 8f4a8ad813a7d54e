"""What a model is asked: the prompts it was trained to answer, tools and all."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.tokenizers import CHATML, tiny_tokenizer
from tunewright.data.examples import Dialog, Message, Place, ToolCall
from tunewright.data.template import ChatTemplate
from tunewright.evaluate.answers import ask, fixed_questions, held_out_questions, token_limit
from tunewright.models import generate
from tunewright.models.generate import Answer

PLACE = Place("rows.jsonl", 1)
QUESTION, ANSWER = Message("user", "What time is it?"), Message("assistant", "It is noon.")
CLOCK, BELL = '[{"name": "clock"}]', '[{"name": "bell"}]'
TOKENIZER = tiny_tokenizer("chatml", "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML)
TEMPLATE = ChatTemplate(TOKENIZER, None, [TOKENIZER.eos_token_id])


def test_the_prompt_of_a_row_with_tools_is_the_one_that_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def answer(model: Any, tokenizer: Any, prompts: Sequence[list[int]], *rest: Any, **settings: Any) -> list[Answer]:
        asked.extend(prompts)
        return [Answer([5], "x", "stop") for _ in prompts]

    monkeypatch.setattr(generate, "generate", answer)
    dialogs = [Dialog((QUESTION, ANSWER), PLACE, tools) for tools in (None, CLOCK, BELL, CLOCK)]
    questions = held_out_questions(dialogs, 9)
    assert [question.tools for question in questions] == [None, CLOCK, BELL], "other tools make another question"
    assert fixed_questions(None, None, dialogs) == questions
    replies = ask(None, TOKENIZER, TEMPLATE, questions, 8)  # type: ignore[arg-type]  # the model is never called
    assert len(replies) == len(asked) == 3
    for dialog in dialogs:
        (trained,) = TEMPLATE.encode(dialog)
        assert sum(trained.input_ids[: len(prompt)].tolist() == prompt for prompt in asked) == 1, dialog.tools


def test_an_answer_that_calls_a_tool_has_a_length_too() -> None:
    call = ToolCall("clock", '{"zone": "' + "Europe/Athens " * 20 + '"}')
    row = Dialog((QUESTION, Message("assistant", "", tool_calls=(call,))), PLACE, CLOCK)
    (question,) = held_out_questions([row], 1)
    assert question.reference == f"clock {call.arguments}"
    assert token_limit([question], TOKENIZER, None) > 32
    assert token_limit([question], TOKENIZER, 7) == 7
