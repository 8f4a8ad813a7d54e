"""Which Jinja text `data.template` means: the tokenizer's own, one of our table, or a file."""

import difflib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright.data.template_table import fitting, named, require_tokens, table
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reasoning = Literal["train", "strip"]

_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_THINKING_SWITCHES = ("enable_thinking", "thinking")  # variables by which templates let a model think or not


def template_source(
    tokenizer: "PreTrainedTokenizerBase", setting: str, base: Path, model: str = "", reasoning: Reasoning = "train"
) -> str | None:
    """The Jinja text `data.template` means, None where auto finds none.

    auto is the tokenizer's own, else the one of our table that fits the name of the model. Otherwise a name in that
    table, or a file relative to `base`. Dates in it are fixed (`freeze_dates`), and thinking is off where the data's
    reasoning is stripped, so that chat and export, which read this text, keep to it.
    Raises UsageError for a file that is missing or not UTF-8, and for tokens the tokenizer does not have.
    """
    source = _found_source(tokenizer, setting, base, model)
    if source is None:
        return None
    return freeze_dates(without_thinking(source) if reasoning == "strip" else source)


def _found_source(tokenizer: "PreTrainedTokenizerBase", setting: str, base: Path, model: str) -> str | None:
    if setting == "auto":
        own = own_template(tokenizer)
        fits = fitting(model) if own is None else None
        return own if fits is None else _table_source(fits, tokenizer)
    path = base / setting
    if named(setting) is not None and not path.is_file():
        return _table_source(setting, tokenizer)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        near = difflib.get_close_matches(setting, table(), n=1)
        meant = f"; did you mean {near[0]}?" if near else ", or a name from `tunewright ls templates`"
        raise UsageError(
            f"data.template: cannot read {path} ({error.strerror}); write auto, the path of a Jinja file{meant}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"data.template: {path} is not UTF-8 (byte {error.start})") from error


def _table_source(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    entry = named(name)
    assert entry is not None
    require_tokens(name, entry, tokenizer)
    return entry.source


def own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's own Jinja text, None where it has none; one for tools is joined with the one without."""
    own: str | dict[str, str] | None = tokenizer.chat_template
    if own is None or isinstance(own, str):
        return own
    default, with_tools = own.get("default"), own.get("tool_use")
    if default is None:
        raise UsageError(
            f"this model's tokenizer has several chat templates ({', '.join(own)}) and none is the default; "
            "save the one you mean to a file and give it in `data.template: path.jinja`"
        )
    if with_tools is None:
        return default
    # trim_blocks takes the newline behind each tag away again, as Jinja does with the last one of a template.
    tools, plain = with_tools.removesuffix("\n"), default.removesuffix("\n")
    return f"{{% if tools %}}\n{tools}{{% else %}}\n{plain}{{% endif %}}"


def without_thinking(source: str) -> str:
    """`source` with the switches set by which a template lets its model think, unless the caller sets them."""
    switches = [name for name in _THINKING_SWITCHES if re.search(rf"\b{name}\b", source)]
    off = [f"{{%- if {name} is not defined %}}{{%- set {name} = false %}}{{%- endif %}}\n" for name in switches]
    return "".join(off) + source


def freeze_dates(source: str) -> str:
    """`source` with every `strftime_now("…")` (Llama-3.1 writes today's date so) replaced by today's text.

    The run keeps this text, so a run resumed or chatted with tomorrow has the prompt it was trained with.
    """
    now = datetime.now()
    return _STRFTIME_NOW.sub(lambda call: json.dumps(now.strftime(call["format"])), source)
