"""Examples kept as JSON come back as they were, and where they stood makes no difference."""

from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.content import from_json, to_json
from tunewright.data.examples import Dialog, Example, Labelled, Message, Place, Preference, Prompt, Text, ToolCall

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
maybe = st.none() | words
calls = st.lists(st.builds(ToolCall, words, words), max_size=2).map(tuple)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    words,
    st.floats(0, 4),
    maybe,
    calls,
    maybe,
)
several = st.lists(messages, max_size=3).map(tuple)
PLACE = Place("rows.jsonl", 7)
examples = st.one_of(
    st.builds(Text, words, st.just(PLACE)),
    st.builds(Dialog, several, st.just(PLACE), maybe),
    st.builds(Preference, several, messages, messages, st.just(PLACE), maybe),
    st.builds(Labelled, several, messages, st.booleans(), st.just(PLACE), maybe),
    st.builds(Prompt, several, st.just(PLACE), maybe),
)


@given(examples)
def test_round_trip(example: Example) -> None:
    content = to_json(example)
    assert from_json(content, PLACE) == example
    assert b"\n" not in content


@given(examples, examples)
def test_equal_content_is_equal_bytes(one: Example, other: Example) -> None:
    assert (to_json(one) == to_json(other)) == (one == other and type(one) is type(other))
    assert to_json(from_json(to_json(one), Place("elsewhere", 1))) == to_json(one)
