"""Examples -> rows of any form, for `tunewright data convert`: exactly, or not at all.

Every written row is read again; where that does not give the example back, the form cannot hold it and the row is
refused with what is in the way.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tunewright.data.columns import Format, Kind, Layout
from tunewright.data.examples import Dialog, Example, Labelled, Message, Preference, Prompt, Text, ToolCall
from tunewright.data.formats import read_example
from tunewright.data.turns import Tags
from tunewright.data.values import BadRow

SHAREGPT = Tags("from", "value")
XTUNER = Tags(pair=("input", "output"))
KINDS: dict[type[Example], Kind] = {
    Dialog: "dialog",
    Preference: "preference",
    Labelled: "labelled",
    Prompt: "prompt",
    Text: "text",
}


def write_row(example: Example, format: Format) -> dict[str, Any]:
    """The row that holds an example in a form. Raises BadRow where the form can't hold all of it."""
    row = WRITERS[format](example)
    layout = written_layout(format, KINDS[type(example)], row)
    try:
        same = read_example(row, layout, None, example.place) == example
    except BadRow as bad:
        raise BadRow(f"{format} can't hold this row: {bad}") from None
    if not same:
        raise BadRow(f"{format} can't hold this row exactly")
    return row


def written_layout(format: Format, kind: Kind, row: dict[str, Any]) -> Layout:
    """How a row of `write_row` is read."""
    roles = COLUMNS[format]
    columns = {roles[name]: name for name in row if name in roles}
    if format == "prompt-completion" and not isinstance(row.get("prompt", ""), str):
        columns = {"messages" if role == "prompt" else role: name for role, name in columns.items()}
    tags = {"sharegpt": SHAREGPT, "xtuner": XTUNER}.get(format, Tags())
    return Layout(format, columns, False, kind, tags)


# For each form, its columns and what they are read as.
COLUMNS: dict[Format, dict[str, str]] = {
    "alpaca": {
        "instruction": "prompt", "input": "query", "output": "response", "system": "system", "history": "history",
        "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label",
    },
    "query-response": {
        "query": "prompt", "response": "response", "system": "system", "history": "history", "tools": "tools",
        "rejected_response": "rejected", "label": "label",
    },
    "prompt-completion": {
        "prompt": "prompt", "completion": "response", "chosen": "chosen", "rejected": "rejected", "label": "label",
        "tools": "tools",
    },
    "sharegpt": {
        "conversations": "messages", "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected",
        "kto_tag": "label",
    },
    "openai": {
        "messages": "messages", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "label": "label",
    },
    "xtuner": {"conversation": "messages", "label": "label"},
    "hh": {"chosen": "chosen", "rejected": "rejected"},
    "text": {"text": "text"},
}  # fmt: skip


def _alpaca(example: Example) -> dict[str, Any]:
    system, history, question = _question_and_before(example, "alpaca")
    row: dict[str, Any] = {"instruction": question, "input": ""}
    match example:
        case Preference():
            row |= {"chosen": _plain(example.chosen, "alpaca"), "rejected": _plain(example.rejected, "alpaca")}
        case Dialog() | Labelled():
            row["output"] = _plain(_last(example), "alpaca")
    if isinstance(example, Labelled):
        row["kto_tag"] = example.good
    return row | _beside(example, system, history)


def _query_response(example: Example) -> dict[str, Any]:
    system, history, question = _question_and_before(example, "query-response")
    row: dict[str, Any] = {"query": question}
    match example:
        case Preference():
            row["response"] = _plain(example.chosen, "query-response")
            row["rejected_response"] = _plain(example.rejected, "query-response")
        case Dialog() | Labelled():
            row["response"] = _plain(_last(example), "query-response")
    if isinstance(example, Labelled):
        row["label"] = example.good
    return row | _beside(example, system, history)


def _prompt_completion(example: Example) -> dict[str, Any]:
    """Text where a prompt is one question, otherwise messages; of a dialog only the last answer is learnt."""
    prompt, answers = _prompt(example, "prompt-completion"), _answers(example)
    if isinstance(example, Dialog):
        if any(message.train for message in prompt):
            raise BadRow("prompt-completion learns the last answer only, this dialog has more")
        prompt = [replace(message, weight=1.0) for message in prompt]
    plain = len(prompt) == 1 and all(answer == Message("assistant", answer.content) for answer in answers.values())
    row: dict[str, Any] = {"prompt": prompt[0].content if plain else _messages(prompt)}
    for name, answer in answers.items():
        row["completion" if name == "answer" else name] = answer.content if plain else _messages([answer])
    if isinstance(example, Labelled):
        row["label"] = example.good
    return row | _tools_list(example)


def _openai(example: Example) -> dict[str, Any]:
    row: dict[str, Any]
    match example:
        case Dialog() | Prompt():
            row = {"messages": _messages(example.messages)}
        case Labelled():
            row = {"messages": _messages([*example.prompt, example.answer]), "label": example.good}
        case Preference():
            chosen, rejected = _messages([example.chosen]), _messages([example.rejected])
            row = {"messages": _messages(example.prompt), "chosen": chosen[0], "rejected": rejected[0]}
        case Text():
            row = {"messages": [{"role": "assistant", "content": example.text}]}
    return row | _tools_list(example)


def _sharegpt(example: Example) -> dict[str, Any]:
    row: dict[str, Any]
    match example:
        case Dialog() | Prompt():
            row = {"conversations": _shared(example.messages)}
        case Labelled():
            row = {"conversations": _shared([*example.prompt, example.answer]), "kto_tag": example.good}
        case Preference():
            chosen, rejected = _shared([example.chosen]), _shared([example.rejected])
            row = {"conversations": _shared(example.prompt), "chosen": chosen[0], "rejected": rejected[0]}
        case Text():
            raise BadRow("sharegpt can't hold raw text")
    system = example.messages[0] if isinstance(example, (Dialog, Prompt)) else example.prompt[0]
    if system.role == "system":
        row = {"system": system.content} | row
    return row | ({"tools": example.tools} if example.tools is not None else {})


def _xtuner(example: Example) -> dict[str, Any]:
    if isinstance(example, Text):
        return {"conversation": [{"input": "", "output": example.text}]}
    if isinstance(example, (Preference, Prompt)):
        raise BadRow("xtuner holds answered dialogs and raw text only")
    if example.tools is not None:
        raise BadRow("xtuner can't hold tools")
    messages = list(_all(example))
    system = {"system": messages.pop(0).content} if messages[0].role == "system" else {}
    turns: list[dict[str, Any]] = []
    for question, reply in zip(messages[::2], messages[1::2], strict=False):
        turn = {"input": _plain(question, "xtuner"), "output": _plain(replace(reply, weight=1.0), "xtuner")}
        turns.append(turn if reply.weight == 1 else {**turn, "output_with_loss": _whole(reply.weight, "xtuner")})
    turns[0] = system | turns[0]
    return {"conversation": turns} | ({"label": example.good} if isinstance(example, Labelled) else {})


def _hh(example: Example) -> dict[str, Any]:
    if not isinstance(example, Preference):
        raise BadRow("hh holds better and worse answers only")
    if example.tools is not None or example.prompt[0].role == "system":
        raise BadRow("hh can't hold a system prompt or tools")
    names = {"user": "Human", "assistant": "Assistant"}

    def transcript(turns: Sequence[Message]) -> str:
        return "".join(f"\n\n{names.get(turn.role, '')}: {_plain(turn, 'hh')}" for turn in turns)

    return {
        "chosen": transcript([*example.prompt, example.chosen]),
        "rejected": transcript([*example.prompt, example.rejected]),
    }


def _text(example: Example) -> dict[str, Any]:
    if not isinstance(example, Text):
        raise BadRow("text holds raw text only, and this row is a dialog")
    return {"text": example.text}


WRITERS: dict[Format, Callable[[Example], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "query-response": _query_response,
    "prompt-completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "openai": _openai,
    "xtuner": _xtuner,
    "hh": _hh,
    "text": _text,
}


def _all(example: Dialog | Labelled | Prompt) -> Sequence[Message]:
    return (*example.prompt, example.answer) if isinstance(example, Labelled) else example.messages


def _last(example: Dialog | Labelled) -> Message:
    return example.answer if isinstance(example, Labelled) else example.messages[-1]


def _prompt(example: Example, form: Format) -> Sequence[Message]:
    match example:
        case Dialog():
            return example.messages[:-1]
        case Prompt():
            return example.messages
        case Text():
            raise BadRow(f"{form} can't hold raw text")
        case _:
            return example.prompt


def _answers(example: Example) -> dict[str, Message]:
    match example:
        case Dialog() | Labelled():
            return {"answer": _last(example)}
        case Preference():
            return {"chosen": example.chosen, "rejected": example.rejected}
        case _:
            return {}


def _question_and_before(example: Example, form: Format) -> tuple[str, list[list[str]], str]:
    """System prompt, earlier turns and the last question of a form with columns of text."""
    *before, question = _prompt(example, form)
    system = before.pop(0).content if before and before[0].role == "system" else ""
    words = [_plain(message, form) for message in before]
    return system, [list(turn) for turn in zip(words[::2], words[1::2], strict=False)], _plain(question, form)


def _beside(example: Example, system: str, history: list[list[str]]) -> dict[str, Any]:
    found = {"system": system, "history": history, "tools": None if isinstance(example, Text) else example.tools}
    return {name: value for name, value in found.items() if value}


def _plain(message: Message, form: Format) -> str:
    """The text of a message that is nothing else."""
    if message.tool_calls or message.role == "tool":
        raise BadRow(f"{form} can't hold calls of tools")
    if message.role == "assistant" and message.weight != 1:
        raise BadRow(f"{form} can't hold an answer with a loss weight of its own")
    return _with_thought(message)


def _with_thought(message: Message) -> str:
    thought = f"<think>\n{message.reasoning}\n</think>\n\n" if message.reasoning is not None else ""
    return thought + message.content


def _whole(weight: float, form: Format) -> bool:
    if weight not in (0, 1):
        raise BadRow(f"{form} can't hold a loss weight between 0 and 1, or above")
    return bool(weight)


def _tools_list(example: Example) -> dict[str, Any]:
    tools = None if isinstance(example, Text) else example.tools
    return {} if tools is None else {"tools": json.loads(tools)}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """OpenAI's messages; calls of tools are numbered through, so that answers can name them."""
    written = []
    calls: list[tuple[str, str]] = []  # id and name of the calls that are not answered yet
    count = 0
    for message in messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            item["reasoning_content"] = message.reasoning
        if message.tool_calls:
            ids = [f"call_{count + index}" for index in range(len(message.tool_calls))]
            count += len(ids)
            calls = [(id, call.name) for id, call in zip(ids, message.tool_calls, strict=True)]
            item["tool_calls"] = [_call(id, call) for id, call in zip(ids, message.tool_calls, strict=True)]
        if message.name is not None:
            item["name"] = message.name
            found = next((call for call in calls if call[1] == message.name), None)
            if found:
                item["tool_call_id"] = found[0]
                calls.remove(found)
        if message.role == "assistant" and message.weight != 1:
            item["weight"] = int(message.weight) if message.weight == 0 else message.weight
        written.append(item)
    return written


def _call(id: str, call: ToolCall) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _shared(messages: Sequence[Message]) -> list[dict[str, str]]:
    """ShareGPT's turns without the system prompt, which has a column of its own."""
    written = []
    for message in messages:
        if message.role == "system":
            continue
        if message.role == "assistant" and message.weight != 1:
            raise BadRow("sharegpt can't hold an answer with a loss weight of its own")
        if message.tool_calls:
            if message.content:
                raise BadRow("sharegpt can't hold a call of tools and words in one turn")
            listed = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in message.tool_calls]
            called = json.dumps(listed[0] if len(listed) == 1 else listed, ensure_ascii=False)
            written.append({"from": "function_call", "value": _with_thought(replace(message, content=called))})
        elif message.role == "tool":
            if message.name is not None:
                raise BadRow("sharegpt can't hold the name of a tool that answers")
            written.append({"from": "observation", "value": message.content})
        else:
            speaker = "human" if message.role == "user" else "gpt"
            written.append({"from": speaker, "value": _with_thought(message)})
    return written
