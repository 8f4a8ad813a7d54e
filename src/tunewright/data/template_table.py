"""Chat templates by name, for tokenizers that bring none: the table in templates.yaml, made into Jinja.

    tunewright ls templates

Every one of them also renders tools: in the system prompt as JSON, calls as <tool_call>, results as <tool_response>
or in the family's own tool turn. These families have no tool format of their own, so this is as good as another.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.data.examples import Message
from tunewright.data.render import Renderer
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLE = (Message("system", "Be brief."), Message("user", "Hi!"), Message("assistant", "Hello."))
_NAMED = {"bos_token": "<s>", "eos_token": "</s>"}  # stand in for a model's own in examples
_PLACE = re.compile(r"(\{content\}|\{bos\}|\{eos\})")
_TOOLS_BEGIN = "You can call these tools:\n<tools>"
_TOOLS_END = '\n</tools>\nTo call one, write:\n<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>'


class Entry(BaseModel):
    """One row of the table; templates.yaml says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    fits: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    begin: str = ""
    default: str | None = None
    system: str
    in_user: bool = False
    user: str
    tool: str | None = None
    reply: str
    answer: str
    end: str = ""
    last: str = ""
    after: str = ""
    think: Literal["optional", "always"] | None = None

    @property
    def stop(self) -> str:
        """What ends an answer: a token, or `{eos}` for the model's own."""
        return self.end or self.last

    @property
    def source(self) -> str:
        """Jinja text."""
        return "\n".join(_lines(self))

    @property
    def example(self) -> str:
        """A system prompt, a question and an answer, with <s> and </s> for the model's own begin and end."""
        return Renderer(self.source, _NAMED).text(EXAMPLE)


@lru_cache
def table() -> dict[str, Entry]:
    """Every template by its name."""
    from ruamel.yaml import YAML

    text = files("tunewright.data").joinpath("templates.yaml").read_text(encoding="utf-8")
    return {name: Entry.model_validate(row) for name, row in YAML(typ="safe").load(text).items()}


def named(name: str) -> Entry | None:
    """The template of that name or other name."""
    return table().get(name) or next((entry for entry in table().values() if name in entry.also), None)


def fitting(model: str) -> str | None:
    """Name of the template that belongs to a model (hub id, path or name). Base models have none."""
    last = model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    if "base" in last:
        return None
    return next((name for name, entry in table().items() if any(fnmatch(last, glob) for glob in entry.fits)), None)


def require_tokens(name: str, entry: Entry, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises UsageError where the tokenizer lacks a token that the template writes."""
    missing = [token for token in entry.tokens if len(tokenizer.encode(token, add_special_tokens=False)) != 1]
    if missing:
        raise UsageError(
            f"data.template: {name} writes {' '.join(missing)}, for which this model's tokenizer has no token; "
            "take the template its makers trained it with, or one of plain words (default, alpaca)"
        )
    if "{eos}" in entry.stop and tokenizer.eos_token is None:
        raise UsageError(f"data.template: {name} ends answers with the model's end-of-text token, and it has none")


def _lines(entry: Entry) -> Iterator[str]:
    # Each tag swallows the whitespace before it, so that these lines can be read.
    yield f"{{%- set state = namespace(system={_quoted(entry.default or '')}, calls='') %}}"
    yield "{%- if messages and messages[0].role == 'system' %}{% set state.system = messages[0].content %}{% endif %}"
    yield "{%- if tools %}"
    gap = "(state.system + '\\n\\n' if state.system else '')"
    yield f"    {{%- set state.system = {gap} + {_quoted(_TOOLS_BEGIN)} %}}"
    yield "    {%- for tool in tools %}{% set state.system = state.system + '\\n' + tool | tojson %}{% endfor %}"
    yield f"    {{%- set state.system = state.system + {_quoted(_TOOLS_END)} %}}"
    yield "{%- endif %}"
    if entry.begin:
        yield f"{{{{- {_slot(entry.begin)} }}}}"
    if not entry.in_user:
        yield f"{{%- if state.system %}}{{{{ {_slot(entry.system, 'state.system')} }}}}{{% endif %}}"
    yield "{%- for message in messages %}"
    yield "    {%- set content = message.content %}"
    yield from _system(entry)
    yield from _question("user", entry.user, "content", entry)
    result = "'<tool_response>\\n' + content + '\\n</tool_response>'" if entry.tool is None else "content"
    yield from _question("tool", entry.tool or entry.user, result, entry)
    yield from _answer(entry)
    yield "    {%- endif %}"
    yield "{%- endfor %}"
    yield from _prompt(entry)


def _system(entry: Entry) -> Iterator[str]:
    yield "    {%- if message.role == 'system' %}"
    if entry.in_user:
        yield "        {%- if not loop.first %}{{ raise_exception('only the first message may be a system prompt') }}"
        yield "        {%- endif %}"
    else:
        yield f"        {{%- if not loop.first %}}{{{{ {_slot(entry.system, 'content')} }}}}{{% endif %}}"


def _question(role: str, slot: str, content: str, entry: Entry) -> Iterator[str]:
    yield f"    {{%- elif message.role == '{role}' %}}"
    if entry.in_user:
        yield f"        {{%- set content = {content} %}}"
        yield f"        {{%- if state.system %}}{{% set content = {_slot(entry.system, 'state.system')} + content %}}"
        yield "        {%- endif %}{% set state.system = '' %}"
        content = "content"
    yield f"        {{{{- {_slot(slot, content)} }}}}"


def _answer(entry: Entry) -> Iterator[str]:
    yield "    {%- elif message.role == 'assistant' %}"
    if entry.think:
        yield "        {%- set thought = message.reasoning_content or '' %}"
        yield "        {%- if not thought and '</think>' in content %}"
        yield "            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}"
        yield "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
        yield "        {%- endif %}"
        # Thoughts stay while tools are called, and go with the next question.
        yield "        {%- if not messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list %}"
        kept = "loop.last or thought" if entry.think == "optional" else "true"
        yield f"            {{%- if {kept} %}}"
        yield "                {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content %}"
        yield "            {%- endif %}"
        yield "        {%- endif %}"
    yield "        {%- set state.calls = '' %}"
    yield "        {%- for call in message.tool_calls or [] %}"
    yield "            {%- set call = {'name': call.function.name, 'arguments': call.function.arguments} | tojson %}"
    yield "            {%- set state.calls = state.calls + '\\n<tool_call>\\n' + call + '\\n</tool_call>' %}"
    yield "        {%- endfor %}"
    yield "        {%- set content = content + state.calls if content else state.calls[1:] %}"
    yield f"        {{{{- {_slot(entry.reply + entry.answer + entry.end, 'content')} }}}}"
    if entry.last:
        yield f"        {{%- if loop.last %}}{{{{ {_slot(entry.last)} }}}}{{% endif %}}"
    if entry.after:
        yield f"        {{{{- {_slot(entry.after)} }}}}"


def _prompt(entry: Entry) -> Iterator[str]:
    prompt = f"{{{{ {_slot(entry.reply)} }}}}" if entry.reply else ""
    quiet = _quoted("<think>\n\n</think>\n\n")
    off = f"{{%- if enable_thinking is defined and not enable_thinking %}}{{{{ {quiet} }}}}"
    if entry.think == "optional":
        prompt += off + "{% endif %}"
    elif entry.think == "always":
        prompt += off + f"{{% else %}}{{{{ {_quoted('<think>' + chr(10))} }}}}{{% endif %}}"
    if prompt:
        yield f"{{%- if add_generation_prompt %}}{prompt}{{% endif %}}"


def _slot(text: str, content: str = "''") -> str:
    """A Jinja expression for a slot of the table."""
    names = {"{content}": content, "{bos}": "(bos_token or '')", "{eos}": "eos_token"}
    parts = [names.get(part) or _quoted(part) for part in _PLACE.split(text) if part]
    return " + ".join(f"({part})" if " + " in part else part for part in parts) or "''"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
