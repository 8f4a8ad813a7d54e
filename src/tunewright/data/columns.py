"""Which column of a file holds what: as the config says, otherwise guessed from the names in use."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tunewright.config.schema import SourceConfig
from tunewright.data.suggest import nearest
from tunewright.errors import UsageError

Format = Literal["alpaca", "conversation", "text"]

# Names of question and answer that belong together, likeliest first; compared without case.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("q", "a"),
    ("query", "response"),
    ("query", "answer"),
    ("query", "output"),
    ("input", "output"),
    ("input", "response"),
    ("user", "assistant"),
    ("问题", "回答"),
    ("问题", "答案"),
    ("提问", "回答"),
    ("问", "答"),
    ("指令", "输出"),
    ("输入", "输出"),
)
OTHERS = {
    "query": ("input", "query", "输入"),
    "system": ("system", "system_prompt", "系统", "系统提示"),
    "history": ("history", "历史"),
}
MESSAGES = ("conversation", "conversations", "messages", "dialog", "dialogue", "对话")
TEXTS = ("text", "content", "文本", "正文", "内容")
OPTIONAL: dict[Format, tuple[str, ...]] = {
    "alpaca": ("query", "system", "history"),
    "conversation": ("system",),
    "text": (),
}
WHAT: dict[Format, str] = {"alpaca": "questions and answers", "conversation": "dialogs", "text": "raw text"}
STANDARD = {("instruction", "output"), *((name,) for name in MESSAGES), ("text",)}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a file are read: `columns` maps a key of `data.train.columns` to a name in the file.

    `guessed` says that the names are neither the config's nor those of a known form.
    """

    format: Format
    columns: dict[str, str]
    guessed: bool


def choose_layout(
    columns: Collection[str], lists: Collection[str], source: SourceConfig, stage: str, key: str
) -> Layout:
    """Decide from all column names of a file, and from those whose first value is a list.

    `key` is the config key of the source. Raises UsageError where a named column is not there, or nothing fits.
    """
    named = {role: name for role, name in source.columns if name is not None}
    for role, name in named.items():
        if name not in columns:
            has = f"{source.path} has no column {name!r}, it has {_listed(columns)}"
            raise UsageError(f"{key}.columns.{role}: {has}{nearest(name, columns)}")
    form = _format(columns, lists, named, source, stage, key)
    if form == "text":
        needed = {"text": named.get("text") or _one_of(TEXTS, columns)}
    elif form == "conversation":
        needed = {"messages": named.get("messages") or _one_of(MESSAGES, columns)}
    else:
        needed = dict(zip(("prompt", "response"), _pair(columns, named), strict=True))
    chosen = {role: name for role, name in needed.items() if name is not None}
    if len(chosen) < len(needed):
        raise UsageError(_nothing_fits(columns, source, key, form, [role for role in needed if role not in named]))
    guessed = not named.keys() >= chosen.keys() and tuple(map(str.casefold, chosen.values())) not in STANDARD
    for role in OPTIONAL[form]:
        name = named.get(role) or _one_of(OTHERS[role], columns, {*chosen.values(), *named.values()})
        if name is not None:
            chosen[role] = name
    meaningless = next((role for role in named if role not in chosen), None)
    if meaningless is not None:
        raise UsageError(f"{key}.columns.{meaningless} has no meaning for {WHAT[form]}: remove it")
    return Layout(form, chosen, guessed)


def _format(
    columns: Collection[str], lists: Collection[str], named: dict[str, str], source: SourceConfig, stage: str, key: str
) -> Format:
    if stage == "pt":
        if source.format not in ("auto", "text"):
            raise UsageError(f"{key}.format: {source.format} is for method.stage: sft, but pt learns from raw text")
        return "text"
    if source.format == "text" or "text" in named:
        raise UsageError(f"{source.path}: raw text is for method.stage: pt, but the stage is {stage}")
    if source.format != "auto":
        return source.format
    if "messages" in named:
        return "conversation"
    if "prompt" not in named and "response" not in named and _one_of(MESSAGES, lists):
        return "conversation"
    return "alpaca"


def _pair(columns: Collection[str], named: dict[str, str]) -> tuple[str | None, str | None]:
    """Question and answer: the first known pair that is there and agrees with what the config names."""
    prompt, response = named.get("prompt"), named.get("response")
    if prompt and response:
        return prompt, response
    taken = set(named.values())
    for question, answer in PAIRS:
        left = prompt or _one_of((question,), columns, taken)
        right = response or _one_of((answer,), columns, taken)
        if left and right:
            return left, right
    return prompt, response


def _one_of(candidates: Collection[str], columns: Collection[str], taken: Collection[str] = ()) -> str | None:
    """The column called by the first of the candidates that is there, whatever its case."""
    folded = {name.strip().casefold(): name for name in columns if name not in taken}
    return next((folded[candidate] for candidate in candidates if candidate in folded), None)


def _nothing_fits(columns: Collection[str], source: SourceConfig, key: str, form: Format, missing: list[str]) -> str:
    mapping = ", ".join(f"{role}: …" for role in missing)
    message = (
        f"{source.path}: no columns for {WHAT[form]} were recognised among {_listed(columns)}: "
        f"name them, {key}.columns: {{{mapping}}}"
    )
    if form == "text" and (all(_pair(columns, {})) or _one_of(MESSAGES, columns)):
        return f"{message}, or learn from questions and answers, method.stage: sft"
    if form != "text" and _one_of(TEXTS, columns):
        return f"{message}, or learn from raw text, method.stage: pt"
    return message


def _listed(columns: Collection[str]) -> str:
    names = list(columns)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "none") + more
