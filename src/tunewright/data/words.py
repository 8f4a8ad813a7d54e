"""Tokenise much text quickly: most words have been seen before, so their tokens are known.

Byte-level tokenizers cut a text into words by a pattern and then look at one word at a time. For the patterns in use
(GPT-2's, with or without single digits, and Llama-3's and Qwen's) and for characters about whose class no two versions
of Unicode disagree, the same cuts are made here, and a word's tokens are asked of the tokenizer only once. What comes
out is exactly what the tokenizer gives, ids and character offsets; every other tokenizer or text goes to the tokenizer
itself.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

KNOWN_WORDS = 1 << 16  # remembered; then the rare ones are forgotten
LEARNING = 4  # batches whose words are learnt although that does not pay at once
NEW_SHARE = {True: 0.5, False: 0.15}  # of a batch's words: with more, the tokenizer is faster (Chinese clauses, say)
OFTEN = 10  # a part that one text in so many has is a word
PAUSE = 16  # batches handed to the tokenizer before it is tried again

# Letters, numbers and white space, as character classes: those every version of Unicode since 3.0 agrees on.
LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u045f\u4e00-\u9fa5\uff21-\uff3a\uff41-\uff5a"
NUMBERS = "0-9\uff10-\uff19"
SPACES = " \t\n\r\u3000"
OTHERS = "!-/:-@\\[-`{-~\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u203e\u3001\u3002\u3008-\u3011\u3014-\u301b"
OTHERS += "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e"

_SAFE = re.compile(f"[{LETTERS}{NUMBERS}{SPACES}{OTHERS}]*")
# Possessive (?+, ++) where giving back could not help: a tenth faster.
_TAIL = rf"[{SPACES}]+(?![^{SPACES}])|[{SPACES}]+"
_GPT2 = rf"'(?:s|t|re|ve|m|ll|d)| ?+[{LETTERS}]++| ?+[{NUMBERS}]++| ?+[^{SPACES}{LETTERS}{NUMBERS}]++|{_TAIL}"
_DIGITS = (  # digits one by one, then GPT-2's pattern on what lies between: a digit ends it like the end of the text
    rf"[{NUMBERS}]|'(?:s|t|re|ve|m|ll|d)| ?+[{LETTERS}]++| ?+[^{SPACES}{LETTERS}{NUMBERS}]++"
    rf"|[{SPACES}]+(?![^{SPACES}{NUMBERS}])|[{SPACES}]+"
)
_LLAMA3 = (
    rf"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n{LETTERS}{NUMBERS}]?+[{LETTERS}]++|[{NUMBERS}]{{1,3}}"
    rf"| ?+[^{SPACES}{LETTERS}{NUMBERS}]++[\r\n]*+|[{SPACES}]*[\r\n]+|{_TAIL}"
)
_OWN_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_OWN_LLAMA3: _LLAMA3, _OWN_LLAMA3.replace("{1,3}", ""): _LLAMA3.replace("{1,3}", "")}

Cut = Callable[[str], list[str]]  # the words of a text without added tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one text: `ids` int32 [n] and the characters [begin, end) that each stands for, `spans` int64 [2, n]."""

    ids: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, encoding: "Encoding") -> "Tokens":
        """Those that the tokenizer itself gives."""
        return cls(np.array(encoding.ids, np.int32), _to_spans(encoding.offsets))

    def border(self, position: int) -> int | None:
        """The token that begins at a character where the one before it ends, all tokens' number where the last ends
        there; None where it is less simple."""
        token = int(self.spans[0].searchsorted(position))
        if token == 0 or self.spans[1, token - 1] != position:
            return None
        return token if token == len(self.ids) or self.spans[0, token] == position else None


class WordTokenizer:
    """Does what `backend.encode_batch(texts, add_special_tokens=False)` does, faster where it can."""

    def __init__(self, backend: "Tokenizer") -> None:
        from tokenizers import Tokenizer

        written = backend.to_str()
        state = json.loads(written)
        self._backend = Tokenizer.from_str(written)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._model = self._backend.model
        self._cut = _cutter(state)
        self._added_tokens = {token["content"] for token in state["added_tokens"]}
        longest_first = map(re.escape, sorted(self._added_tokens, key=len, reverse=True))
        self._added = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._batches = self._pause = 0
        self._known = _Numbers()
        self._firsts, self._counts, self._lengths, self._uses = (np.zeros(0, np.int64) for _ in range(4))
        self._ids, self._spans = np.zeros(0, np.int32), np.zeros((2, 0), np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, as the tokenizer gives them."""
        if self._cut is None or self._pause > 0 or not texts:
            self._pause -= 1
            return self._encode(texts)
        parts = [self._added.split(text) for text in texts]
        often = self._often(parts)
        words, sizes = _words(parts, often, self._cut)
        numbers = self._numbers(words, often)
        if numbers is None:
            self._pause = PAUSE
            return self._encode(texts)
        looked_up = iter(self._look_up(numbers, np.array([size for size in sizes if size is not None], np.int64)))
        others = iter(self._encode([text for text, size in zip(texts, sizes, strict=True) if size is None]))
        return [next(others if size is None else looked_up) for size in sizes]

    def _often(self, parts: Sequence[Sequence[str]]) -> set[str]:
        """Added tokens, and what stands between two of them in many texts: a system prompt, say. All count as words."""
        counts = Counter(chain.from_iterable(parts))
        return {part for part, count in counts.items() if count * OFTEN > len(parts)}.union(self._added_tokens)

    def _numbers(self, words: Sequence[str], often: set[str]) -> np.ndarray | None:
        """The number of each word, int64, which is known from now on; None where to learn the new ones does not pay."""
        numbers, new = self._meet(words)
        self._batches += 1
        if len(new) > NEW_SHARE[self._batches <= LEARNING] * len(words):
            self._known.forget(new)
            self._batches = 0
            return None
        if len(self._known) > KNOWN_WORDS:
            self._known.forget(new)
            self._forget_rare()
            numbers, new = self._meet(words)
        self._learn(new, often)
        self._uses += np.bincount(numbers, minlength=len(self._uses))
        return numbers

    def _meet(self, words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """The number of each word, int64, and the words that have just got theirs."""
        before = len(self._known)
        numbers = np.fromiter(map(self._known.__getitem__, words), np.int64, len(words))
        return numbers, list(islice(self._known, before, None))

    def _forget_rare(self) -> None:
        """Know only words that were met again, and of these the half that was met most often, if there are so many."""
        most = np.argsort(-self._uses, kind="stable")[: KNOWN_WORDS // 2]
        kept = np.sort(most[self._uses[most] > 1])
        words = list(self._known)
        counts, ends = self._counts[kept], np.cumsum(self._counts[kept])
        tokens = np.repeat(self._firsts[kept] - ends + counts, counts) + np.arange(counts.sum())
        self._known = _Numbers({words[number]: place for place, number in enumerate(kept.tolist())})
        self._firsts, self._counts, self._lengths = ends - counts, counts, self._lengths[kept]
        self._uses = self._uses[kept] // 2  # so that what was frequent long ago makes room
        self._ids, self._spans = self._ids[tokens], self._spans[:, tokens]

    def _learn(self, words: Sequence[str], often: set[str]) -> None:
        """Remember the tokens of words, which have got the next numbers."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        counts = []
        for word in words:
            of_word, spans_of_word = self._ask(word) if word in often else self._ask_model(word)
            ids += of_word
            spans += spans_of_word
            counts.append(len(of_word))
        sizes = np.array(counts, np.int64)
        self._firsts = np.append(self._firsts, len(self._ids) + np.cumsum(sizes) - sizes)
        self._counts = np.append(self._counts, sizes)
        self._lengths = np.append(self._lengths, np.array([len(word) for word in words], np.int64))
        self._uses = np.append(self._uses, np.zeros(len(words), np.int64))
        self._ids = np.append(self._ids, np.array(ids, np.int32))
        self._spans = np.concatenate([self._spans, _to_spans(spans)], axis=1)

    def _ask(self, part: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of what stands alone between two added tokens, or is one."""
        encoding = self._backend.encode(part, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def _ask_model(self, word: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of a word, which the tokenizer would cut out as it is: its model alone is asked, in a third
        of the time."""
        tokens = self._model.tokenize(word.encode().decode("latin-1").translate(BYTE_SPELLINGS))
        borders = accumulate([len(token.value) for token in tokens], initial=0)  # in bytes, each spelled as a character
        spans = list(pairwise(borders))
        if not word.isascii():  # a token may begin or end within a character: it stands for all of that
            characters = [number for number, character in enumerate(word) for _ in character.encode()]
            spans = [(characters[begin], characters[end - 1] + 1) for begin, end in spans]
        return [token.id for token in tokens], spans

    def _look_up(self, words: np.ndarray, sizes: np.ndarray) -> list[Tokens]:
        """Tokens of texts, given as the numbers of all their words and how many of these each text has."""
        counts, lengths = self._counts[words], self._lengths[words]
        characters, ends = np.append(0, np.cumsum(lengths)), np.append(0, np.cumsum(counts))
        last_words = np.cumsum(sizes)
        begins = characters[:-1] - np.repeat(characters[last_words - sizes], sizes)  # of each word in its text
        tokens = np.repeat(self._firsts[words] - ends[:-1], counts) + np.arange(ends[-1])
        ids, spans = self._ids[tokens], self._spans[:, tokens] + np.repeat(begins, counts)
        borders = zip(ends[last_words - sizes].tolist(), ends[last_words].tolist(), strict=True)
        return [Tokens(ids[begin:end], spans[:, begin:end]) for begin, end in borders]

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False) if texts else []
        return [Tokens.of(one) for one in encodings]


class _Numbers(dict[str, int]):
    """Words and their numbers: a new one gets the next when it is asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number

    def forget(self, newest: Sequence[str]) -> None:
        """Drop the words that came last."""
        for _ in newest:
            self.popitem()


def _to_spans(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets))
    return np.ascontiguousarray(flat.reshape(-1, 2).T)


def _words(parts_of_texts: Sequence[Sequence[str]], often: set[str], cut: Cut) -> tuple[list[str], list[int | None]]:
    """The words of all texts, each given in parts, and how many of them each has: None where a character is not a
    certain one, and then there are none of it."""
    words: list[str] = []
    sizes: list[int | None] = []
    for parts in parts_of_texts:
        before = len(words)
        for part in parts:
            if part in often:
                words.append(part)
            elif _SAFE.fullmatch(part):
                words += cut(part)
            else:
                del words[before:]
                sizes.append(None)
                break
        else:
            sizes.append(len(words) - before)
    return words, sizes


def _byte_spellings() -> dict[int, str]:
    """How byte-level tokenizers spell the 256 bytes: as themselves where they are visible in Latin-1, and the others
    by the characters from U+0100 on (GPT-2)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}


BYTE_SPELLINGS = _byte_spellings()
BYTES = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF0)}  # of the certain characters in UTF-8


def _cutter(state: dict[str, Any]) -> Cut | None:
    """How a tokenizer, given as its JSON, cuts words; None where that is not known for certain."""
    if state["normalizer"] not in (None, {"type": "NFC"}) or not _is_plain(state["model"]):
        return None
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    if any(token[flag] for token in state["added_tokens"] for flag in flags) or _trims(state):
        return None
    stages = state["pre_tokenizer"] or {}
    match stages.get("pretokenizers", [stages]):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return re.compile(_GPT2).findall
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return re.compile(_DIGITS).findall
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if pattern in _PATTERNS:
            return re.compile(_PATTERNS[pattern]).findall
    return None


def _is_plain(model: dict[str, Any]) -> bool:
    """Whether a model gives a word's tokens by its letters alone, with each byte in exactly one of them."""
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model[key] for key in odd):
        return False
    return all(BYTE_SPELLINGS[byte] in model["vocab"] for byte in BYTES)


def _trims(state: dict[str, Any]) -> bool:
    """Whether white space is taken from the offsets of tokens."""
    last = state["post_processor"] or {}
    return any(
        stage["type"] == "ByteLevel" and stage["trim_offsets"] for stage in last.get("processors", [last]) if stage
    )
