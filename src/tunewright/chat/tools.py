"""Tools in a chat: read from a file as those of a row are, and the calls that an answer holds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.data.examples import Message, ToolCall
from tunewright.data.render import parse_tools
from tunewright.data.turns import answer, as_tool_call, tools_text
from tunewright.data.values import BadRow
from tunewright.errors import UsageError

_FORM = 'give a JSON list of function schemas, as [{"name": …, "description": …, "parameters": {…}}]'

# What templates write before a call, at the end of what was said: <tool_call>, <|python_tag|>, [TOOL_CALLS], ```json.
_OPENING = re.compile(r"(?:\s*(?:<(?!/)[^<>\n]*>|\[[A-Z_]+\]|```\w*))*\s*$")


def read_tools(path: Path) -> str:
    """The JSON text of a file's list of tools, in the one spelling that training gave those of its rows.

    Raises UsageError for a file that holds no such list.
    """
    try:
        tools = tools_text(path.read_text(encoding="utf-8-sig"))
        parse_tools(tools)
    except OSError as error:
        raise UsageError(f"--tools: {path} cannot be read ({error.strerror or error}); {_FORM}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--tools: {path} is not UTF-8 text; save it as UTF-8") from error
    except (BadRow, ValueError) as error:
        raise UsageError(f"--tools: {path}: {error}; {_FORM}") from error
    if tools is None:
        raise UsageError(f"--tools: {path} holds no tool; {_FORM}")
    return tools


def read_calls(text: str, tools: str) -> Message | None:
    """An answer that calls some of these tools, as a row of data holds it; None where no call is recognised.

    The calls are JSON objects, in order, whatever the template writes around them; what is said before the first of
    them is kept.
    """
    names = {tool["function"]["name"] for tool in parse_tools(tools) or []}
    calls: list[ToolCall] = []
    said = ""
    for start, value in _json_values(text):
        for item in value if isinstance(value, list) else [value]:
            try:
                call = as_tool_call(item)
            except BadRow:
                continue
            if call.name in names:
                said = said if calls else _OPENING.sub("", text[:start]).rstrip()
                calls.append(call)
    return answer(said, calls=tuple(calls)) if calls else None


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """Every JSON object and list that stands in a text, and none that stands in another; each with where it begins."""
    decoder, at = json.JSONDecoder(), 0
    while (at := min((found for mark in "{[" if (found := text.find(mark, at)) >= 0), default=-1)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
        else:
            yield at, value
            at = end
