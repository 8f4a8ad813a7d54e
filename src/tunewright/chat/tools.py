"""Tools in a chat: read from a file as those of a row are, and the calls that an answer holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.data.examples import ToolCall
from tunewright.data.render import parse_tools
from tunewright.data.turns import as_tool_call, tools_text
from tunewright.data.values import BadRow
from tunewright.errors import UsageError

_FORM = 'give a JSON list of function schemas, as [{"name": …, "description": …, "parameters": {…}}]'


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


def find_calls(text: str, tools: str) -> list[ToolCall]:
    """The calls of these tools in an answer, in order, whatever the template writes around their JSON objects."""
    names = {tool["function"]["name"] for tool in parse_tools(tools) or []}
    calls = []
    for value in _json_values(text):
        for item in value if isinstance(value, list) else [value]:
            try:
                call = as_tool_call(item)
            except BadRow:
                continue
            if call.name in names:
                calls.append(call)
    return calls


def _json_values(text: str) -> Iterator[Any]:
    """Every JSON object and list that stands in a text, and none that stands in another."""
    decoder, at = json.JSONDecoder(), 0
    while (at := min((found for mark in "{[" if (found := text.find(mark, at)) >= 0), default=-1)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):
            at += 1
