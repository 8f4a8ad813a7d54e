"""Looking words up gives what the tokenizer gives, ids and offsets, for every text and every kind of tokenizer."""

import json
import random
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tokenizers import CHATML, SENTENCES, STYLES, tiny_tokenizer
from tunewright.data import words
from tunewright.data.examples import Dialog, Message, Place
from tunewright.data.template import ChatTemplate, EncodedDialog
from tunewright.data.words import WordTokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS: dict[str, Any] = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), BYTES]),
}


@lru_cache
def tokenizer(cut: str, trim: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = CUTS[cut]
    if cut == "qwen2":
        made.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in ("<|a|>", "<|a|><b>")])
    made.add_tokens([AddedToken("<b>", normalized=False)])
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    return made


def same(made: Tokenizer, fast: WordTokenizer, texts: list[str]) -> None:
    for text, mine, theirs in zip(
        texts, fast.encode_batch(texts), made.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        assert mine.ids.tolist() == theirs.ids, text
        assert list(zip(*mine.spans.tolist(), strict=True)) == theirs.offsets, text
        for position in range(len(text)):
            token = mine.border(position)
            assert token is None or theirs.offsets[token - 1][1] == position == theirs.offsets[token][0], text


# Often certain characters, in runs in which the patterns differ; sometimes any.
pieces = st.sampled_from(
    ["the", " lamp", "It's", "'RE", "'really", " ", "  ", "\n", "\r\n", "\t", "12345", " 7", "！？", "。\n\n", "灯塔",
     "_", "-->", " (x", "é", "Ж", "０１", "\u3000", "<|a|>", "<b>", "<|a|><b>", "<|a", "|>"]
)  # fmt: skip
texts = st.lists(st.lists(pieces | st.text(max_size=3), max_size=9).map("".join), min_size=1, max_size=6)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("trim", [False, True])
@settings(max_examples=60)
@given(texts=texts)
def test_same_tokens(cut: str, trim: bool, texts: list[str]) -> None:
    made = tokenizer(cut, trim)
    fast = WordTokenizer(made)
    fast.encode_batch(["".join(texts)] * 9)  # so that most words of the next batch are known
    fast._pause = 0
    same(made, fast, texts * 9)


@pytest.mark.parametrize("cut", CUTS)
def test_every_certain_character_is_cut_alike(cut: str) -> None:
    made = tokenizer(cut)
    fast = WordTokenizer(made)
    certain = [chr(code) for code in range(0x10000) if words._SAFE.fullmatch(chr(code))]
    assert len(certain) > 20_000
    shapes = [f"a{c}b {c} {c}{c} 1{c}. {c}\n{c}'{c}" for c in certain if not "\u4e10" < c < "\u9fa0"]
    cutter = fast._cut
    assert cutter is not None
    for shape in shapes:
        theirs = [shape[begin:end] for _, (begin, end) in made.pre_tokenizer.pre_tokenize_str(shape)]
        assert cutter(shape) == theirs, shape


def test_words_are_looked_up() -> None:
    made = tokenizer("llama3")
    fast = WordTokenizer(made)
    fast._model = Counting(fast._model)
    lines = [f"{i} lamps of the house {i % 7} are lit<|a|>" for i in range(300)]
    same(made, fast, lines)
    same(made, fast, lines)
    assert 10 < fast._model.asked < 400  # words, of 4,800


class Counting:
    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, 0

    def tokenize(self, word: str) -> Any:
        self.asked += 1
        return self.model.tokenize(word)


def test_a_vocabulary_without_some_bytes_is_not_asked_word_by_word() -> None:
    whole = json.loads(tokenizer("gpt2").to_str())
    assert WordTokenizer(Tokenizer.from_str(json.dumps(whole)))._cut is not None
    gap = words.BYTE_SPELLINGS["灯".encode()[1]]
    whole["model"]["vocab"][f"{gap}{gap}{gap}"] = whole["model"]["vocab"].pop(gap)
    whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if not any(gap in part for part in pair)]
    gapped = Tokenizer.from_str(json.dumps(whole))
    assert WordTokenizer(gapped)._cut is None
    same(gapped, WordTokenizer(gapped), ["灯塔 is a lamp"] * 9)


def test_the_bytes_of_certain_characters_are_all_needed() -> None:
    certain = [chr(code) for code in range(0x10000) if words._SAFE.fullmatch(chr(code))]
    assert {byte for character in certain for byte in character.encode()} <= words.BYTES


def test_bytes_are_spelled_as_tokenizers_spell_them() -> None:
    assert set(words.BYTE_SPELLINGS.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    for text in ("é灯Ж\t\n\x7f\xa0\xad\u3000", "".join(map(chr, range(256)))):
        (spelled, _), *rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert not rest
        assert text.encode().decode("latin-1").translate(words.BYTE_SPELLINGS) == spelled


def test_words_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KNOWN_WORDS", 40)
    fast = WordTokenizer(tokenizer("gpt2"))
    for begin in range(0, 200, 10):
        same(tokenizer("gpt2"), fast, [f"word{'x' * (begin + i)}" for i in range(10) for _ in range(30)])
        assert len(fast._known) <= 40


def test_words_that_come_often_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "KNOWN_WORDS", 40)
    made = tokenizer("gpt2")
    fast = WordTokenizer(made)
    for begin in range(20):
        same(made, fast, [f"word{'x' * (10 * begin + i)} and often this" for i in range(10) for _ in range(30)])
        assert {" and", " often", " this"} <= fast._known.keys()
    assert len(fast._known) <= 40


@pytest.mark.parametrize("style", STYLES)
def test_other_tokenizers_are_asked(style: str) -> None:
    made = tiny_tokenizer(style).backend_tokenizer
    fast = WordTokenizer(made)
    assert fast._cut is None
    same(made, fast, [*SENTENCES, ""])


def test_a_tokenizer_that_pads_is_not_changed() -> None:
    made = Tokenizer.from_str(tokenizer("gpt2").to_str())
    made.enable_padding(length=50)
    made.enable_truncation(3)
    same(tokenizer("gpt2"), WordTokenizer(made), SENTENCES)
    assert json.loads(made.to_str())["padding"]["strategy"] == {"Fixed": 50}


@pytest.mark.parametrize("cut", ["gpt2", "llama3"])
def test_weights_of_dialogs_are_those_of_each_alone(cut: str) -> None:
    """From the words that are looked up through to loss weights: a batch gives what one dialog at a time gives."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer(cut).to_str()),
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    template = ChatTemplate(made, CHATML, ())
    chosen = random.Random(7)

    def say(role: Any, weight: float = 1.0) -> Message:
        return Message(role, " ".join(chosen.choices([*SENTENCES[:7], "it's", "  12345\n", "灯塔"], k=4)), weight)

    dialogs = [
        Dialog(
            (
                *([say("system")] if chosen.random() < 0.5 else []),
                *(say(role, chosen.choice([0.0, 0.5, 1.0])) for _ in range(2) for role in ("user", "assistant")),
                say("user"),
                say("assistant"),
            ),
            Place("f", line),
        )
        for line in range(300)
    ]
    together = list(template.attempt_many(dialogs))
    assert len(template._words._known) > 50  # not the tokenizer itself
    assert template._words._pause == 0
    for dialog, result in zip(dialogs, together, strict=True):
        (alone,) = template.attempt_many([dialog])
        assert isinstance(result, EncodedDialog)
        assert isinstance(alone, EncodedDialog)
        assert result.straddling == alone.straddling
        for mine, theirs in zip(result.sequences, alone.sequences, strict=True):
            assert mine.input_ids.tolist() == theirs.input_ids.tolist()
            assert mine.weights.tolist() == theirs.weights.tolist()
            assert set(mine.weights.tolist()) >= {0.0, 1.0}
