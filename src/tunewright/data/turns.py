"""Turns of a dialog, as any tool writes them -> messages.

Read are turns with a speaker (OpenAI's role and content, ShareGPT's from and value, or tags of your own), with tool
calls, tools' answers, reasoning, loss per turn and content in parts; and turns that hold a question and its answer
(XTuner's input and output).

XTuner's `need_eos_token` and `sep` say how its own template joins turns, and XTuner itself overwrites them with what
that template wants. Here the chat template ends each answer, so both are read past.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.data.examples import Message, Role, ToolCall
from tunewright.data.values import BadRow, as_list, is_missing, json_text, parse_json, required, text, truth

Speaker = Literal[
    "system", "user", "assistant", "tool", "call"
]  # call: an assistant's turn that is a tool call as JSON

SPEAKERS: dict[str, Speaker] = {
    "system": "system",
    "developer": "system",
    "系统": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "用户": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "助手": "assistant",
    "tool": "tool",
    "function": "tool",  # what OpenAI called a tool's answer before tools
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
LOSS = ("weight", "loss")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_NO_LIST = "the dialog is not a list of turns"


@dataclass(frozen=True, slots=True)
class Tags:
    """The keys of a turn: of who speaks and of what is said, or, as `pair`, of a question and its answer.

    `names` adds to the usual names of speakers those that this file uses.
    """

    role: str = "role"
    content: str = "content"
    names: dict[str, Speaker] = field(default_factory=dict)
    pair: tuple[str, str] | None = None


def read_turns(value: Any, tags: Tags) -> tuple[str, list[Message]]:
    """System prompt ("" for none) and the messages after it, which may begin and end with any of them.

    Raises BadRow where there are none, or where question and answer do not alternate.
    """
    value = as_list(value)
    if is_missing(value) or value == []:
        raise BadRow("no turns")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow(_NO_LIST)
    return _question_answer(value, tags.pair) if tags.pair else _spoken(value, tags)


def keys_read(turn: dict[str, Any], tags: Tags) -> set[str]:
    """The keys of a turn that `read_turns` reads."""
    if tags.pair:
        return {"system", *tags.pair, "output_with_loss"}
    keys = {tags.role, tags.content, *LOSS}
    match _speaker(turn.get(tags.role), tags):
        case "assistant":
            keys |= {*REASONING, "tool_calls", "function_call"}
        case "tool":
            keys |= {"name", "tool_call_id"}
    return keys


def answer(content: str, weight: float = 1.0, calls: tuple[ToolCall, ...] = (), reasoning: str = "") -> Message:
    """An assistant's message; a leading `<think>…</think>` becomes its reasoning, so that the template places it."""
    thought = None if reasoning else _THOUGHT.match(content)
    if thought:
        reasoning, content = thought[1].strip("\n"), content[thought.end() :].lstrip("\n")
    if not content.strip() and not calls:
        raise BadRow("no answer")
    return Message("assistant", content, weight, reasoning if reasoning.strip() else None, calls)


def tools_text(value: Any) -> str | None:
    """The tools of a row, a list or its JSON text, in one spelling; None for none. Raises BadRow."""
    if is_missing(value):
        return None
    tools = parse_json(value, "list of tools") if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("the tools are not a list of objects")
    return json_text(tools, "list of tools") if tools else None


def _question_answer(turns: list[dict[str, Any]], pair: tuple[str, str]) -> tuple[str, list[Message]]:
    """XTuner's turns: {system, input, output}; the first turn's system prompt holds for the dialog."""
    question, reply = pair
    system = text(turns[0].get("system"), "system prompt")
    messages = []
    for turn in turns:
        if text(turn.get("system"), "system prompt") not in ("", system):
            raise BadRow("the system prompt changes within the dialog")
        messages.append(Message("user", required(turn.get(question), "question")))
        loss = turn.get("output_with_loss")
        weight = 1.0 if is_missing(loss) else _weight(loss, "output_with_loss")
        messages.append(answer(required(turn.get(reply), "answer"), weight))
    return system, messages


def _spoken(turns: list[dict[str, Any]], tags: Tags) -> tuple[str, list[Message]]:
    """Turns of a system, a user, an assistant and tools; several answers of tools may follow one another."""
    system = ""
    messages: list[Message] = []
    callers: dict[str, str] = {}  # id of a tool call -> name of the tool
    for index, turn in enumerate(turns):
        speaker = _speaker(turn.get(tags.role), tags)
        if speaker == "system":
            if index:
                raise BadRow("a system prompt stands after the first turn")
            system = _content(turn.get(tags.content), "system prompt")
            _require_no_loss(turn)
            continue
        message = _message(turn, speaker, tags, callers)
        before: Role | None = messages[-1].role if messages else None
        if message.role in _WRONG_AFTER[before]:
            raise BadRow("question and answer do not alternate")
        messages.append(message)
    if not messages:
        raise BadRow("no turns but a system prompt")
    return system, messages


_WRONG_AFTER: dict[Role | None, tuple[Role, ...]] = {
    None: ("tool",),
    "user": ("user", "tool"),
    "assistant": ("assistant",),
    "tool": ("user",),
}


def _speaker(name: Any, tags: Tags) -> Speaker:
    known: Speaker | None = None
    if isinstance(name, str):
        known = tags.names.get(name) or SPEAKERS.get(name.strip().casefold())
    if known is None:
        raise BadRow(f"a turn has the role {name!r}; read are system, user, assistant and tool")
    return known


def _message(turn: dict[str, Any], speaker: Speaker, tags: Tags, callers: dict[str, str]) -> Message:
    value = turn.get(tags.content)
    if speaker in ("user", "tool"):
        _require_no_loss(turn)
    if speaker == "user":
        content = _content(value, "question")
        if not content:
            raise BadRow("no question")
        return Message("user", content)
    if speaker == "tool":
        said = turn.get("tool_call_id")
        caller = callers.get(said) if isinstance(said, str) else None
        return Message("tool", _tool_content(value), name=text(turn.get("name"), "name of a tool") or caller)
    weight = _turn_weight(turn)
    if speaker == "call":
        reasoning, calls = _written_calls(required(value, "answer"))
        return answer("", weight, calls, reasoning)
    calls = _tool_calls(turn, callers)
    given = next((turn[key] for key in REASONING if not is_missing(turn.get(key))), None)
    return answer(_content(value, "answer"), weight, calls, text(given, "reasoning"))


def _content(value: Any, what: str) -> str:
    """Text, or OpenAI's list of parts; parts that are not text are refused by their type."""
    if not isinstance(value, list):
        return text(value, what)
    words = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else "text"
        if kind != "text":
            raise BadRow(f"a turn has a part of the type {kind!r}, but only text can be learnt")
        said = part.get("text") if isinstance(part, dict) else part
        if not isinstance(said, str):
            raise BadRow(f"the {what} is not text")
        words.append(said)
    return text("".join(words), what)


def _tool_content(value: Any) -> str:
    """What a tool returned: text, which may be empty, or an object, written as JSON."""
    parts = isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value)
    if isinstance(value, (dict, list)) and not parts:
        return json_text(value, "answer of a tool")
    return _content(value, "answer of a tool")


def _tool_calls(turn: dict[str, Any], callers: dict[str, str]) -> tuple[ToolCall, ...]:
    """OpenAI's `tool_calls`, or the one `function_call` of its older form; `callers` learns the ids."""
    calls = turn.get("tool_calls")
    if is_missing(calls):
        single = turn.get("function_call")
        return () if is_missing(single) else (as_tool_call(single),)
    calls = as_list(calls)
    if not isinstance(calls, list):
        raise BadRow("tool_calls is not a list")
    read = []
    for item in calls:
        read.append(as_tool_call(item))
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            callers[item["id"]] = read[-1].name
    return tuple(read)


def _written_calls(content: str) -> tuple[str, tuple[ToolCall, ...]]:
    """ShareGPT's function call, maybe after a thought: JSON of {name, arguments}, or a list of those."""
    thought = _THOUGHT.match(content)
    reasoning = thought[1].strip("\n") if thought else ""
    calls = parse_json(content[thought.end() :] if thought else content, "tool call")
    listed = calls if isinstance(calls, list) else [calls]
    if not listed:
        raise BadRow("no answer")
    return reasoning, tuple(
        as_tool_call(call.get("function", call) if isinstance(call, dict) else call) for call in listed
    )


def as_tool_call(value: Any) -> ToolCall:
    """The call in `{name, arguments}`, which may be the `function` of an object around it. Raises BadRow."""
    value = value.get("function", value) if isinstance(value, dict) else value
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRow("a tool call has no name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        arguments = parse_json(arguments, "argument object of a tool call")
    if is_missing(arguments):
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRow("the arguments of a tool call are not an object")
    return ToolCall(text(name, "name of a tool"), json_text(arguments, "argument object of a tool call"))


def _turn_weight(turn: dict[str, Any]) -> float:
    """Loss weight of an assistant's turn: its `weight` (OpenAI) or `loss` (XTuner, ms-swift), otherwise 1."""
    given = {key: _weight(turn[key], key) for key in LOSS if not is_missing(turn.get(key))}
    if len(set(given.values())) > 1:
        raise BadRow("weight and loss of a turn say different things")
    return next(iter(given.values()), 1.0)


def _weight(value: Any, key: str) -> float:
    if isinstance(value, (bool, int, float)) and math.isfinite(value) and value >= 0:
        return float(value)
    try:
        return float(truth(value, key))
    except BadRow:
        raise BadRow(f"the {key} of a turn is neither true or false nor a number from 0 up") from None


def _require_no_loss(turn: dict[str, Any]) -> None:
    for key in LOSS:
        if not is_missing(turn.get(key)) and _weight(turn[key], key) > 0:
            raise BadRow("a turn that is not the assistant's asks for loss")
