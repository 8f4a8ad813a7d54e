"""How the rows of a file are read: which form they have, which column holds what, and what a row is.

As the config says, otherwise found in the first rows: by the usual names of columns, and by what stands in them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from tunewright.config.schema import SourceConfig, TagsConfig
from tunewright.data import column_names as usual
from tunewright.data.suggest import nearest
from tunewright.data.turns import SPEAKERS, Speaker, Tags
from tunewright.data.values import as_list, is_missing
from tunewright.errors import UsageError

Format = Literal["alpaca", "query-response", "prompt-completion", "sharegpt", "openai", "xtuner", "hh", "text"]
Kind = Literal["dialog", "preference", "labelled", "prompt", "text"]

SAMPLE = 1000  # rows that the layout of a file is chosen from
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
TURN_FORMS = ("sharegpt", "openai", "xtuner", "conversation")
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
    `tags` are the keys of turns, where cells hold turns.
    """

    format: Format
    columns: dict[str, str]
    guessed: bool
    kind: Kind = "dialog"
    tags: Tags = field(default_factory=Tags)


def choose_layout(rows: Sequence[Mapping[str, Any]], source: SourceConfig, stage: str, key: str) -> Layout:
    """Decide from the first rows of a file (`SAMPLE` of them are enough) how all of them are read.

    `key` is the config key of the source. Raises UsageError where a named column is not there, or nothing fits.
    """
    table = _Table.over(rows, source, key)
    table.require_named()
    if stage == "pt":
        return _text_layout(table)
    if source.format == "text" or source.kind == "text" or "text" in table.named:
        raise UsageError(f"{source.path}: raw text is for method.stage: pt, but the stage is {stage}")
    kind = _kind(table, stage)
    wanted = WANTED.get(stage)
    if wanted is not None and kind != wanted:
        raise UsageError(f"{source.path} holds {WHAT[kind]}, but method.stage: {stage} learns from {WHAT[wanted]}")
    needed = _needed(table, kind)
    if None in needed.values():
        raise UsageError(_nothing_fits(table, kind, needed))
    return _layout(table, kind, {role: name for role, name in needed.items() if name is not None})


def _text_layout(table: "_Table") -> Layout:
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
        raise UsageError(_nothing_fits(table, "text", {"text": None}))
    tags = table.tags(messages)
    return _checked(table, Layout(_turn_form(source, tags), {"messages": messages}, False, "text", tags))


def _kind(table: "_Table", stage: str) -> Kind:
    """What a row holds: as declared, as the stage needs it, or as the columns tell."""
    if table.source.kind != "auto":
        return table.source.kind
    if stage in RANKED_STAGES or "chosen" in table.named or "rejected" in table.named:
        return "preference"
    if stage in LABELLED_STAGES or "label" in table.named:
        return "labelled"
    dialog = _needed(table, "dialog")
    response = dialog.get("response")
    answered = table.ends_with_answer(dialog.get("messages")) if response is None else not table.holds_two(response)
    if None not in dialog.values() and answered:
        return "labelled" if table.label() else "dialog"
    if None not in _needed(table, "preference").values():
        return "preference"
    return "prompt" if stage in PROMPT_STAGES else "dialog"


def _needed(table: "_Table", kind: Kind) -> dict[str, str | None]:
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


def _context(table: "_Table") -> dict[str, str | None]:
    """What is replied to."""
    messages = table.messages()
    if messages is None and table.source.format not in TURN_FORMS:
        return {"prompt": table.find("prompt", usual.QUESTIONS)}
    return {"messages": messages}


def _ranked(table: "_Table") -> dict[str, str | None]:
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
    if response is not None and (rejected is not None or table.holds_two(response)):
        return {**found, "response": response, **({"rejected": rejected} if rejected else {})}
    return {**found, "chosen": None, "rejected": rejected}


def _layout(table: "_Table", kind: Kind, needed: dict[str, str]) -> Layout:
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
    return _checked(table, Layout(form, columns, table.guessed(needed), kind, tags))


def _checked(table: "_Table", layout: Layout) -> Layout:
    """The layout, unless the config names a column that it has no use for."""
    used = layout.columns.values()
    meaningless = next((role for role, name in table.named.items() if name not in used), None)
    if meaningless is not None:
        what = "dialogs" if layout.kind == "dialog" and "messages" in layout.columns else WHAT[layout.kind]
        raise UsageError(f"{table.key}.columns.{meaningless} has no meaning for {what}: remove it")
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


@dataclass(frozen=True, slots=True)
class _Table:
    """The first rows of a file: its columns with a value of each, and what the config names.

    `first` holds the first value that is not missing; where most are lists of turns, the first of those. `boolean`
    are the columns with nothing but true and false.
    """

    source: SourceConfig
    key: str
    rows: int
    first: dict[str, Any]
    boolean: frozenset[str]
    named: dict[str, str]

    @classmethod
    def over(cls, rows: Sequence[Mapping[str, Any]], source: SourceConfig, key: str) -> "_Table":
        values: dict[str, list[Any]] = {}
        for row in rows[:SAMPLE]:
            for name, value in row.items():
                column = values.setdefault(name, [])
                if not is_missing(value):
                    column.append(as_list(value))
        first = {name: _typical(column) for name, column in values.items()}
        boolean = {name for name, column in values.items() if column and all(isinstance(v, bool) for v in column)}
        named = {role: name for role, name in source.columns if name is not None}
        if not named and not source.guess:
            own = usual.OWN.get(source.format, {})
            named = {role: name for role, name in own.items() if role not in usual.OPTIONAL or name in first}
        return cls(source, key, len(rows), first, frozenset(boolean), named)

    def require_named(self) -> None:
        """Every named column is there; one that a row may lack need not stand among the first rows of a long file."""
        for role, name in self.named.items():
            if name in self.first or (role in usual.OPTIONAL and self.rows >= SAMPLE):
                continue
            has = f"{self.source.path} has no column {name!r}, it has {_listed(self.first)}"
            raise UsageError(f"{self.key}.columns.{role}: {has}{nearest(name, self.first)}")

    def find(self, role: str, candidates: Collection[str], taken: Collection[str] = ()) -> str | None:
        """The column named for a role, or the one called by the first of the candidates that is there."""
        if role in self.named or not self.source.guess:
            return self.named.get(role)
        free = (name for name in self.first if name not in taken and name not in self.named.values())
        folded = {name.strip().casefold(): name for name in free}
        return next((folded[candidate] for candidate in candidates if candidate in folded), None)

    def pair(self) -> tuple[str | None, str | None]:
        """Question and answer: the first known pair that is there and agrees with what the config names."""
        own = usual.OWN.get(self.source.format, {})
        first = (own["prompt"], own["response"]) if "response" in own else ("", "")
        for question, answer in (first, *usual.PAIRS):
            found = self.find("prompt", (question,)), self.find("response", (answer,))
            if all(found):
                return found
        return self.named.get("prompt"), self.named.get("response")

    def messages(self) -> str | None:
        """The column with the turns of a dialog."""
        if self.source.format in ("alpaca", "query-response"):
            return None
        if "messages" in self.named:
            return self.named["messages"]
        prompt = self.named.get("prompt")
        if prompt is not None or "response" in self.named:
            return prompt if self.turns(prompt) else None
        if not self.source.guess:
            return None
        declared = self.source.format in TURN_FORMS  # then a column that only looks empty so far will do
        listed = {name.strip().casefold(): name for name in self.first if declared or self.turns(name)}
        candidates = ("prompt",) if self.source.format == "prompt-completion" else (*usual.MESSAGES, "prompt")
        return next((listed[name] for name in candidates if name in listed), None)

    def ranked(self) -> tuple[str | None, str | None]:
        """The columns of the better and of the worse answer."""
        for better, worse in usual.RANKED:
            chosen, rejected = self.find("chosen", (better,)), self.find("rejected", (worse,))
            if chosen and rejected:
                return chosen, rejected
        chosen = self.named.get("chosen")
        return chosen, self.named.get("rejected") if chosen else self.find("rejected", usual.REJECTED)

    def label(self) -> str | None:
        """The column that says whether the answer is good: the named one, or one with nothing but true and false."""
        found = self.find("label", usual.LABELS)
        return found if "label" in self.named or found in self.boolean else None

    def turns(self, column: str | None) -> list[dict[str, Any]]:
        """The turns of a typical cell, [] where it holds none; a message alone is one turn."""
        value = self.first.get(column) if column is not None else None
        turns = [value] if isinstance(value, dict) else value
        return turns if _is_turns(turns) else []

    def ends_with_answer(self, column: str | None) -> bool:
        """Whether a typical cell is a dialog that does."""
        turns, tags = self.turns(column), self.tags(column)
        return bool(turns) and (tags.pair is not None or _speaker(turns[-1], tags) in ("assistant", "call"))

    def holds_lone_answer(self, column: str) -> bool:
        """Whether a typical cell is one answer to nothing: how some write a text to go on learning from."""
        turns, tags = self.turns(column), self.tags(column)
        if len(turns) != 1:
            return False
        return is_missing(turns[0].get(tags.pair[0])) if tags.pair else _speaker(turns[0], tags) == "assistant"

    def holds_whole(self, column: str) -> bool:
        """Whether a column of answers holds whole dialogs."""
        turns = self.turns(column)
        return self.holds_transcript(column) or (
            len(turns) > 1 and _speaker(turns[0], self.tags(column)) in ("system", "user")
        )

    def holds_transcript(self, column: str) -> bool:
        """Whether a column of answers holds whole dialogs as Anthropic's HH writes them, each in one text."""
        value = self.first.get(column)
        seen = isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value
        return self.source.format == "hh" or seen

    def holds_two(self, column: str) -> bool:
        """Whether a column holds a better and a worse answer in a list."""
        value = self.first.get(column)
        return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)

    def tags(self, column: str | None) -> Tags:
        """The keys of turns: as the config says, otherwise the usual ones that a typical cell has."""
        declared, form = self.source.tags, self.source.format
        keys = {key for turn in self.turns(column) for key, value in turn.items() if not is_missing(value)}
        role = declared.role_tag or next((name for name in usual.ROLE_KEYS if name in keys), None)
        content = declared.content_tag or next((name for name in usual.CONTENT_KEYS if name in keys - {role}), None)
        pair = next((pair for pair in usual.TURN_PAIRS if pair[1] in keys), None)
        if form == "xtuner" or (role is None and pair is not None):
            return Tags(names=_names(declared), pair=pair or usual.TURN_PAIRS[0])
        plain = ("from", "value") if form == "sharegpt" and not keys else ("role", "content")
        return Tags(role or plain[0], content or plain[1], _names(declared))

    def guessed(self, needed: Mapping[str, str]) -> bool:
        """Whether neither the config nor a known form gave the names."""
        if all(self.named.get(role) == name for role, name in needed.items()):
            return False
        folded = [name.strip().casefold() for name in needed.values()]
        return tuple(name for name in folded if name not in usual.STANDARD_ANSWERS) not in usual.STANDARD


def _typical(values: Sequence[Any]) -> Any:
    """The first value, or where most are lists of turns, the first of those; None for no values."""
    turns = [value for value in values if _is_turns(value)]
    return turns[0] if 2 * len(turns) > len(values) else next(iter(values), None)


def _is_turns(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _speaker(turn: Mapping[str, Any], tags: Tags) -> Speaker | None:
    name = turn.get(tags.role)
    return (tags.names.get(name) or SPEAKERS.get(name.strip().casefold())) if isinstance(name, str) else None


def _names(tags: TagsConfig) -> dict[str, Speaker]:
    speakers: dict[Speaker, str | None] = {
        "user": tags.user_tag,
        "assistant": tags.assistant_tag,
        "tool": tags.observation_tag,
        "call": tags.function_tag,
        "system": tags.system_tag,
    }
    return {name: speaker for speaker, name in speakers.items() if name is not None}


def _nothing_fits(table: _Table, kind: Kind, needed: Mapping[str, str | None]) -> str:
    source, key = table.source, table.key
    missing = [role for role, name in needed.items() if name is None]
    what = "dialogs" if kind == "dialog" and "messages" in needed else WHAT[kind]
    message = (
        f"{source.path}: no columns for {what} were recognised among "
        f"{_listed(table.first)}: name them, {key}.columns: {{{', '.join(f'{role}: …' for role in missing)}}}"
    )
    answers = (None not in _needed(table, other).values() for other in ("dialog", "preference"))
    if kind == "text" and any(answers):
        return f"{message}, or learn from questions and answers, method.stage: sft"
    if kind == "dialog" and table.find("text", usual.TEXTS):
        return f"{message}, or learn from raw text, method.stage: pt"
    return message


def _listed(columns: Collection[str]) -> str:
    listed = list(columns)
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return (", ".join(listed[:12]) or "none") + more
