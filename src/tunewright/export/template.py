"""The chat template that leaves with an exported model: the trained one, with the run's system prompt built in."""

import json

from tunewright.data.examples import Message, opening
from tunewright.data.template import ChatTemplate
from tunewright.errors import RunError

_QUESTIONS = ("Who are you?", "你是谁？")


def with_system(source: str, system: str | None) -> str:
    """`source` with `system` as the system prompt of dialogs that bring none; a system message replaces it."""
    if not system:
        return source
    # JSON escapes are Jinja's too, and a quoted text cannot end its block early.
    literal = json.dumps(system, ensure_ascii=False)
    message = "{'role': 'system', 'content': " + literal + "}"
    condition = "{%- if not messages or messages[0]['role'] != 'system' %}"
    return f"{condition}{{%- set messages = [{message}] + messages %}}{{%- endif -%}}\n{source}"


def prove_template(trained: ChatTemplate, exported: ChatTemplate, system: str | None) -> None:
    """Raise RunError unless both write the same tokens: with the system prompt given, left out, and after a turn."""
    for question in _QUESTIONS:
        turns = [Message("user", question)]
        later = [*turns, Message("assistant", question), *turns]
        for dialog in (turns, later):
            expected = trained.prompt_ids([*opening(system), *dialog])
            if exported.prompt_ids(dialog) != expected or exported.prompt_ids([*opening(system), *dialog]) != expected:
                raise RunError(
                    "the exported chat template does not write the prompt of training; nothing was exported. "
                    "This is a fault of tunewright with this template, please report it"
                )
