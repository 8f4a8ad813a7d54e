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
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

KNOWN_WORDS = 1 << 16  # remembered; then the rare ones are forgotten
LEARNING = 4  # batches whose words are learnt although that does not pay at once
NEW_SHARE = {True: 0.5, False: 0.15}  # of a batch's words: with more, the tokenizer is faster (Chinese clauses, say)
JOINED = 2000  # words learnt in one call
OFTEN = 10  # a part that one text in so many has is a word
PAUSE = 16  # batches handed to the tokenizer before it is tried again

# Letters, numbers and white space, as character classes: those every version of Unicode since 3.0 agrees on.
LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u045f\u4e00-\u9fa5\uff21-\uff3a\uff41-\uff5a"
NUMBERS = "0-9\uff10-\uff19"
SPACES = " \t\n\r\u3000"
OTHERS = "!-/:-@\\[-`{-~\u00bf\u00d7\u00f7\u2010-\u2027\u2030-\u203e\u3001\u3002\u3008-\u3011\u3014-\u301b"
OTHERS += "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e"

_SAFE = re.compile(f"[{LETTERS}{NUMBERS}{SPACES}{OTHERS}]*")
_TAIL = rf"[{SPACES}]+(?![^{SPACES}])|[{SPACES}]+"
_GPT2 = rf"'(?:s|t|re|ve|m|ll|d)| ?[{LETTERS}]+| ?[{NUMBERS}]+| ?[^{SPACES}{LETTERS}{NUMBERS}]+|{_TAIL}"
_DIGITS = (  # digits one by one, then GPT-2's pattern on what lies between: a digit ends it like the end of the text
    rf"[{NUMBERS}]|'(?:s|t|re|ve|m|ll|d)| ?[{LETTERS}]+| ?[^{SPACES}{LETTERS}{NUMBERS}]+"
    rf"|[{SPACES}]+(?![^{SPACES}{NUMBERS}])|[{SPACES}]+"
)
_LLAMA3 = (
    rf"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n{LETTERS}{NUMBERS}]?[{LETTERS}]+|[{NUMBERS}]{{1,3}}"
    rf"| ?[^{SPACES}{LETTERS}{NUMBERS}]+[\r\n]*|[{SPACES}]*[\r\n]+|{_TAIL}"
)
_OWN_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_OWN_LLAMA3: _LLAMA3, _OWN_LLAMA3.replace("{1,3}", ""): _LLAMA3.replace("{1,3}", "")}

Cut = Callable[[str], list[str]]  # the words of a text without added tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one text: `ids` int32 [n] and the characters that each stands for, `offsets` int64 [n, 2].

    The methods are those of tokenizers' `Encoding`.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def char_to_token(self, position: int) -> int | None:
        """The first token that stands for a character, None where there is none."""
        token = int(np.searchsorted(self.offsets[:, 1], position, side="right"))
        return token if token < len(self.ids) and self.offsets[token, 0] <= position else None

    def token_to_chars(self, token: int) -> tuple[int, int]:
        """The characters [begin, end) that a token stands for."""
        begin, end = self.offsets[token].tolist()
        return begin, end


class WordTokenizer:
    """Does what `backend.encode_batch(texts, add_special_tokens=False)` does, faster where it can."""

    def __init__(self, backend: "Tokenizer") -> None:
        from tokenizers import Tokenizer

        state = json.loads(backend.to_str())
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._cut = _cutter(state)
        self._added_tokens = {token["content"] for token in state["added_tokens"]}
        self._joint = next(((token["content"], token["id"]) for token in state["added_tokens"]), None)
        longest_first = map(re.escape, sorted(self._added_tokens, key=len, reverse=True))
        self._added = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._batches = self._pause = 0
        self._forget_all()

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, as the tokenizer gives them."""
        if self._cut is None or self._pause > 0 or not texts:
            self._pause -= 1
            return self._encode(texts)
        parts = [self._added.split(text) for text in texts]
        often = self._often(parts)
        words = [_words(one, often, self._cut) for one in parts]
        sizes = np.array([len(one) for one in words if one is not None], np.int64)
        numbers = self._numbers([word for one in words if one is not None for word in one], often, self._cut)
        if numbers is None:
            self._pause = PAUSE
            return self._encode(texts)
        looked_up = iter(self._look_up(numbers, sizes))
        others = iter(self._encode([text for text, one in zip(texts, words, strict=True) if one is None]))
        return [next(others if one is None else looked_up) for one in words]

    def _often(self, parts: Sequence[Sequence[str]]) -> set[str]:
        """Added tokens, and what stands between two of them in many texts: a system prompt, say. All count as words."""
        counts = Counter(chain.from_iterable(parts))
        return {part for part, count in counts.items() if count * OFTEN > len(parts)}.union(self._added_tokens)

    def _numbers(self, words: Sequence[str], often: set[str], cut: Cut) -> np.ndarray | None:
        """The number of each word, int64, which is known from now on; None where to learn the new ones does not pay,
        or one of them is not a word when it stands alone."""
        numbers = self._known_numbers(words)
        missing = np.flatnonzero(numbers < 0).tolist()
        new = {words[position] for position in missing}
        self._batches += 1
        if len(new) > NEW_SHARE[self._batches <= LEARNING] * len(words):
            self._batches = 0
            return None
        if any(cut(word) != [word] for word in new - often):
            return None
        if len(new) + len(self._known) > KNOWN_WORDS:
            self._forget_rare()
            numbers = self._known_numbers(words)
            missing = np.flatnonzero(numbers < 0).tolist()
            new = {words[position] for position in missing}
        self._remember(sorted(new))
        numbers[missing] = [self._known[words[position]] for position in missing]
        self._uses += np.bincount(numbers, minlength=len(self._uses))
        return numbers

    def _known_numbers(self, words: Sequence[str]) -> np.ndarray:
        """The number of each word, int64, -1 where it is not known."""
        return np.fromiter(map(self._known.get, words, repeat(-1)), np.int64, len(words))

    def _forget_all(self) -> None:
        self._known: dict[str, int] = {}
        self._firsts, self._counts, self._lengths, self._uses = (np.zeros(0, np.int64) for _ in range(4))
        self._ids, self._offsets = np.zeros(0, np.int32), np.zeros((0, 2), np.int64)

    def _forget_rare(self) -> None:
        """Know only words that were met again, and of these the half that was met most often, if there are so many."""
        most = np.argsort(-self._uses, kind="stable")[: KNOWN_WORDS // 2]
        kept = np.sort(most[self._uses[most] > 1])
        words = list(self._known)
        counts, ends = self._counts[kept], np.cumsum(self._counts[kept])
        tokens = np.repeat(self._firsts[kept] - ends + counts, counts) + np.arange(counts.sum())
        self._known = {words[number]: place for place, number in enumerate(kept.tolist())}
        self._firsts, self._counts, self._lengths = ends - counts, counts, self._lengths[kept]
        self._uses = self._uses[kept] // 2  # so that what was frequent long ago makes room
        self._ids, self._offsets = self._ids[tokens], self._offsets[tokens]

    def _remember(self, words: Sequence[str]) -> None:
        for begin in range(0, len(words), JOINED):
            some = words[begin : begin + JOINED]
            ids, offsets, counts = self._tokenise_joined(some) or self._tokenise_each(some)
            self._known.update(zip(some, range(len(self._known), len(self._known) + len(some)), strict=True))
            self._firsts = np.append(self._firsts, len(self._ids) + np.cumsum(counts) - counts)
            self._counts = np.append(self._counts, counts)
            self._lengths = np.append(self._lengths, [len(word) for word in some])
            self._uses = np.append(self._uses, np.zeros(len(some), np.int64))
            self._ids = np.append(self._ids, ids)
            self._offsets = np.concatenate([self._offsets, offsets])

    def _tokenise_each(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and offsets of all words, one behind the other, and how many tokens each has."""
        tokens = self._encode(words)
        counts = np.array([len(one.ids) for one in tokens], np.int64)
        return np.concatenate([one.ids for one in tokens]), np.concatenate([one.offsets for one in tokens]), counts

    def _tokenise_joined(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """The same with one call, which is faster: the words joined by an added token, which parts texts cleanly.

        None where there is no such token, or it did not part just these words.
        """
        if self._joint is None or not self._added_tokens.isdisjoint(words):
            return None
        token, id = self._joint
        lengths = np.array([len(word) for word in words])
        begins = np.cumsum(lengths + len(token)) - lengths - len(token)
        (joined,) = self._encode([token.join(words)])
        joints = np.flatnonzero(joined.ids == id)
        if not np.array_equal(joined.offsets[joints, 0], (begins + lengths)[:-1]):
            return None
        counts = np.diff(joints, prepend=-1, append=len(joined.ids)) - 1
        offsets = np.delete(joined.offsets, joints, axis=0) - np.repeat(begins, counts)[:, None]
        return np.delete(joined.ids, joints), offsets, counts

    def _look_up(self, words: np.ndarray, sizes: np.ndarray) -> list[Tokens]:
        """Tokens of texts, given as the numbers of all their words and how many of these each text has."""
        counts, lengths = self._counts[words], self._lengths[words]
        characters, ends = np.append(0, np.cumsum(lengths)), np.append(0, np.cumsum(counts))
        last_words = np.cumsum(sizes)
        begins = characters[:-1] - np.repeat(characters[last_words - sizes], sizes)  # of each word in its text
        tokens = np.repeat(self._firsts[words] - ends[:-1], counts) + np.arange(ends[-1])
        ids, offsets = self._ids[tokens], self._offsets[tokens] + np.repeat(begins, counts)[:, None]
        borders = zip(ends[last_words - sizes].tolist(), ends[last_words].tolist(), strict=True)
        return [Tokens(ids[begin:end], offsets[begin:end]) for begin, end in borders]

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False) if texts else []
        return [_tokens(one) for one in encodings]


def _tokens(encoding: "Encoding") -> Tokens:
    ids = encoding.ids
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
    return Tokens(np.array(ids, np.int32), offsets.reshape(-1, 2))


def _words(parts: Sequence[str], often: set[str], cut: Cut) -> list[str] | None:
    """The words of a text in parts, None where a character is not a certain one."""
    words: list[str] = []
    for part in parts:
        if part in often:
            words.append(part)
        elif not _SAFE.fullmatch(part):
            return None
        else:
            words += cut(part)
    return words


def _cutter(state: dict[str, Any]) -> Cut | None:
    """How a tokenizer, given as its JSON, cuts words; None where that is not known for certain."""
    if state["normalizer"] not in (None, {"type": "NFC"}) or state["model"].get("dropout"):
        return None
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    if any(token[flag] for token in state["added_tokens"] for flag in flags) or _trims_by_position(state):
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


def _trims_by_position(state: dict[str, Any]) -> bool:
    """Whether offsets depend on where in the text a token stands."""
    last = state["post_processor"] or {}
    return any(
        stage["type"] == "ByteLevel" and stage["add_prefix_space"] and stage["trim_offsets"]
        for stage in last.get("processors", [last])
        if stage
    )
