"""Too long dialogs are cut between turns: what is kept is the encoding of a shorter dialog, the longest that fits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.dialogs import TEMPLATES as TABLE
from tests.data.dialogs import TOKENIZER, attempt, plain, stretches
from tests.data.dialogs import dialogs as tool_dialogs
from tests.tokenizers import STYLES, THINKING, tiny_tokenizer
from tunewright.data.cut import fit_many
from tunewright.data.examples import Dialog, Message, Place, ToolCall
from tunewright.data.template import ChatTemplate, EncodedDialog
from tunewright.data.template_table import table

HERE = Place("test.json", 1)
CHATML = tiny_tokenizer("chatml")
TEMPLATES = {
    **{style: ChatTemplate(tiny_tokenizer(style), None, ()) for style in STYLES},
    "thinking": ChatTemplate(CHATML, THINKING, ()),
    "last": ChatTemplate(tiny_tokenizer("inst"), table()["falcon"].source, ()),  # ends the last answer only
}


@st.composite
def dialogs(draw: st.DrawFn) -> Dialog:
    content = st.text(alphabet="ab 灯", max_size=30)
    messages = [Message("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 5))):
        messages += [Message("user", draw(content)), Message("assistant", draw(content), draw(st.sampled_from([0, 1])))]
    return Dialog(tuple(messages), HERE)


def fit(template: ChatTemplate, dialog: Dialog, max_length: int, too_long: str) -> EncodedDialog:
    (result,) = fit_many(template, [dialog], max_length, too_long)  # type: ignore[arg-type]  # a literal
    assert isinstance(result, EncodedDialog)
    return result


def parts(dialog: Dialog, too_long: str) -> list[Dialog]:
    """Every dialog that may be kept, best first."""
    system = int(dialog.messages[0].role == "system")
    ends = [i + 1 for i, message in enumerate(dialog.messages) if message.train][::-1]
    begins = [i for i, message in enumerate(dialog.messages) if message.role == "user"]
    if too_long == "keep_oldest":
        begins = begins[:1]
    kept = [(begin, end) for end in ends for begin in begins if begin < end]
    return [replace(dialog, messages=dialog.messages[:system] + dialog.messages[a:b]) for a, b in kept]


@pytest.mark.parametrize("too_long", ["keep_oldest", "keep_newest"])
@pytest.mark.parametrize("name", TEMPLATES)
@given(dialog=dialogs(), max_length=st.integers(2, 200))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_the_longest_part_that_fits(name: str, too_long: str, dialog: Dialog, max_length: int) -> None:
    template = TEMPLATES[name]
    result = fit(template, dialog, max_length, too_long)
    (whole,) = template.attempt_many([dialog])
    assert isinstance(whole, EncodedDialog)
    if whole.longest <= max_length:
        expected, cut = whole, 0
    else:
        candidates = parts(dialog, too_long)
        encodings = [item for item in template.attempt_many(candidates) if isinstance(item, EncodedDialog)]
        fitting = [i for i, item in enumerate(encodings) if item.longest <= max_length]
        expected = encodings[fitting[0]] if fitting else whole
        cut = len(dialog.messages) - len(candidates[fitting[0]].messages) if fitting else 0
    assert [s.input_ids.tolist() for s in result.sequences] == [s.input_ids.tolist() for s in expected.sequences]
    assert [s.weights.tolist() for s in result.sequences] == [s.weights.tolist() for s in expected.sequences]
    assert result.cut == cut
    for sequence in result.sequences:  # no trained stretch without its stop
        ends = np.flatnonzero(np.diff(sequence.weights, append=0) < 0)
        assert np.isin(sequence.input_ids[ends], template.stop_ids).all()


@pytest.mark.parametrize("too_long", ["keep_oldest", "keep_newest"])
@pytest.mark.parametrize("name", table())
@given(both=st.tuples(tool_dialogs(5), tool_dialogs(2)), share=st.floats(0, 1.1))
@settings(max_examples=12, deadline=None)
def test_every_template_keeps_the_rendering_of_what_is_kept(
    name: str, too_long: str, both: tuple[Dialog, Dialog], share: float
) -> None:
    """Ids are those of the text, loss is on the answers and their stops, and the dialog beside it changes nothing."""
    template = TABLE[name]
    dialog = both[0]
    max_length = max(2, int(share * attempt(template, dialog).longest))
    result = fit(template, dialog, max_length, too_long)
    together = list(fit_many(template, both, max_length, too_long))  # type: ignore[arg-type]  # a literal
    assert [plain(item) for item in together if isinstance(item, EncodedDialog)] == [
        plain(fit(template, one, max_length, too_long)) for one in both
    ]
    if result.longest > max_length:
        assert not any(attempt(template, part).longest <= max_length for part in parts(dialog, too_long))
        return
    kept = dialog
    if result.cut:
        kept = next(part for part in parts(dialog, too_long) if attempt(template, part).longest <= max_length)
        assert result.cut == len(dialog.messages) - len(kept.messages)
    if kept.messages[-1].train:
        whole = template.render(kept.messages, tools=kept.tools)
        ids = TOKENIZER(whole, add_special_tokens=False)["input_ids"]
        assert result.sequences[-1].input_ids.tolist() == ids
    trained = [i for i, message in enumerate(kept.messages) if message.train]
    written = [TOKENIZER.decode(ids[first:]) for ids, first, _ in stretches(result.sequences)]
    assert len(written) == len(trained)
    assert all(ids[-1] in template.stop_ids for ids, *_ in stretches(result.sequences))
    for i in trained:
        prompt = template.render(kept.messages[:i], add_generation_prompt=True, tools=kept.tools)
        answer = template.render(kept.messages[: i + 1], tools=kept.tools).removeprefix(prompt)
        assert any(text in answer and kept.messages[i].content.strip() in text for text in written)


def test_dropping_leaves_the_length_to_be_told() -> None:
    dialog = Dialog((Message("user", "a" * 50), Message("assistant", "b")), HERE)
    for too_long in ("drop", "keep_oldest", "keep_newest"):
        result = fit(TEMPLATES["chatml"], dialog, 20, too_long)
        assert (result.longest > 20, result.cut) == (True, 0)


def test_an_exchange_that_never_fits_does_not_take_the_others_with_it() -> None:
    turns = [("a", "one"), ("b", "two"), ("c", "three " * 40)]
    messages = tuple(m for q, a in turns for m in (Message("user", q), Message("assistant", a)))
    template = TEMPLATES["chatml"]
    result = fit(template, Dialog(messages, HERE), 80, "keep_newest")
    assert result.cut == 2
    assert CHATML.decode(result.sequences[0].input_ids.tolist()) == template.render(messages[:4])


def test_calls_and_their_results_stay_together() -> None:
    template = ChatTemplate(CHATML, table()["chatml"].source, ())
    call = ToolCall("clock", "{}")
    tool_turns = (
        Message("user", "What time is it?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "noon", name="clock"),
        Message("assistant", "Noon."),
    )
    dialog = Dialog(
        (Message("system", "Be kind."), Message("user", "Hi" * 40), Message("assistant", "Hi."), *tool_turns), HERE
    )
    whole = fit(template, dialog, 10_000, "keep_newest").longest
    result = fit(template, dialog, whole - 1, "keep_newest")
    assert CHATML.decode(result.sequences[0].input_ids.tolist()) == template.render((dialog.messages[0], *tool_turns))
