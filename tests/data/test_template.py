"""The encoding equals the template's own tokenisation, and loss falls on the answers and their stop tokens alone."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.tokenizers import ENDLESS, STYLES, THINKING, tiny_tokenizer
from tunewright.data.examples import Dialog, Encoded, Message, Place, ToolCall
from tunewright.data.render import Renderer, parse_tools
from tunewright.data.template import (
    NO_CALLS,
    NO_QUESTION,
    NO_REASONING,
    NO_TOOLS,
    UNPROMPTED,
    UNTHINKING,
    ChatTemplate,
    EncodedDialog,
    Refused,
)
from tunewright.data.template_source import freeze_dates, template_source, without_thinking
from tunewright.errors import UsageError

HERE = Place("test.json", 1)
TOKENIZERS = {style: tiny_tokenizer(style) for style in STYLES}
TEMPLATES = {style: ChatTemplate(TOKENIZERS[style], None, ()) for style in STYLES}
# What a template writes before an answer that the generation prompt lacks, and what it does to the answer.
LEAD = {"inst": " "}
SHOWN = {"llama3": str.strip}

contents = st.one_of(
    st.text(alphabet="ab e答案灯。👩‍👩‍👧😀é\n\t 1'", max_size=12),
    st.sampled_from(["", " ", "\n", "Hello.", " two  spaces ", "\n\nafter newlines\n", "我是守灯塔的人。", "😀", "é̂x"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


@st.composite
def dialogs(draw: st.DrawFn) -> Dialog:
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents), draw(st.booleans()))]
    return Dialog(tuple(messages), HERE)


def attempt(template: ChatTemplate, dialog: Dialog) -> EncodedDialog:
    (result,) = template.attempt_many([dialog])
    assert isinstance(result, EncodedDialog)
    return result


def encode(template: ChatTemplate, dialog: Dialog) -> Encoded:
    (encoded,) = template.encode(dialog)
    return encoded


def assert_equal(one: Encoded, other: Encoded) -> None:
    assert one.input_ids.tolist() == other.input_ids.tolist()
    assert one.weights.tolist() == other.weights.tolist()


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def trained_runs(encoded: Encoded) -> list[tuple[int, int]]:
    """[first, end) of each maximal run of trained tokens."""
    edges = np.flatnonzero(np.diff(encoded.weights, prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def trained_text(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> list[str]:
    return [tokenizer.decode(encoded.input_ids[first:end].tolist()) for first, end in trained_runs(encoded)]


@pytest.mark.parametrize("style", STYLES)
@given(dialog=dialogs())
@settings(max_examples=80, deadline=None)
def test_ids_are_the_templates_and_loss_is_on_answers(style: str, dialog: Dialog) -> None:
    tokenizer, template = TOKENIZERS[style], TEMPLATES[style]
    result = attempt(template, dialog)
    assert result.sequences[0].input_ids.tolist() == tokenizer.apply_chat_template(
        plain(dialog.messages), tokenize=True, return_dict=False
    )
    ids = result.sequences[0].input_ids.tolist()
    stop = tokenizer.decode([template.turn_end])
    answers = [i for i, m in enumerate(dialog.messages) if m.train]
    runs = trained_runs(result.sequences[0])
    assert len(runs) == len(answers)
    straddling = 0
    for (first, end), i in zip(runs, answers, strict=True):
        prefix = template.render(dialog.messages[:i], add_generation_prompt=True)
        answer = LEAD.get(style, "") + SHOWN.get(style, str)(dialog.messages[i].content) + stop
        assert tokenizer.decode(ids[:end]) == prefix + answer
        if tokenizer.decode(ids[:first]) != prefix:  # then one token joins the end of the prompt with the answer
            straddling += 1
            assert tokenizer.decode(ids[:first]).startswith(prefix)
            assert not tokenizer.decode(ids[: first - 1]).startswith(prefix)
    assert result.straddling == straddling


@pytest.mark.parametrize("style", STYLES)
@given(dialog=dialogs())
@settings(max_examples=40, deadline=None)
def test_one_pass_equals_one_dialog_per_turn(style: str, dialog: Dialog) -> None:
    template = TEMPLATES[style]
    whole = encode(template, dialog)
    union = np.zeros_like(whole.weights)
    for i, message in enumerate(dialog.messages):
        if not message.train:
            continue
        earlier = tuple(Message(m.role, m.content, weight=0.0) for m in dialog.messages[:i])
        turn = encode(template, Dialog((*earlier, message), HERE))
        assert turn.input_ids.tolist() == whole.input_ids[: len(turn)].tolist()
        union[: len(turn)] += turn.weights
    assert union.tolist() == whole.weights.tolist()


@pytest.mark.parametrize("style", STYLES)
@given(batch=st.lists(dialogs(), max_size=5))
@settings(max_examples=20, deadline=None)
def test_batches_change_nothing(style: str, batch: list[Dialog]) -> None:
    template = TEMPLATES[style]
    for dialog, together in zip(batch, template.attempt_many(batch), strict=True):
        assert isinstance(together, EncodedDialog)
        alone = encode(template, dialog)
        assert alone.input_ids.tolist() == together.sequences[0].input_ids.tolist()
        assert alone.weights.tolist() == together.sequences[0].weights.tolist()


@pytest.mark.parametrize("style", STYLES)
def test_the_prompt_of_chat_is_the_prompt_of_training(style: str) -> None:
    template = TEMPLATES[style]
    messages = (Message("system", "Be brief."), Message("user", "你是谁？"), Message("assistant", "A keeper."))
    encoded = encode(template, Dialog(messages, HERE))
    prompt = template.prompt_ids(messages[:-1])
    assert prompt == encoded.input_ids[: len(prompt)].tolist()
    assert np.flatnonzero(encoded.weights)[0] == len(prompt)


def test_marks_and_prefixes_agree() -> None:
    marked, plain_template = TEMPLATES["marked"], TEMPLATES["chatml"]
    dialog = Dialog(
        (Message("user", "Who?"), Message("assistant", "灯 x"), Message("user", ""), Message("assistant", "b")), HERE
    )
    assert_equal(encode(marked, dialog), encode(plain_template, dialog))


def test_stop_ids_join_what_is_given_the_eos_and_the_turn_end() -> None:
    tokenizer = TOKENIZERS["llama3"]
    template = ChatTemplate(tokenizer, None, [7])
    names = ["<|end_of_text|>", "<|eot_id|>"]
    assert template.stop_ids == (7, *tokenizer.convert_tokens_to_ids(names))
    assert template.turn_end == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_a_template_without_an_end_has_no_turn_end() -> None:
    template = ChatTemplate(tiny_tokenizer("chatml", ENDLESS), None, ())
    assert template.turn_end is None


def test_only_the_first_of_several_stops_is_trained() -> None:
    source = STYLES["chatml"][0].replace("<|im_end|>\n", "<|im_end|>\n<|endoftext|>\n")
    assert source != STYLES["chatml"][0]
    tokenizer = TOKENIZERS["chatml"]
    template = ChatTemplate(tokenizer, source, [tokenizer.pad_token_id])
    encoded = encode(template, Dialog((Message("user", "a"), Message("assistant", "b \n")), HERE))
    assert trained_text(tokenizer, encoded) == ["b \n<|im_end|>"]


def test_answers_a_template_rewrites_are_trained_as_they_were_given() -> None:
    tokenizer, template = TOKENIZERS["chatml"], ChatTemplate(TOKENIZERS["chatml"], THINKING, ())
    first, second = Message("assistant", "<think>hm</think>yes", 0.5), Message("assistant", "no")
    two_turns = Dialog((Message("user", "a"), first, Message("user", "b"), second), HERE)
    early, whole = template.encode(two_turns)
    assert trained_text(tokenizer, early) == ["<think>hm</think>yes<|im_end|>"]
    assert set(early.weights.tolist()) == {0.0, 0.5}
    assert_equal(early, encode(template, Dialog(two_turns.messages[:2], HERE)))
    assert trained_text(tokenizer, whole) == ["no<|im_end|>"]
    assert tokenizer.decode(whole.input_ids.tolist()) == template.render(two_turns.messages)
    untrained = replace(
        two_turns, messages=(two_turns.messages[0], replace(first, weight=0.0), *two_turns.messages[2:])
    )
    assert_equal(encode(template, untrained), whole)


def test_answers_that_are_not_rewritten_share_a_sequence() -> None:
    tokenizer, template = TOKENIZERS["chatml"], ChatTemplate(TOKENIZERS["chatml"], THINKING, ())
    answers = ("one", "two", "<think>hm</think>three", "four", "<think>so</think>five")
    messages = [m for answer in answers for m in (Message("user", "?"), Message("assistant", answer))]
    sequences = template.encode(Dialog(tuple(messages), HERE))
    assert [trained_text(tokenizer, sequence) for sequence in sequences] == [
        ["<think>hm</think>three<|im_end|>"],
        ["one<|im_end|>", "two<|im_end|>", "four<|im_end|>", "<think>so</think>five<|im_end|>"],
    ]


def test_a_template_may_refuse_a_dialog_in_its_own_words() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + STYLES["chatml"][0]
    )
    template = ChatTemplate(TOKENIZERS["chatml"], source, ())
    good = (Message("user", "a"), Message("assistant", "b"))
    results = list(template.attempt_many([Dialog((Message("system", "s"), *good), HERE), Dialog(good, HERE)]))
    assert results[0] == Refused("the chat template does not take this dialog: no system here")
    assert isinstance(results[1], EncodedDialog)


def test_a_token_across_the_start_of_an_answer_is_masked_and_counted() -> None:
    result = attempt(TEMPLATES["chatml"], Dialog((Message("user", "a"), Message("assistant", "\nb")), HERE))
    assert result.straddling == 1
    assert trained_text(TOKENIZERS["chatml"], result.sequences[0]) == ["b<|im_end|>"]


def test_a_silent_generation_prompt_is_noticed() -> None:
    source = STYLES["chatml"][0].split("{%- if add_generation_prompt")[0]
    assert ChatTemplate(TOKENIZERS["chatml"], source, ()).prompt_is_silent
    assert not any(template.prompt_is_silent for template in TEMPLATES.values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "not valid Jinja: line 1"),
        ("{{ messages[0].content }}", "leaves out the content"),
        ("{{ raise_exception('never') }}", "cannot render one question and its answer: never"),
        ("{{ messages[0].content + 1 }}", "cannot render one question and its answer"),
    ],
)
def test_unusable_templates_are_refused(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatTemplate(TOKENIZERS["chatml"], source, ())


def test_no_template_at_all_is_refused_and_names_the_fix(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    assert template_source(tokenizer, "auto", tmp_path) is None
    with pytest.raises(UsageError, match=r"data\.template: path\.jinja"):
        ChatTemplate(tokenizer, None, ())


def test_the_template_may_come_from_a_file(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["chatml"]
    (tmp_path / "mine.jinja").write_text(ENDLESS, encoding="utf-8")
    (tmp_path / "gbk.jinja").write_text("灯塔", encoding="gbk")
    assert template_source(tokenizer, "mine.jinja", tmp_path) == ENDLESS
    assert template_source(tokenizer, "auto", tmp_path) == tokenizer.chat_template
    with pytest.raises(UsageError, match=r"cannot read .*absent"):
        template_source(tokenizer, "absent.jinja", tmp_path)
    with pytest.raises(UsageError, match="not UTF-8"):
        template_source(tokenizer, "gbk.jinja", tmp_path)


def test_dates_are_fixed_when_the_template_is_read() -> None:
    source = """{{ strftime_now("%d %b %Y") }} {{ strftime_now( '%Y' ) }} {{ strftime_now(x) }}"""
    today = datetime.now()
    assert freeze_dates(source) == f'{{{{ "{today:%d %b %Y}" }}}} {{{{ "{today:%Y}" }}}} {{{{ strftime_now(x) }}}}'


TOOLS = '[{"name": "clock", "description": "Tells the time."}]'
CALLING = Message("assistant", "", tool_calls=(ToolCall("clock", "{}"),))


@pytest.mark.parametrize(
    ("messages", "tools", "reason"),
    [
        ((Message("assistant", "b"),), None, NO_QUESTION),
        ((Message("user", "a"), Message("assistant", "b")), TOOLS, NO_TOOLS),
        ((Message("user", "a"), CALLING), None, NO_CALLS),
        ((Message("user", "a"), Message("assistant", "b")), "[3]", "its tools are not a JSON list of objects"),
    ],
)
def test_what_a_template_would_leave_out_is_refused(
    messages: tuple[Message, ...], tools: str | None, reason: str
) -> None:
    assert list(TEMPLATES["chatml"].attempt_many([Dialog(messages, HERE, tools)])) == [Refused(reason)]


def test_reasoning_stands_before_the_answer_where_the_template_knows_no_place() -> None:
    template = TEMPLATES["chatml"]
    dialog = Dialog((Message("user", "a"), Message("assistant", "b", reasoning="hm")), HERE)
    assert trained_text(TOKENIZERS["chatml"], encode(template, dialog)) == ["<think>\nhm\n</think>\n\nb<|im_end|>"]
    stripping = ChatTemplate(TOKENIZERS["chatml"], None, (), "strip")
    assert trained_text(TOKENIZERS["chatml"], encode(stripping, dialog)) == ["b<|im_end|>"]


def test_reasoning_that_a_template_drops_is_refused_until_stripped() -> None:
    """As DeepSeek-R1's does, even in the last answer."""
    source = STYLES["chatml"][0].replace("message.content", "message.content.split('</think>')[-1]")
    dialog = Dialog((Message("user", "a"), Message("assistant", "<think>hm</think>b")), HERE)
    assert list(ChatTemplate(TOKENIZERS["chatml"], source, ()).attempt_many([dialog])) == [Refused(NO_REASONING)]
    stripping = ChatTemplate(TOKENIZERS["chatml"], source, (), "strip")
    assert trained_text(TOKENIZERS["chatml"], encode(stripping, dialog)) == ["b<|im_end|>"]


@pytest.mark.parametrize(("switch", "reason"), [("enable_thinking", UNTHINKING), ("anything", UNPROMPTED)])
def test_a_prompt_that_opens_thoughts_needs_them_in_the_answer(switch: str, reason: str, tmp_path: Path) -> None:
    opening = f"{{% if not ({switch} is defined and not {switch}) %}}{{{{ '<think>' }}}}{{% endif %}}"
    source = STYLES["chatml"][0].removesuffix("{% endif %}") + opening + "{% endif %}"
    tokenizer = tiny_tokenizer("chatml", source)
    dialog = Dialog((Message("user", "a"), Message("assistant", "b")), HERE)
    assert list(ChatTemplate(tokenizer, None, ()).attempt_many([dialog])) == [Refused(reason)]
    stripped = template_source(tokenizer, "auto", tmp_path, reasoning="strip")
    if reason == UNTHINKING:
        assert trained_text(tokenizer, encode(ChatTemplate(tokenizer, stripped, (), "strip"), dialog)) == [
            "b<|im_end|>"
        ]
    else:
        assert stripped == source


def test_an_end_behind_the_last_answer_only_does_not_split_what_stops_before_it() -> None:
    """Phi-3 writes <|endoftext|> behind the whole dialog, but its answers end with <|end|>."""
    tokenizer = TOKENIZERS["chatml"]
    source = STYLES["chatml"][0] + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    template = ChatTemplate(tokenizer, source, [tokenizer.pad_token_id])
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    assert trained_text(tokenizer, encode(template, Dialog(messages, HERE))) == ["b<|im_end|>", "d<|im_end|>"]


def test_marks_that_are_not_one_per_answer_are_not_relied_on() -> None:
    source = STYLES["marked"][0] + "{% generation %}{{ '' }}{% endgeneration %}"
    dialog = Dialog((Message("user", "Who?"), Message("assistant", "灯 x")), HERE)
    template = ChatTemplate(TOKENIZERS["marked"], source, ())
    assert_equal(encode(template, dialog), encode(TEMPLATES["marked"], dialog))


def test_a_template_for_tools_is_used_with_tools() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = {"default": STYLES["chatml"][0] + "\n", "tool_use": "{{ tools | tojson }}\n" + THINKING}
    template = ChatTemplate(tokenizer, None, ())
    messages = [Message("user", "a"), Message("assistant", "b")]
    for tools in (None, TOOLS):
        assert template.render(messages, tools=tools) == tokenizer.apply_chat_template(
            plain(tuple(messages)), tools=parse_tools(tools), tokenize=False
        )
    tokenizer.chat_template = {"rag": THINKING, "judge": THINKING}
    with pytest.raises(UsageError, match=r"several chat templates \(rag, judge\) and none is the default"):
        ChatTemplate(tokenizer, None, ())


def test_thinking_is_switched_off_unless_the_caller_says_otherwise() -> None:
    source = "  {% if enable_thinking is defined and not enable_thinking %}off{% else %}on{% endif %}{{ bos_token }}"
    off = without_thinking(source)
    assert Renderer(source, {}).text([]) == "on"
    assert Renderer(off, {}).text([]) == "off"
    assert Renderer(off, {"enable_thinking": True}).text([]) == "on"  # type: ignore[dict-item]  # as servers pass it
    assert without_thinking("\n  {{ messages }}") == "\n  {{ messages }}"


@pytest.mark.parametrize("times", [1, 40])  # many texts are tokenised by word
@pytest.mark.parametrize("style", STYLES)
@given(some=st.lists(dialogs(), min_size=3, max_size=4), spelling=st.text(alphabet="ab<|im_end|>", max_size=12))
@settings(max_examples=20, deadline=None)
def test_no_example_changes_another(style: str, times: int, some: list[Dialog], spelling: str) -> None:
    template = TEMPLATES[style]
    spelled = Dialog((Message("user", spelling), Message("assistant", f"{spelling}<|im_end|></s><|eot_id|>")), HERE)
    some = [*some, spelled] * times
    alone = [attempt(template, dialog) for dialog in some[: len(some) // times]] * times
    for got, expected in zip(template.attempt_many(some), alone, strict=True):
        assert isinstance(got, EncodedDialog)
        for one, other in zip(got.sequences, expected.sequences, strict=True):
            assert_equal(one, other)
