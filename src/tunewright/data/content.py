"""What stands in an example, as JSON: how examples are kept beside their tokens, and what makes two of them equal."""

from typing import Any

import orjson

from tunewright.data.examples import Dialog, Example, Labelled, Message, Place, Preference, Prompt, Text, ToolCall


def to_json(example: Example) -> bytes:
    """One line without the line end; where the example stands is left out, so that equal ones give equal bytes."""
    match example:
        case Text():
            plain: dict[str, Any] = {"text": example.text}
        case Dialog():
            plain = {"dialog": example.messages, "tools": example.tools}
        case Preference():
            answers = {"chosen": example.chosen, "rejected": example.rejected}
            plain = {"preference": example.prompt, **answers, "tools": example.tools}
        case Labelled():
            plain = {"labelled": example.prompt, "answer": example.answer, "good": example.good, "tools": example.tools}
        case Prompt():
            plain = {"prompt": example.messages, "tools": example.tools}
    return orjson.dumps(plain)


def from_json(content: bytes, place: Place) -> Example:
    """The example whose `to_json` this is."""
    match orjson.loads(content):
        case {"text": text}:
            return Text(text, place)
        case {"dialog": messages, "tools": tools}:
            return Dialog(_messages(messages), place, tools)
        case {"preference": prompt, "chosen": chosen, "rejected": rejected, "tools": tools}:
            return Preference(_messages(prompt), _message(chosen), _message(rejected), place, tools)
        case {"labelled": prompt, "answer": answer, "good": good, "tools": tools}:
            return Labelled(_messages(prompt), _message(answer), good, place, tools)
        case {"prompt": messages, "tools": tools}:
            return Prompt(_messages(messages), place, tools)
    raise ValueError(f"{place}: no example is written like this: {content[:80]!r}")


def _messages(plain: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(_message(message) for message in plain)


def _message(plain: dict[str, Any]) -> Message:
    return Message(**{**plain, "tool_calls": tuple(ToolCall(**call) for call in plain["tool_calls"])})
