"""Dialogs of one shape share their skeleton, and only where the template cannot tell their contents apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError, nodes

from tests.data.test_render import SOURCES
from tunewright.data import render
from tunewright.data.examples import Message, ToolCall
from tunewright.data.render import Renderer
from tunewright.data.skeleton import Contents, shape_of

LOOP = "{% for message in messages %}"
contents = st.text(alphabet="ab e答\n\t 1'\"<>{}%", max_size=8) | st.sampled_from(["", "stop", "user", "content", "0"])


@st.composite
def dialogs(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents))]
    return messages


def treated(source: str) -> Contents | None:
    return Renderer(source, {})._contents


def text(renderer: Renderer, messages: list[Message], prompt: bool, rendered: bool) -> str:
    """The text, or in what words the template refuses."""
    try:
        return renderer._render(messages, None, prompt) if rendered else renderer.text(messages, None, prompt)
    except (TemplateError, TypeError) as error:
        return f"{type(error)}: {error}"


@pytest.mark.parametrize("name", SOURCES)
@given(some=st.lists(dialogs(), min_size=2, max_size=6), prompt=st.booleans())
@settings(max_examples=20, deadline=None)
def test_filled_is_rendered(name: str, some: list[list[Message]], prompt: bool) -> None:
    renderer = Renderer(SOURCES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    for messages in some:
        assert text(renderer, messages, prompt, False) == text(renderer, messages, prompt, True)


def test_nearly_all_templates_of_the_table_write_contents_as_they_stand() -> None:
    rendered = {name for name, source in SOURCES.items() if treated(source) is None}
    assert rendered == {"style marked", "table qwen3", "table deepseekr1", "thinking", "everything"}


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        (LOOP + "{{ message.role + message['content'] }}{% endfor %}", False),
        (LOOP + "{{ '[' ~ message.content ~ ']' }}{% endfor %}", False),
        (LOOP + "{{ message.content | trim }}{% endfor %}", True),
        (LOOP + "{{ message.content.strip() + '.' }}{% endfor %}", True),
        (LOOP + "{% if message.content %}{{ message.content }}{% else %}-{% endif %}{% endfor %}", False),
        ("{% set rest = messages[1:] %}{% for one in rest %}{% set c = one.content %}{{ c }}{% endfor %}", False),
        ("{% set ns = namespace(a='') %}{% set ns.a = messages[0].content + '!' %}{{ ns.a }}", False),
        ("{{ messages[0].content if messages[0].content is string else 'x' }}{{ messages | length }}", False),
        (LOOP + "{{ message.content }}{% if 'tool_calls' in message %}!{% endif %}{% endfor %}", False),
    ],
)
def test_written_as_they_stand(source: str, bare: bool) -> None:
    assert treated(source) == Contents(bare)


DOUBTFUL = [
    "{% if message.content.startswith('stop') %}!{% endif %}",
    "{% if 'stop' in message.content %}!{% endif %}",
    "{% if message.content in 'stopped' %}!{% endif %}",
    "{% if message.content == 'stop' %}!{% endif %}",
    "{% if message.content > 'b' %}!{% endif %}",
    "{{ message.content | length }}",
    "{{ message.content | upper }}",
    "{{ message.content | trim('a') }}",
    "{{ message.content.strip('a') }}",
    "{{ message.content.lstrip() }}",
    "{{ (message.content + ' ') | trim }}",
    "{{ (message.content + 'a').strip() }}",
    "{{ message.content[:2] }}",
    "{{ message.content * 2 }}",
    "{{ '%4s' % message.content }}",
    "{{ '%4s' | format(message.content) }}",
    "{{ '-'.join([message.content, 'a']) }}",
    "{{ 'stop'.replace(message.content, '') }}",
    "{{ message | tojson }}",
    "{{ message }}",
    "{{ messages | last }}",
    "{{ messages | map(attribute='content') | join }}",
    "{{ messages | selectattr('content', 'equalto', 'stop') | list | length }}",
    "{{ message.get('content') }}",
    "{{ message.items() | list }}",
    "{{ message['con' + 'tent'] | length }}",
    "{% set key = 'content' %}{{ message[key] | length }}",
    "{% for key in message %}{{ message[key] | upper }}{% endfor %}",
    "{% for key, value in message.items() %}{{ value | upper }}{% endfor %}",
    "{% for letter in message.content %}{{ letter }}.{% endfor %}",
    "{% set c = message.content %}{{ c | length }}",
    "{% set c, d = message.content, 1 %}{{ c | length }}",
    "{% set c %}{{ message.content }}{% endset %}{{ c | length }}",
    "{% set ns = namespace(c=message.content) %}{{ ns.c | length }}",
    "{% set ns = namespace(c='') %}{% set ns.c = message.content %}{{ ns.c | length }}",
    "{% set ns = namespace(c='') %}{% set ns.c = message.content %}{{ ns }}",
    "{% set ns = namespace(c='') %}{% set ns.c = message.content %}{{ ns['c'] | length }}",
    "{% set ns = namespace(c='') %}{% set ns.c = message.content %}{% set n = ns %}{{ n.c | length }}",
    "{% macro show(c) %}{{ c | length }}{% endmacro %}{{ show(message.content) }}",
    "{% with c = message.content %}{{ c | length }}{% endwith %}",
    "{% filter upper %}{{ message.content }}{% endfilter %}",
    "{% if loop.previtem and loop.previtem.content == 'a' %}!{% endif %}",
    "{% if loop['nextitem'] and loop['nextitem'].content == 'a' %}!{% endif %}",
    "{% if loop.changed(message.content) %}!{% endif %}",
    "{% set l = loop %}{% if l.previtem and l.previtem.content == 'a' %}!{% endif %}",
    "{% set m = messages + [] %}{{ m[0].content | length }}",
    "{% set m = [message] %}{{ m[0].content | length }}",
    "{% set m = {'a': message} %}{{ m.a.content | length }}",
    "{% set m = message if loop.first else message %}{{ m.content | length }}",
    "{% set m = messages or [] %}{{ m[0].content | length }}",
    "{% set message = {'content': 'x'} %}{{ message.content | length }}",
    "{% set c = message.content or 'a' %}{{ c | length }}",
    "{{ (message.content and 'a') == 'a' and message.content | length }}",
    "{{ raise_exception('no: ' + message.content) }}",
    "{{ {message.content: 1} }}",
    "{{ namespace(a=message) }}",
    "{{ strftime_now('%S%f') }}",
    "{% set f = strftime_now %}{{ f('%S%f') }}",
    "{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}",
    "{% if message.content is sameas('a') %}!{% endif %}",
    "{% if message.content is eq('stop') %}!{% endif %}",
    "{% if message.content is lower %}!{% endif %}",
    "{% if messages == [] %}!{% endif %}",
    "{{ -message.content | length }}",
    "{{ message.content | default('a', true) | length }}",
    "{{ messages[message.content | length].role }}",
]
SAFE = [
    "{{ message.role }}:{{ message.content }}\n",
    "{{ message['content'] ~ eos_token }}",
    "{{ message.content | trim }}",
    "{% if message.content %}+{% endif %}",
    "{% set c = message.content %}{{ c if c else 'none' }}",
    "{% set c = (message.content + '!') if message.role == 'user' else '' %}{{ c }}",
    "{% if loop.last and not message.content %}last{% endif %}",
    "{{ message.content or 'empty' }}",
    "{% if message.tool_calls is defined %}!{% endif %}",
    "{{ loop.index0 }}",
]


@pytest.mark.parametrize("use", DOUBTFUL)
def test_any_other_use_is_rendered(use: str) -> None:
    assert treated(f"{LOOP}{{{{ message.content }}}}{use}{{% endfor %}}") is None


@given(uses=st.lists(st.sampled_from(DOUBTFUL + SAFE), min_size=1, max_size=3), some=st.lists(dialogs(), min_size=4))
@settings(max_examples=150, deadline=None)
def test_what_counts_as_certain_is_right(uses: list[str], some: list[list[Message]]) -> None:
    renderer = Renderer(f"{LOOP}{''.join(uses)}{{% endfor %}}", {"eos_token": "</s>"})
    for messages in some if renderer._contents is not None else []:
        assert text(renderer, messages, False, False) == text(renderer, messages, False, True)


def test_safe_uses_are_certain() -> None:
    assert treated(f"{LOOP}{''.join(SAFE)}{{% endfor %}}") == Contents(bare=True)


def test_only_roles_and_contents_have_a_shape() -> None:
    question = Message("user", "a")
    assert shape_of([question, Message("assistant", "")], bare=False) == ("user", "silent assistant")
    assert shape_of([Message("user", " a")], bare=False) == ("user",)
    for message in (
        Message("tool", "a"),
        Message("user", "a", name="b"),
        Message("assistant", "a", reasoning=""),
        Message("assistant", "a", tool_calls=(ToolCall("b", "{}"),)),
    ):
        assert shape_of([question, message], bare=False) is None
    assert shape_of([Message("user", " a")], bare=True) is None


def test_shapes_beyond_those_remembered_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "KNOWN_SHAPES", 2)
    renderer = Renderer(SOURCES["style chatml"], {})
    for count in (1, 3, 5, 1, 3, 5):
        messages = [Message("assistant" if i % 2 else "user", f"{i}") for i in range(count)]
        assert renderer.text(messages) == renderer._render(messages, None)
    assert len(renderer._skeletons) == 2


def test_every_kind_of_node_is_known() -> None:
    """A construct that jinja2 adds later must be looked at before templates with it are taken for certain."""
    assert {cls.__name__ for cls in _below(nodes.Stmt)} == {
        "Assign", "AssignBlock", "Block", "Break", "CallBlock", "Continue", "EvalContextModifier", "ExprStmt",
        "Extends", "FilterBlock", "For", "FromImport", "If", "Import", "Include", "Macro", "Output", "OverlayScope",
        "Scope", "ScopedEvalContextModifier", "With",
    }  # fmt: skip


def _below(cls: type) -> set[type]:
    return {each for sub in cls.__subclasses__() for each in ({sub} | _below(sub))}
