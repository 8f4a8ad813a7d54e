"""Rows of a file -> examples, or the reason why a row is none.

A row is about what is asked (columns of text, or a list of turns) and what is answered: one answer (`Dialog`), a
better and a worse one (`Preference`), one known to be good or bad (`Labelled`), none (`Prompt`); or it is raw text.
`choose_layout` of `columns.py` tells which, `turns.py` reads the turns, `formats_write.py` writes rows again.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tunewright.data.column_names import MEDIA
from tunewright.data.columns import LABELLED_STAGES, PROMPT_STAGES, RANKED_STAGES, Layout
from tunewright.data.examples import Dialog, Example, Labelled, Message, Place, Preference, Prompt, Text
from tunewright.data.turns import answer, keys_read, read_turns, tools_text
from tunewright.data.values import LABELLED_BAD, BadRow, as_list, is_empty, is_missing, required, text, truth

__all__ = ["BadRow", "for_stage", "read_example", "unread_keys"]

_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")

Turns = tuple[str, list[Message]]  # a system prompt, "" for none, and what follows it


def read_example(row: dict[str, Any], layout: Layout, system: str | None, place: Place) -> Example:
    """The example that a row holds; `system` fills where it has no system prompt. Raises BadRow."""
    columns = layout.columns
    for name in MEDIA:
        if row.get(name):
            raise BadRow(f"the row has {name}, but only text can be learnt")
    if layout.kind == "text":
        return Text(_document(row, layout), place)
    own = text(row.get(columns["system"]), "system prompt") if "system" in columns else ""
    tools = tools_text(row.get(columns["tools"])) if "tools" in columns else None
    asked = _asked(row, layout)
    if layout.kind == "preference":
        (spoken, chosen), (spoken_there, rejected) = _ranked(row, layout, asked)
        if spoken != spoken_there or chosen[:-1] != rejected[:-1]:
            raise BadRow("the better and the worse answer reply to different dialogs")
        prompt = _prompt(spoken or own or system, chosen[:-1])
        return Preference(prompt, chosen[-1], rejected[-1], place, tools)
    if layout.kind == "prompt":
        return Prompt(_prompt(asked[0] or own or system, asked[1]), place, tools)
    spoken, turns = _answered(row, layout, asked)
    prompt = _prompt(spoken or own or system, turns[:-1])
    if layout.kind == "labelled":
        good = row.get(columns["label"])
        if is_missing(good):
            raise BadRow("no label")
        return Labelled(prompt, turns[-1], truth(good, "label"), place, tools)
    if not any(turn.train for turn in turns):
        raise BadRow("no answer of the dialog carries loss")
    return Dialog((*prompt, turns[-1]), place, tools)


def unread_keys(row: dict[str, Any], layout: Layout) -> Iterator[str]:
    """Keys of turns that `read_example` passes over although something stands there, as `column[].key`."""
    for role in ("messages", "chosen", "rejected", "response"):
        if role not in layout.columns:
            continue
        value = as_list(row.get(layout.columns[role])) if role == "messages" else _reply(row, role, layout)
        turns = value if isinstance(value, list) else [value]
        for turn in (turn for turn in turns if isinstance(turn, dict)):
            read = keys_read(turn, layout.tags)
            yield from (
                f"{layout.columns[role]}[].{key}" for key in turn if key not in read and not is_empty(turn[key])
            )


def for_stage(example: Example, stage: str) -> Example:
    """The example as a stage learns from it; itself where that is its own kind.

    sft takes the better answer of a preference and an answer labelled good; ppo and grpo take the prompt of any.
    Raises BadRow where the stage can't learn from it.
    """
    if stage == "pt":
        if not isinstance(example, Text):
            raise BadRow("pre-training learns from raw text, which this row is not")
        return example
    if isinstance(example, Text):
        raise BadRow("the row is raw text, which only pre-training learns from")
    if stage in RANKED_STAGES:
        if not isinstance(example, Preference):
            raise BadRow("the row has no better and worse answer")
        if example.chosen == example.rejected:
            raise BadRow("the better and the worse answer are the same")
        return example
    if stage in LABELLED_STAGES:
        if not isinstance(example, Labelled):
            raise BadRow("the row's answer is not labelled good or bad")
        return example
    return _prompt_of(example) if stage in PROMPT_STAGES else _dialog_of(example)


def _dialog_of(example: Dialog | Preference | Labelled | Prompt) -> Dialog:
    match example:
        case Dialog():
            return example
        case Prompt():
            raise BadRow("no answer")
        case Preference():
            best = example.chosen
        case Labelled():
            if not example.good:
                raise BadRow(LABELLED_BAD)
            best = example.answer
    turns = (*example.prompt, best)
    if not any(turn.train for turn in turns):
        raise BadRow("no answer of the dialog carries loss")
    return Dialog(turns, example.place, example.tools)


def _prompt_of(example: Dialog | Preference | Labelled | Prompt) -> Prompt:
    match example:
        case Prompt():
            return example
        case Dialog():
            return Prompt(example.messages[:-1], example.place, example.tools)
        case Preference() | Labelled():
            return Prompt(example.prompt, example.place, example.tools)


def _document(row: dict[str, Any], layout: Layout) -> str:
    """Raw text, or the one answer to nothing that some write it as."""
    if "text" in layout.columns:
        return required(row.get(layout.columns["text"]), "text")
    value, pair = as_list(row.get(layout.columns["messages"])), layout.tags.pair
    if pair is not None:
        if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
            raise BadRow("pre-training learns from raw text, which this row is not")
        if not is_missing(value[0].get(pair[0])):
            raise BadRow("pre-training learns from raw text, but this row has a question")
        return required(value[0].get(pair[1]), "text")
    system, turns = read_turns(value, layout.tags)
    if system or len(turns) != 1 or turns[0].role != "assistant" or turns[0].tool_calls:
        raise BadRow("pre-training learns from raw text, which this row is not")
    words = value[0].get(layout.tags.content)
    return words if isinstance(words, str) else turns[0].content  # not `content`: a thought belongs to the text


def _asked(row: dict[str, Any], layout: Layout) -> Turns:
    """What stands before the answers of other columns, or the whole dialog where there are none."""
    columns = layout.columns
    if "messages" in columns:
        return read_turns(row.get(columns["messages"]), layout.tags)
    if "prompt" not in columns:
        return "", []
    turns = []
    for question, reply in _history(row.get(columns["history"]) if "history" in columns else None):
        turns += [Message("user", question), answer(reply)]
    parts = [text(row.get(columns[role]), "question") for role in ("prompt", "query") if role in columns]
    question = "\n".join(part for part in parts if part)
    if not question:
        raise BadRow("no question")
    return "", [*turns, Message("user", question)]


def _history(value: Any) -> list[tuple[str, str]]:
    """Earlier turns, each [question, answer]; they are trained like the last one."""
    value = as_list(value)
    if is_missing(value):
        return []
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise BadRow("history is not a list of [question, answer]")
    return [
        (required(question, "question in history"), required(reply, "answer in history")) for question, reply in value
    ]


def _answered(row: dict[str, Any], layout: Layout, asked: Turns) -> Turns:
    """The whole dialog of a row with one answer."""
    if "response" not in layout.columns:
        if asked[1][-1].role != "assistant":
            raise BadRow("the dialog does not end with an answer")
        return asked
    if layout.kind == "dialog" and "messages" in layout.columns:
        # a prompt with a completion of its own: what the prompt already says is not learnt
        asked = asked[0], [replace(turn, weight=0.0) if turn.train else turn for turn in asked[1]]
    return _completed(asked, _reply(row, "response", layout), layout)


def _ranked(row: dict[str, Any], layout: Layout, asked: Turns) -> tuple[Turns, Turns]:
    """The dialog with the better and the dialog with the worse answer."""
    columns = layout.columns
    if "rejected" not in columns:
        both = as_list(row.get(columns["response"]))
        if not isinstance(both, list) or len(both) != 2:
            raise BadRow("the answer is not a list of a better and a worse one")
        return _completed(asked, both[0], layout), _completed(asked, both[1], layout)
    if "chosen" in columns or "response" in columns:
        chosen = _completed(asked, _reply(row, "chosen" if "chosen" in columns else "response", layout), layout)
    else:
        chosen = asked
        if chosen[1][-1].role != "assistant":
            raise BadRow("the dialog does not end with an answer")
        asked = asked[0], asked[1][:-1]
    return chosen, _completed(asked, _reply(row, "rejected", layout), layout)


def _reply(row: dict[str, Any], role: str, layout: Layout) -> Any:
    """The cell of an answer. What is text stays text, unless the layout says that turns are written so."""
    value = row.get(layout.columns[role])
    turns = as_list(value) if role in layout.written else None
    if isinstance(turns, list) and turns and all(isinstance(m, dict) and layout.tags.role in m for m in turns):
        return turns
    return value


def _completed(asked: Turns, value: Any, layout: Layout) -> Turns:
    """What is asked and an answer to it: text, a message, the messages of it, or the whole dialog over again."""
    system, turns = asked
    if layout.format == "hh":
        return _transcript(required(value, "answer"))
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(m, dict) and layout.tags.role in m for m in messages):
        return system, [*turns, answer(required(value, "answer"))]
    if not messages:
        raise BadRow("no answer")
    spoken, reply = read_turns(messages, layout.tags)
    if reply[-1].role != "assistant":
        raise BadRow("an answer does not end with the assistant's turn")
    if reply[0].role == "assistant" and not spoken:
        if not turns:
            raise BadRow("no question")
        return system, [*turns, *reply]
    if turns and turns[-1].content not in [turn.content for turn in reply[:-1]]:
        raise BadRow("an answer does not reply to the prompt")
    return spoken or system, reply


def _transcript(written: str) -> Turns:
    """A dialog in one text, each turn after an empty line, `Human:` or `Assistant:`, as Anthropic's HH has it."""
    lead, *parts = _HH_TURN.split(written.lstrip("\n"))
    if lead.strip() or not parts:
        raise BadRow("the dialog does not begin with 'Human:'")
    turns: list[Message] = []
    for name, said in zip(parts[::2], parts[1::2], strict=True):
        if name != ("Assistant" if len(turns) % 2 else "Human"):
            raise BadRow("question and answer do not alternate")
        words = said.strip()
        turns.append(
            answer(required(words, "answer")) if len(turns) % 2 else Message("user", required(words, "question"))
        )
    if len(turns) % 2:
        raise BadRow("the dialog does not end with an answer")
    return "", turns


def _prompt(system: str | None, turns: list[Message]) -> tuple[Message, ...]:
    """A system prompt, if there is one, and turns that an answer can follow."""
    if not turns or turns[0].role != "user":
        raise BadRow("no question comes before the answer")
    if turns[-1].role == "assistant":
        raise BadRow("the prompt ends with an answer")
    first = (Message("system", system),) if system and system.strip() else ()
    return (*first, *turns)
