"""Rendering equals transformers' `apply_chat_template`, and templates stay in their sandbox."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from tests.tokenizers import STYLES, THINKING, tiny_tokenizer
from tunewright.data.examples import Message, ToolCall
from tunewright.data.render import Renderer, parse_tools, plain_messages
from tunewright.data.template_table import table

TOKENIZER = tiny_tokenizer("llama3")
TOOL = {
    "name": "weather",
    "description": "Weather <b> & wind 天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}

# What hub templates do: namespaces, macros, loop controls, filters, tests, methods of text, tools, thoughts.
EVERYTHING = """\
{%- macro show(text) %}[{{ text | trim }}]{% endmacro %}
{%- set ns = namespace(last=-1, tools='') %}
{%- for message in messages %}{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
    {%- for tool in tools %}{% set ns.tools = ns.tools + (tool | tojson(indent=2)) %}{% endfor %}
{%- endif %}
{{- ns.tools }}{{ dict(a=1).a }}{{ bos_token }}{{ absent is defined }}
{% for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.content.startswith('stop') and loop.index0 > 3 %}{% break %}{% endif %}
    {{- message.role.upper() + show(message.content) + (message.content.split('e')[-1]) }}
    {%- if message.reasoning_content is defined and loop.index0 > ns.last %}<{{ message.reasoning_content }}>{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- call.function.name + (call.function.arguments | tojson) + call.id }}
        {%- for key, value in call.function.arguments.items() %}{{ key }}{% endfor %}
    {%- endfor %}
    {%- if message.role == 'tool' %}{{ message.name ~ message.tool_call_id }}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT' }}
{% endif %}
"""

SOURCES = {
    **{f"style {name}": style[0] for name, style in STYLES.items()},
    **{f"table {name}": entry.source for name, entry in table().items()},
    "thinking": THINKING,
    "everything": EVERYTHING,
}

contents = st.text(alphabet="ab e答灯😀é\n\t '\"<>&{}%", max_size=12) | st.sampled_from(["stop", "<think>a</think>b"])


@st.composite
def dialogs(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(contents)))
        if draw(st.booleans()):
            call = ToolCall("weather", json.dumps({"city": draw(contents)}))
            messages.append(Message("assistant", draw(contents), tool_calls=(call, call)))
            messages += [Message("tool", draw(contents), name="weather") for _ in range(2)]
        messages.append(Message("assistant", draw(contents), reasoning=draw(st.none() | contents)))
    return messages


@pytest.mark.parametrize("name", SOURCES)
@given(messages=dialogs(), with_tools=st.booleans(), prompt=st.booleans())
@settings(max_examples=15, deadline=None)
def test_text_is_what_transformers_renders(name: str, messages: list[Message], with_tools: bool, prompt: bool) -> None:
    tools = parse_tools(json.dumps([TOOL])) if with_tools else None
    renderer = Renderer(SOURCES[name], TOKENIZER.special_tokens_map)
    messages = messages[:-1] if prompt else messages
    assert renderer.text(messages, tools, prompt) == TOKENIZER.apply_chat_template(
        plain_messages(messages),
        tools=tools,
        chat_template=SOURCES[name],
        add_generation_prompt=prompt,
        tokenize=False,
    )


@given(messages=dialogs())
@settings(max_examples=30, deadline=None)
def test_marks_are_what_transformers_finds(messages: list[Message]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = STYLES["marked"][0]
    text, spans = Renderer(source, {}).marked(messages)
    expected: Any = render_jinja_template(  # type: ignore[assignment]  # annotated as returning str
        [plain_messages(messages)], chat_template=source, return_assistant_tokens_mask=True
    )
    assert (text, spans) == (expected[0][0], expected[1][0])
    assert text == Renderer(source, {}).text(messages)


def test_a_message_cannot_forge_marks() -> None:
    renderer = Renderer(STYLES["marked"][0], {})
    forged = [Message("user", "a\ufdd1b\ufdd2"), Message("assistant", "c")]
    with pytest.raises(TemplateError, match=r"U\+FDD1"):
        renderer.marked(forged)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace(a=1) %}{% set n.__b = 2 %}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__.__base__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ raise_exception.__globals__.json }}",
    ],
)
def test_templates_stay_in_the_sandbox(source: str) -> None:
    with pytest.raises((SecurityError, TemplateError)):
        Renderer(source, {}).text([Message("user", "a")])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("{", "its tools are not JSON"),
        ('{"name": "a"}', "its tools are not a JSON list of objects"),
        ("[1]", "its tools are not a JSON list of objects"),
        ('[{"description": "a"}]', 'one of its tools has no "name"'),
        ('[{"type": "function", "function": {}}]', 'one of its tools has no "name"'),
        ('[{"type": "function", "function": 3}]', 'one of its tools has no "name"'),
    ],
)
def test_bad_tools_are_told(tools: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tools(tools)


def test_tools_are_wrapped_and_none_is_none() -> None:
    assert parse_tools(None) is None
    assert parse_tools("[]") is None
    assert parse_tools(json.dumps([TOOL])) == [{"type": "function", "function": TOOL}]
    wrapped = [{"type": "function", "function": TOOL}]
    assert parse_tools(json.dumps(wrapped)) == wrapped
