"""The first rows of a file, and what they tell: which columns there are, what they are called and what stands in them.

A column holds what most of its cells hold: one odd row decides nothing.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from tunewright.config.schema import SourceConfig, TagsConfig
from tunewright.data import column_names as usual
from tunewright.data.suggest import nearest
from tunewright.data.turns import SPEAKERS, Speaker, Tags
from tunewright.data.values import as_list, is_missing
from tunewright.errors import UsageError

SAMPLE = 1000  # rows that are looked at
TURN_FORMS = ("sharegpt", "openai", "xtuner", "conversation")


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The first rows of a file: its columns with a value of each, and what the config names.

    `first` holds the first value of the kind that most values are of. `boolean` are the columns with nothing but true
    and false, `written` those of turns that are JSON text.
    """

    source: SourceConfig
    key: str
    rows: int
    first: dict[str, Any]
    boolean: frozenset[str]
    written: frozenset[str]
    named: dict[str, str]

    @classmethod
    def over(cls, rows: Sequence[Mapping[str, Any]], source: SourceConfig, key: str) -> "FirstRows":
        values: dict[str, list[Any]] = {}
        for row in rows[:SAMPLE]:
            for name, value in row.items():
                column = values.setdefault(name, [])
                if not is_missing(value):
                    column.append(value)
        boolean = {name for name, column in values.items() if column and all(isinstance(v, bool) for v in column)}
        named = {role: name for role, name in source.columns if name is not None}
        if not named and not source.guess:
            own = usual.OWN.get(source.format, {})
            named = {role: name for role, name in own.items() if role not in usual.OPTIONAL or name in values}
        first: dict[str, Any] = {}
        written: set[str] = set()
        for name, column in values.items():
            dialogs = name == named.get("messages") or name.strip().casefold() in usual.MESSAGES
            read = [_read_turns(value, dialogs) for value in column]
            typical = _typical(read)
            first[name] = None if typical is None else read[typical]
            if typical is not None and read[typical] is not column[typical]:
                written.add(name)
        return cls(source, key, len(rows), first, frozenset(boolean), frozenset(written), named)

    def require_named(self) -> None:
        """Every named column is there; one that a row may lack need not stand among the first rows of a long file."""
        for role, name in self.named.items():
            if name in self.first or (role in usual.OPTIONAL and self.rows >= SAMPLE):
                continue
            has = f"{self.source.path} has no column {name!r}, it has {listed(self.first)}"
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
        return self.source.format == "hh" or _is_transcript(value)

    def holds_two(self, column: str, as_text: bool = False) -> bool:
        """Whether a column holds a better and a worse answer in a list, with `as_text` also where that is JSON text."""
        value = self.first.get(column)
        return _is_two(as_list(value) if as_text else value)

    def tags(self, column: str | None) -> Tags:
        """The keys of turns: as the config says, otherwise the usual ones that a typical cell has."""
        declared, form = self.source.tags, self.source.format
        keys = {key for turn in self.turns(column) for key, value in turn.items() if not is_missing(value)}
        role = declared.role_tag or next((name for name in usual.ROLE_KEYS if name in keys), None)
        content = declared.content_tag or next((name for name in usual.CONTENT_KEYS if name in keys - {role}), None)
        pairs = [pair for pair in usual.TURN_PAIRS if pair[1] in keys]  # of raw text there is an answer only
        pair = next((pair for pair in pairs if pair[0] in keys), next(iter(pairs), None))
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


def _typical(values: Sequence[Any]) -> int | None:
    """Index of the first value that looks as most do, and of dialogs ends as most do; None for no values."""
    indices = list(range(len(values)))
    looks: tuple[Callable[[Any], object], ...] = (_shape, _ending)
    for look in looks:
        seen = {index: look(values[index]) for index in indices}
        commonest = Counter(seen.values()).most_common(1)
        indices = [index for index, shape in seen.items() if shape == commonest[0][0]]
    return next(iter(indices), None)


def _shape(value: Any) -> str:
    if _is_turns(value):
        return "turns"
    if isinstance(value, str):
        return "transcript" if _is_transcript(value) else "two as text" if _is_two(as_list(value)) else "text"
    return "two" if _is_two(value) else type(value).__name__


def _ending(value: Any) -> object:
    """Who speaks last in a dialog, and whether nobody else does."""
    return (_usual_speaker(value[-1]), len(value) == 1) if _is_turns(value) else None


def _read_turns(value: Any, dialogs: bool) -> Any:
    """The turns that a text holds as JSON, in a column of `dialogs` or where all have a speaker; else the value."""
    turns = as_list(value)
    if _is_turns(turns) and (dialogs or all(map(_usual_speaker, turns))):
        return turns
    return value


def _usual_speaker(turn: Mapping[str, Any]) -> Speaker | None:
    return next(filter(None, (_speaker(turn, Tags(role=key)) for key in usual.ROLE_KEYS)), None)


def _is_two(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


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


def listed(columns: Collection[str]) -> str:
    """The names of columns, the first dozen of many."""
    names = list(columns)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "none") + more
