"""Rows of a file -> examples, or the reason why a row is none.

Read are alpaca rows and two-column sheets (a question, an answer, maybe further input, a system prompt and earlier
turns), dialogs as XTuner (`conversation`: input and output), OpenAI (role and content) and ShareGPT (from and value)
write them, and raw text.
"""

import math
from typing import Any

from tunewright.data.columns import Layout
from tunewright.data.examples import Dialog, Example, Message, Place, Role, Text

ROLES: dict[Any, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class BadRow(Exception):
    """A row that is no example; the message is the reason, the same words for rows with the same fault."""


def read_example(row: dict[str, Any], layout: Layout, system: str | None, place: Place) -> Example:
    """The example that a row holds; `system` fills where it has no system prompt. Raises BadRow."""
    if layout.format == "text":
        return Text(_required(row.get(layout.columns["text"]), "text"), place)
    columns = layout.columns
    own = _text(row.get(columns["system"]), "system prompt") if "system" in columns else ""
    if layout.format == "conversation":
        own_in_turns, turns = _conversation(row.get(columns["messages"]))
        own = own_in_turns or own
    else:
        turns = _alpaca(row, columns)
    prompt = own or system or ""
    first = (Message("system", prompt),) if prompt.strip() else ()
    return Dialog((*first, *turns), place)


def _alpaca(row: dict[str, Any], columns: dict[str, str]) -> list[Message]:
    turns = []
    for question, answer in _history(row.get(columns["history"]) if "history" in columns else None):
        turns += [Message("user", question), Message("assistant", answer)]
    parts = [_text(row.get(columns[role]), "question") for role in ("prompt", "query") if role in columns]
    question = "\n".join(part for part in parts if part)
    if not question:
        raise BadRow("no question")
    return [*turns, Message("user", question), Message("assistant", _required(row.get(columns["response"]), "answer"))]


def _history(value: Any) -> list[tuple[str, str]]:
    """Earlier turns, each [question, answer]; they are trained like the last one."""
    if _is_missing(value):
        return []
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise BadRow("history is not a list of [question, answer]")
    return [
        (_required(question, "question in history"), _required(answer, "answer in history"))
        for question, answer in value
    ]


def _conversation(value: Any) -> tuple[str, list[Message]]:
    """System prompt ("" for none) and turns of a dialog."""
    if _is_missing(value) or value == []:
        raise BadRow("no turns")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow("the dialog is not a list of turns")
    system, turns = _input_output(value) if "output" in value[0] else _roles(value)
    if not any(turn.train for turn in turns):
        raise BadRow("no answer of the dialog carries loss")
    return system, turns


def _input_output(value: list[dict[str, Any]]) -> tuple[str, list[Message]]:
    """XTuner's turns: {system, input, output}; the first turn's system prompt holds for the dialog."""
    system = _text(value[0].get("system"), "system prompt")
    turns = []
    for turn in value:
        if _text(turn.get("system"), "system prompt") not in ("", system):
            raise BadRow("the system prompt changes within the dialog")
        turns.append(Message("user", _required(turn.get("input"), "question")))
        loss = turn.get("output_with_loss", True)
        turns.append(Message("assistant", _required(turn.get("output"), "answer"), float(bool(loss))))
    return system, turns


def _roles(value: list[dict[str, Any]]) -> tuple[str, list[Message]]:
    """Turns as {role, content} or {from, value}: maybe a system prompt, then user and assistant in turn."""
    system = ""
    turns: list[Message] = []
    for turn in value:
        name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise BadRow(f"a turn has the role {name!r}; read are system, user and assistant")
        if role == "system" and turn is value[0]:
            system = _text(content, "system prompt")
            continue
        if role != ("assistant" if len(turns) % 2 else "user"):
            raise BadRow("question and answer do not alternate")
        words = _required(content, "question" if role == "user" else "answer")
        turns.append(Message(role, words, float(bool(turn.get("loss", True)))))
    if len(turns) % 2 or not turns:
        raise BadRow("the dialog does not end with an answer")
    return system, turns


def _required(value: Any, what: str) -> str:
    text = _text(value, what)
    if not text:
        raise BadRow(f"no {what}")
    return text


def _text(value: Any, what: str) -> str:
    """A text exactly as it stands, a number written out, "" for what is missing or only white space."""
    if _is_missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"the {what} is not text")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write one as \\udXXX, but no tokenizer takes it
        raise BadRow(f"the {what} holds half of a character (a lone surrogate)") from None
    return text if text.strip() else ""


def _is_missing(value: Any) -> bool:
    """None, blank text, and the NaN that pandas writes for an empty cell."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and not value.strip())
