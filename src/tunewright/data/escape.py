"""Special tokens spelled inside messages are text: nobody can end a turn, or begin one, by writing its marker.

A fast tokenizer first cuts its added tokens out of the raw text and then normalises what lies between. So a spelling
is broken by one character put behind its first, and a copy of the tokenizer removes that character as the first thing
its normalizer does: too late to become a token, and in time to be tokenised like any other text. Where nothing is
spelled, none of this happens and the ids are the tokenizer's own.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunewright.data.examples import Message, ToolCall
from tunewright.data.words import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BREAK = "\ufdd0"  # a noncharacter: Unicode promises that no text holds it
_WRITTEN_OUT = r"\ufdd0"


class Escape:
    """What a template's control tokens are, and how text that spells them is tokenised.

    In every message these are the tokenizer's special tokens. In what users, systems and tools say they are also the
    added tokens that the template's source writes, such as Qwen3's <tool_response> or DeepSeek's <｜User｜>; an
    assistant may write those itself (<think>, <tool_call>).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
        self._backend = backend(tokenizer)
        added = {token.content: (id, token) for id, token in tokenizer.added_tokens_decoder.items()}
        words = {content: item for content, item in added.items() if len(content) > 1 and not content.isspace()}
        special = {content for content, (_, token) in words.items() if token.special}
        special |= {content for content in words if content in set(tokenizer.special_tokens_map.values())}
        written = {content for content in words if content in source}
        self._for_assistant = _pattern(special)
        self._for_others = _pattern(special | written)
        self._control = {content: words[content][0] for content in special | written}

    def spelled(self, messages: Sequence[Message], tools: str | None = None) -> bool:
        """Whether text of the dialog spells a control token."""
        if tools is not None and self._for_others.search(_decoded(tools)):
            return True
        for message in messages:
            pattern = self._pattern(message)
            if pattern.search(message.content):
                return True
            if message.reasoning is not None and pattern.search(message.reasoning):
                return True
            if message.name is not None and pattern.search(message.name):
                return True
            for call in message.tool_calls:
                if pattern.search(call.name) or pattern.search(_decoded(call.arguments)):
                    return True
        return False

    def broken(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with every spelling broken by BREAK. Raises ValueError where a text holds that already."""
        return [self._broken(message) for message in messages]

    def broken_tools(self, tools: str | None) -> str | None:
        """As `broken`, for the JSON of the tools."""
        return None if tools is None else _break(_decoded(tools), self._for_others)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of rendered texts in which spellings are broken; offsets count the BREAKs.

        Raises ValueError where the tokenizer writes a control token even from plain text.
        """
        encodings = self._shielded.encode_batch(list(texts), add_special_tokens=False)
        control = set(self._control.values())
        for text, encoding in zip(texts, encodings, strict=True):
            if _WRITTEN_OUT in text:
                raise ValueError("it spells a special token, and the chat template writes it in ASCII")
            for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if id in control and BREAK in text[start:end]:
                    raise ValueError("it spells a special token, which this tokenizer cannot write as plain text")
        return [Tokens.of(encoding) for encoding in encodings]

    def _pattern(self, message: Message) -> "re.Pattern[str]":
        return self._for_assistant if message.role == "assistant" else self._for_others

    def _broken(self, message: Message) -> Message:
        pattern = self._pattern(message)
        return replace(
            message,
            content=_break(message.content, pattern),
            reasoning=None if message.reasoning is None else _break(message.reasoning, pattern),
            tool_calls=tuple(
                ToolCall(_break(call.name, pattern), _break(_decoded(call.arguments), pattern))
                for call in message.tool_calls
            ),
            name=None if message.name is None else _break(message.name, pattern),
        )

    @cached_property
    def _shielded(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        state: dict[str, Any] = json.loads(self._backend.to_str())
        forget: dict[str, Any] = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
        own = [] if state["normalizer"] is None else [state["normalizer"]]
        state["normalizer"] = {"type": "Sequence", "normalizers": [forget, *own]}
        for token in state["added_tokens"]:
            if token["content"] in self._control:
                token["normalized"] = False  # these are looked for before the normalizer runs
        shielded: Tokenizer = Tokenizer.from_str(json.dumps(state))
        shielded.no_truncation()
        shielded.no_padding()
        return shielded


def backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """The Rust tokenizer inside a fast one, neither truncating nor padding."""
    inner: Tokenizer = tokenizer.backend_tokenizer
    inner.no_truncation()
    inner.no_padding()
    return inner


def _pattern(spellings: set[str]) -> "re.Pattern[str]":
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _decoded(document: str) -> str:
    """JSON without the escapes behind which a spelling could hide. Raises ValueError for what is no JSON."""
    return json.dumps(json.loads(document), ensure_ascii=False) if "\\" in document else document


def _break(text: str, pattern: "re.Pattern[str]") -> str:
    if BREAK in text:
        raise ValueError("it spells a special token and holds U+FDD0, which is no character")
    while pattern.search(text):  # again for spellings that overlap
        text = pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
    return text
