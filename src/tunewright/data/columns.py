"""How the rows of a file are read: which form they have, which column holds what, and what a row is.

As the config says, otherwise found in the first rows: by the usual names of columns, and by what stands in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunewright.config.schema import SourceConfig
from tunewright.data import column_names as usual
from tunewright.data.first_rows import TURN_FORMS, FirstRows, listed
from tunewright.data.turns import Tags
from tunewright.errors import UsageError

Format = Literal["alpaca", "query-response", "prompt-completion", "sharegpt", "openai", "xtuner", "hh", "text"]
Kind = Literal["dialog", "preference", "labelled", "prompt", "text"]

RANKED_STAGES = ("rm", "dpo", "orpo", "simpo")  # learn from a better and a worse answer
LABELLED_STAGES = ("kto",)  # learn from answers known to be good or bad
PROMPT_STAGES = ("ppo", "grpo")  # need prompts only

WANTED: dict[str, Kind] = {
    "rm": "preference",
    "dpo": "preference",
    "orpo": "preference",
    "simpo": "preference",
    "kto": "labelled",
}
COLUMN_FORMS = ("alpaca", "query-response", "prompt-completion")
WHAT: dict[str, str] = {
    "dialog": "questions and answers",
    "preference": "better and worse answers",
    "labelled": "answers labelled good or bad",
    "prompt": "prompts",
    "text": "raw text",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are read: `columns` maps a key of `data.train.columns` to a name in the file.

    `guessed` says that the names are neither the config's nor those of a known form. `kind` is what a row holds.
    `tags` are the keys of turns, where cells hold turns; `written` are the roles of answers that hold them as text.
    """

    format: Format
    columns: dict[str, str]
    guessed: bool
    kind: Kind = "dialog"
    tags: Tags = field(default_factory=Tags)
    written: frozenset[str] = frozenset()


def choose_layout(rows: Sequence[Mapping[str, Any]], source: SourceConfig, stage: str | None, key: str) -> Layout:
    """Decide from the first rows of a file (`SAMPLE` of them are enough) how all of them are read.

    `key` is the config key of the source; a `stage` of None takes the rows for whatever they are. Raises UsageError
    where a named column is not there, or nothing fits.
    """
    table = FirstRows.over(rows, source, key)
    table.require_named()
    if stage == "pt" or (stage is None and _is_text(table)):
        return _text_layout(table, stage)
    if source.format == "text" or source.kind == "text" or "text" in table.named:
        raise UsageError(f"{source.path}: raw text is for method.stage: pt, but the stage is {stage}")
    kind = _kind(table, stage)
    wanted = None if stage is None else WANTED.get(stage)
    if wanted is not None and kind != wanted:
        raise UsageError(f"{source.path} holds {WHAT[kind]}, but method.stage: {stage} learns from {WHAT[wanted]}")
    needed = _needed(table, kind)
    if None in needed.values():
        raise UsageError(_nothing_fits(table, kind, needed, stage))
    return _layout(table, kind, {role: name for role, name in needed.items() if name is not None})


def widened(layout: Layout, other: Layout) -> Layout | None:
    """The layout with the columns that another one reads beside the same needed ones; None where they differ in more.

    Rows without those columns are read as before.
    """

    def needed(one: Layout) -> object:
        names = {role: name for role, name in one.columns.items() if role not in usual.OPTIONAL}
        return one.kind, names, one.tags, one.written, one.format == "hh"

    columns = {**layout.columns, **other.columns}
    if needed(layout) != needed(other) or any(columns[role] != name for role, name in layout.columns.items()):
        return None
    return replace(layout, columns=columns)


def _is_text(table: FirstRows) -> bool:
    """Whether rows that may be anything are raw text: as declared, one answer to nothing, or for want of all else."""
    source = table.source
    if "text" in (source.format, source.kind) or "text" in table.named:
        return True
    if source.kind != "auto":
        return False
    messages = table.messages()
    if messages is not None:
        return table.holds_lone_answer(messages)
    nothing = None in _needed(table, _kind(table, None)).values() and None in _context(table).values()
    return nothing and table.find("text", usual.TEXTS) is not None


def _text_layout(table: FirstRows, stage: str | None) -> Layout:
    source, key = table.source, table.key
    if source.kind not in ("auto", "text"):
        raise UsageError(f"{source.path} holds {WHAT[source.kind]}, but method.stage: pt learns from {WHAT['text']}")
    if source.format in (*COLUMN_FORMS, "hh") and source.guess:
        raise UsageError(f"{key}.format: {source.format} is for method.stage: sft, but pt learns from raw text")
    column = table.named.get("text") or (None if source.format in TURN_FORMS else table.find("text", usual.TEXTS))
    if column is None and not source.guess:  # LLaMA-Factory names the text of its pre-training sets so
        column = table.named.get("prompt")
        if column is not None and "response" in table.named:
            raise UsageError(f"{source.path} holds {WHAT['dialog']}, but method.stage: pt learns from {WHAT['text']}")
    if column is not None:
        return _checked(table, Layout("text", {"text": column}, table.guessed({"text": column}), "text"))
    messages = table.messages()
    if messages is None or not table.holds_lone_answer(messages):
        raise UsageError(_nothing_fits(table, "text", {"text": None}, stage))
    tags = table.tags(messages)
    return _checked(table, Layout(_turn_form(source, tags), {"messages": messages}, False, "text", tags))


def _kind(table: FirstRows, stage: str | None) -> Kind:
    """What a row holds: as declared, as the stage needs it, or as the columns tell."""
    if table.source.kind != "auto":
        return table.source.kind
    if stage in RANKED_STAGES or "chosen" in table.named or "rejected" in table.named:
        return "preference"
    if stage in LABELLED_STAGES or "label" in table.named:
        return "labelled"
    if stage is None and (ranked := _needed(table, "preference")).get("rejected") and None not in ranked.values():
        return "preference"  # which holds more than a dialog
    dialog = _needed(table, "dialog")
    response = dialog.get("response")
    answered = table.ends_with_answer(dialog.get("messages")) if response is None else not table.holds_two(response)
    if None not in dialog.values() and answered:
        return "labelled" if table.label() else "dialog"
    if None not in _needed(table, "preference").values():
        return "preference"
    if stage is None and None not in _context(table).values() and table.find("text", usual.TEXTS) is None:
        return "prompt"
    return "prompt" if stage in PROMPT_STAGES else "dialog"


def _needed(table: FirstRows, kind: Kind) -> dict[str, str | None]:
    """The columns that make a row of this kind, None where none was found."""
    if kind == "prompt":
        return _context(table)
    if kind == "preference":
        return _ranked(table)
    messages = table.messages()
    if messages is None and table.source.format not in TURN_FORMS:
        found = dict(zip(("prompt", "response"), table.pair(), strict=True))
    else:
        found = {"messages": messages}
        response = table.find("response", usual.ANSWERS, [messages] if messages else [])
        if response is not None and not table.ends_with_answer(messages):
            found["response"] = response
    return found if kind == "dialog" else {**found, "label": table.label()}


def _context(table: FirstRows) -> dict[str, str | None]:
    """What is replied to."""
    messages = table.messages()
    if messages is None and table.source.format not in TURN_FORMS:
        return {"prompt": table.find("prompt", usual.QUESTIONS)}
    return {"messages": messages}


def _ranked(table: FirstRows) -> dict[str, str | None]:
    """A better and a worse answer, and what they reply to, unless they are whole dialogs themselves."""
    chosen, rejected = table.ranked()
    if chosen is not None and table.holds_whole(chosen):
        named: dict[str, str | None] = {r: name for r, name in table.named.items() if r in ("messages", "prompt")}
        return {**named, "chosen": chosen, "rejected": rejected}
    found = _context(table)
    if chosen is not None:
        prompt = table.find("prompt", usual.QUESTIONS)
        if prompt is not None and table.ends_with_answer(found.get("messages")):  # the dialog with an answer over again
            found = {"prompt": prompt}
        return {**found, "chosen": chosen, "rejected": rejected}
    if rejected is not None and "messages" in found:  # then the better one is the dialog's own
        return {**found, "rejected": rejected}
    response = table.find("response", usual.ANSWERS, [name for name in (*found.values(), rejected) if name])
    if response is not None and (rejected is not None or table.holds_two(response, as_text=True)):
        return {**found, "response": response, **({"rejected": rejected} if rejected else {})}
    return {**found, "chosen": None, "rejected": rejected}


def _layout(table: FirstRows, kind: Kind, needed: dict[str, str]) -> Layout:
    columns = dict(needed)
    for role, candidates in usual.OPTIONAL.items():
        if role in ("query", "history") and "prompt" not in needed:
            continue
        name = table.find(role, candidates, columns.values())
        if name is not None:
            columns[role] = name
    answers = next((needed[role] for role in ("messages", "chosen", "response") if role in needed), None)
    tags = table.tags(answers)
    if "chosen" in needed and table.holds_transcript(needed["chosen"]):
        form: Format = "hh"
    else:
        form = _column_form(table.source, columns) if "prompt" in needed else _turn_form(table.source, tags)
    written = frozenset(
        role
        for role in ("response", "chosen", "rejected")
        if needed.get(role) in table.written and ("messages" in needed or table.holds_whole(needed[role]))
    )
    return _checked(table, Layout(form, columns, table.guessed(needed), kind, tags, written))


def _checked(table: FirstRows, layout: Layout) -> Layout:
    """The layout, unless the config names a column or a tag that it has no use for."""
    used = layout.columns.values()
    meaningless = next((f"columns.{role}" for role, name in table.named.items() if name not in used), None)
    tag = next((name for name, value in table.source.tags if value is not None), None)
    spoken = "messages" in layout.columns or any(map(table.turns, used))
    if meaningless is None and tag is not None and (not spoken or layout.tags.pair is not None):
        meaningless = f"tags.{tag}"
    if meaningless is not None:
        what = "dialogs" if layout.kind == "dialog" and "messages" in layout.columns else WHAT[layout.kind]
        what = "turns of a question and its answer" if spoken and meaningless.startswith("tags") else what
        raise UsageError(f"{table.key}.{meaningless} has no meaning for {what}: remove it")
    return layout


def _column_form(source: SourceConfig, columns: Mapping[str, str]) -> Format:
    if source.format in ("alpaca", "query-response", "prompt-completion"):
        return source.format
    prompt, response = (columns.get(role, "").strip().casefold() for role in ("prompt", "response"))
    if prompt == "query" and response in ("response", "") and "query" not in columns:
        return "query-response"
    if prompt == "prompt" and response in ("completion", "") and not {"query", "history"} & columns.keys():
        return "prompt-completion"
    return "alpaca"


def _turn_form(source: SourceConfig, tags: Tags) -> Format:
    if source.format in ("sharegpt", "openai", "xtuner", "prompt-completion"):
        return source.format
    if tags.pair is not None:
        return "xtuner"
    return "openai" if (tags.role, tags.content) == ("role", "content") else "sharegpt"


def _nothing_fits(table: FirstRows, kind: Kind, needed: Mapping[str, str | None], stage: str | None) -> str:
    source, key = table.source, table.key
    missing = [role for role, name in needed.items() if name is None]
    what = "dialogs" if kind == "dialog" and "messages" in needed else WHAT[kind]
    message = (
        f"{source.path}: no columns for {what} were recognised among "
        f"{listed(table.first)}: name them, {key}.columns: {{{', '.join(f'{role}: …' for role in missing)}}}"
    )
    if stage is None:
        return message
    answers = (None not in _needed(table, other).values() for other in ("dialog", "preference"))
    if kind == "text" and any(answers):
        return f"{message}, or learn from questions and answers, method.stage: sft"
    if kind == "dialog" and table.find("text", usual.TEXTS):
        return f"{message}, or learn from raw text, method.stage: pt"
    return message
