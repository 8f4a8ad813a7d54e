"""Messages to text: a chat template's Jinja, compiled once, rendered as transformers' `apply_chat_template` does.

Rendering is half the cost of preparing dialogs of many turns, so compilation is not paid per dialog, and most
templates need not even be rendered for each (see skeleton.py). The environment is the same: sandboxed and immutable,
since templates come from hubs; blocks trimmed; `break` and `continue`; `tojson`, `raise_exception`, `strftime_now`; and
`{% generation %}` around what the assistant writes. Equal text is a test (tests/data/test_render.py), not a hope.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunewright.data.examples import Message
from tunewright.data.skeleton import Shape, Skeleton, read_contents, shape_of, stand_ins, take_apart

KNOWN_SHAPES = 2000  # of dialogs, whose pieces are remembered

Span = tuple[int, int]
Tools = Sequence[Mapping[str, Any]]

_BEGIN, _END = "\ufdd1", "\ufdd2"  # noncharacters that stand around marked text while it is rendered
_blocks: ContextVar[list[int] | None] = ContextVar("blocks", default=None)  # one entry per block rendered


class Renderer:
    """One compiled template. `variables` are names the template may use, such as bos_token.

    Raises jinja2.TemplateError from all its methods where the template is wrong or refuses the messages.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = _environment()
        tree = environment.parse(source)
        self._contents = read_contents(tree)
        self._template = environment.from_string(tree)
        self._skeletons: dict[tuple[bool, Shape], Skeleton] = {}
        self._variables = {**environment.globals, **variables}

    def text(self, messages: Sequence[Message], tools: Tools | None = None, add_generation_prompt: bool = False) -> str:
        """The rendered dialog; `tools` as `parse_tools` gives them."""
        shape = None if self._contents is None or tools is not None else shape_of(messages, self._contents.bare)
        if shape is None:
            return self._render(messages, tools, add_generation_prompt)
        skeleton = self._skeletons.get((add_generation_prompt, shape))
        if skeleton is None:
            skeleton = take_apart(self._render(stand_ins(messages), None, add_generation_prompt))
            if len(self._skeletons) < KNOWN_SHAPES:
                self._skeletons[add_generation_prompt, shape] = skeleton
        return skeleton.fill(messages)

    def marked(self, messages: Sequence[Message], tools: Tools | None = None) -> tuple[str, list[Span]]:
        """The rendered dialog and the characters [start, end) inside each `{% generation %}` block."""
        blocks: list[int] = []
        token = _blocks.set(blocks)
        try:
            text = self._render(messages, tools)
        finally:
            _blocks.reset(token)
        if not text.count(_BEGIN) == text.count(_END) == len(blocks):
            raise jinja2.TemplateError("a message holds U+FDD1 or U+FDD2, which are no characters")
        spans: list[Span] = []
        pieces: list[str] = []
        length = 0
        for i, part in enumerate(text.split(_BEGIN)):
            inside, mark, outside = part.partition(_END) if i else ("", "", part)
            if mark:
                spans.append((length, length + len(inside)))
            pieces += [inside, outside]
            length += len(inside) + len(outside)
        return "".join(pieces), spans

    def _render(self, messages: Sequence[Message], tools: Tools | None, add_generation_prompt: bool = False) -> str:
        context = self._template.new_context(
            {
                **self._variables,
                "messages": plain_messages(messages),
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
            shared=True,  # Template.render would gather the globals again for each dialog
        )
        return "".join(self._template.root_render_func(context))


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: OpenAI's keys, arguments of calls as objects, calls numbered in order."""
    plain: list[dict[str, Any]] = []
    calls = answered = 0
    for message in messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:  # two names are in use for it
            item["reasoning_content"] = item["thinking"] = message.reasoning
        if message.name is not None:
            item["name"] = message.name
        if message.tool_calls:
            item["tool_calls"] = [
                {
                    "type": "function",
                    "id": _call_id(calls + i),
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for i, call in enumerate(message.tool_calls)
            ]
            calls, answered = calls + len(message.tool_calls), calls
        if message.role == "tool":
            item["tool_call_id"] = _call_id(answered)
            answered += 1
        plain.append(item)
    return plain


def parse_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The JSON list of a dialog's tools, each in the `{"type": "function", "function": {…}}` form templates expect.

    Raises ValueError, in words, for what is no such list.
    """
    if tools is None:
        return None
    try:
        items = json.loads(tools)
    except json.JSONDecodeError as error:
        raise ValueError("its tools are not JSON") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("its tools are not a JSON list of objects")
    wrapped = [item if "function" in item else {"type": "function", "function": item} for item in items]
    for item in wrapped:
        if not isinstance(item["function"], dict) or not isinstance(item["function"].get("name"), str):
            raise ValueError('one of its tools has no "name"')
    return wrapped or None


def _call_id(number: int) -> str:
    return f"call{number:05}"  # Mistral's templates insist on nine letters and digits


class _Namespace(jinja2.utils.Namespace):
    """A namespace without the underscored names through which a template could reach Python's insides."""

    def __init__(self, /, *args: Any, **values: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore: {name}")
        super().__setitem__(name, value)


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, without the attributes of the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


_DICT_NAMES = frozenset(dir(dict))
_TEXT_METHODS = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox with a short way for what templates do all the time; anything else is judged as ever."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _DICT_NAMES:  # Python would find no attribute, and the key is taken
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in _TEXT_METHODS:
            return getattr(obj, attribute)
        if kind is _Namespace or (kind is LoopContext and not attribute.startswith("_")):
            try:
                return getattr(obj, attribute)  # what a namespace holds was put there by the template
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda format: datetime.now().strftime(format),
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what stands inside is what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance's

    def parse(self, parser: "jinja2.parser.Parser") -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_wrap"), [], [], body).set_lineno(line)

    def _wrap(self, caller: Callable[[], str]) -> str:
        blocks, text = _blocks.get(), caller()
        if blocks is None:
            return text
        blocks.append(len(text))
        return f"{_BEGIN}{text}{_END}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes what HTML would, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
