"""The chat template: how a dialog becomes text, token ids and loss weights; one renderer for training, chat and export.

The text is the tokenizer's own Jinja template (or one given) in transformers' sandbox, tokenised once as a whole.
Which tokens are trained follows from structure, never from searching decoded text:

1. a template with `{% generation %}` marks says itself which characters the assistant writes;
2. otherwise the dialog up to a question, rendered with the generation prompt, and the dialog up to its answer are
   both prefixes of the whole rendering, and what lies between them is what the model must write.

A token is trained when it lies wholly inside such a span and not behind the stop token that ends it.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from tunewright.data.examples import Dialog, Encoded, Message
from tunewright.data.words import WordTokenizer
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_QUESTION, _ANSWER = "tunewright-question", "tunewright-answer"  # what the template is probed with
_MANY = 100  # texts for which it pays to know words
_CHUNK = 1000  # dialogs tokenised per call: large enough for the batch speed, small enough for flat memory

REWRITES = "the chat template renders earlier answers differently once the dialog goes on"
UNPROMPTED = "the chat template's generation prompt is not how it begins this answer"
NO_QUESTION = "the dialog begins with an answer"
UNMARKED = "the template's {% generation %} marks do not match the answers of the dialog"


@dataclass(frozen=True, slots=True)
class EncodedDialog:
    """A dialog that can be trained on.

    `straddling` counts tokens that begin before an answer and end inside it (they stay masked), `spells_special`
    says that a message contains the text of a special token, which tokenises as that token.
    """

    encoded: Encoded
    straddling: int
    spells_special: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A dialog this template cannot train on, and why; equal reasons are equal strings, so that they can be counted."""

    reason: str


class ChatTemplate:
    """One renderer for training, chat, evaluation and export.

    Attributes:
        source: Jinja text of the template.
        stop_ids: every id that ends an answer: the ids given, the tokenizer's eos, the template's own turn end.
        turn_end: id of the special token the template writes after an answer, None where it writes none.
        prompt_is_silent: the template ignores `add_generation_prompt` and writes special tokens between question and
            answer, so the model itself must write the header of its answer.

    Raises UsageError where there is no template, its Jinja is wrong, or it cannot render one question and answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", source: str | None, eos_ids: Sequence[int]) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "this model's tokenizer has no fast version (tokenizer.json), which is needed to know the characters "
                "of each token; convert it once with transformers and point `model` at the result"
            )
        if source is None and tokenizer.chat_template is None:
            raise UsageError(
                "this model's tokenizer has no chat template, so it is not known how a dialog is written; "
                "give one in `data.template: path.jinja`, or start from the model's chat version (-instruct, -chat)"
            )
        self.source: str = source if source is not None else tokenizer.get_chat_template()
        self._tokenizer = tokenizer
        self._marked = _GENERATION_MARK.search(self.source) is not None
        self._special_tokens: dict[str, str] = dict(tokenizer.special_tokens_map)
        self._added = _added_tokens(tokenizer)
        self._spelling = special_spelling(tokenizer)
        self.turn_end, self.prompt_is_silent = self._probe()
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        turn_end = [] if self.turn_end is None else [self.turn_end]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos_ids, *eos, *turn_end]))
        self._stops = frozenset(self.stop_ids)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a dialog. Raises UsageError with the template's own words where it refuses the messages."""
        try:
            return self._render(messages, add_generation_prompt)
        except TemplateError as error:
            raise UsageError(_refusal(error)) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids after which the model writes its answer: the dialog so far and the generation prompt."""
        text = self.render(messages, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode(self, dialog: Dialog) -> Encoded:
        """Token ids and loss weights of one dialog. Raises UsageError with the place where it cannot be trained on."""
        return self.encode_many([dialog])[0]

    def encode_many(self, dialogs: Sequence[Dialog]) -> list[Encoded]:
        """As `encode`, tokenised in batches."""
        encoded = []
        for dialog, result in zip(dialogs, self.attempt_many(dialogs), strict=True):
            if isinstance(result, Refused):
                raise UsageError(f"{dialog.place}: {result.reason}")
            encoded.append(result.encoded)
        return encoded

    def attempt_many(self, dialogs: Sequence[Dialog]) -> Iterator[EncodedDialog | Refused]:
        """One result per dialog, in order: the encoding, or why this template cannot train on it."""
        for begin in range(0, len(dialogs), _CHUNK):
            chunk = dialogs[begin : begin + _CHUNK]
            rendered = [self._text_and_spans(dialog.messages) for dialog in chunk]
            texts = [item[0] for item in rendered if not isinstance(item, Refused)]
            tokens = iter(self._tokenise(texts))
            for dialog, item in zip(chunk, rendered, strict=True):
                if isinstance(item, Refused):
                    yield item
                else:
                    yield self._weigh(dialog, *item, *next(tokens))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                _plain(messages),
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    def _render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Callable[..., Any] = render_jinja_template  # annotated as returning str there
        texts, marks = render(
            conversations=[_plain(messages)],
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self._special_tokens,
        )
        return texts[0], marks[0]

    def _text_and_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | Refused:
        """The whole text and the characters [start, end) that each trained answer, with its turn end, takes in it."""
        try:
            return self._marked_spans(messages) if self._marked else self._prefix_spans(messages)
        except TemplateError as error:
            return Refused(_refusal(error))

    def _marked_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | Refused:
        text, marks = self._render_marked(messages)
        answers = [message for message in messages if message.role == "assistant"]
        if len(marks) != len(answers):
            return Refused(UNMARKED)
        return text, [mark for mark, answer in zip(marks, answers, strict=True) if answer.train]

    def _prefix_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]] | Refused:
        whole = self._render(messages)
        spans: list[Span] = []
        for i, message in enumerate(messages):
            if not message.train:
                continue
            if i == 0:
                return Refused(NO_QUESTION)
            prefix = self._render(messages[:i], add_generation_prompt=True)
            upto = whole if i + 1 == len(messages) else self._render(messages[: i + 1])
            if not upto.startswith(prefix):
                return Refused(UNPROMPTED)
            if not whole.startswith(upto):
                return Refused(REWRITES)
            spans.append((len(prefix), len(upto)))
        return whole, spans

    def _tokenise(self, texts: list[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Ids and character offsets int64 [n, 2] of each text."""
        if len(texts) < _MANY:
            for one in self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
                yield one.ids, np.array(one.offsets, dtype=np.int64).reshape(-1, 2)
        else:
            for tokens in self._words.encode_batch(texts):
                yield tokens.ids.tolist(), tokens.offsets

    @cached_property
    def _words(self) -> WordTokenizer:
        return WordTokenizer(self._tokenizer.backend_tokenizer)

    def _weigh(
        self, dialog: Dialog, text: str, spans: Sequence[Span], ids: list[int], offsets: np.ndarray
    ) -> EncodedDialog:
        # Tokens of one character share its offsets, and some tokenizers trim a token's leading space from them: what
        # no token claims belongs to the one after it. Both bounds then never fall, and bisection finds the spans.
        ends = np.maximum.accumulate(offsets[:, 1])
        starts = np.minimum(offsets[:, 0], np.concatenate([[0], ends])[:-1])
        weights = np.zeros(len(ids), np.float32)
        straddling = 0
        for start, end in spans:
            first = int(np.searchsorted(starts, start))
            last = min(int(np.searchsorted(ends, end, side="right")), int(np.searchsorted(starts, end)))
            straddling += int(np.count_nonzero(ends[:first] > start))
            weights[first : self._stop_after(text, ids, offsets, first, last)] = 1.0
        spells = any(self._spelling.search(message.content) for message in dialog.messages)
        return EncodedDialog(Encoded(np.array(ids, np.int32), weights), straddling, spells)

    def _stop_after(self, text: str, ids: list[int], offsets: np.ndarray, first: int, last: int) -> int:
        """One past the first stop token of the run of added tokens and whitespace that ends [first, last).

        `last` where there is none: then the stop proof fails.
        """
        stop = last
        for i in range(last - 1, first - 1, -1):
            if ids[i] in self._stops:
                stop = i + 1
            elif ids[i] not in self._added and not text[offsets[i, 0] : offsets[i, 1]].isspace():
                break
        return stop

    def _probe(self) -> tuple[int | None, bool]:
        """Render one question and answer: the special token behind the answer; is the generation prompt ignored?"""
        question, answer = Message("user", _QUESTION), Message("assistant", _ANSWER)
        try:
            whole = self._render([question, answer])
            prompt = self._render([question], add_generation_prompt=True)
            unprompted = self._render([question])
        except TemplateSyntaxError as error:
            raise UsageError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
        except (TemplateError, TypeError) as error:
            raise UsageError(f"the chat template cannot render one question and its answer: {error}") from error
        before, found, after = whole.rpartition(_ANSWER)
        if not found or _QUESTION not in before:
            raise UsageError("the chat template leaves out the content of the messages; use another `data.template`")
        tail = self._tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
        turn_end = next((id for id in tail if id in self._added), None)
        lead = before.removeprefix(prompt)
        return turn_end, prompt == unprompted and lead != before and self._spelling.search(lead) is not None


def template_source(tokenizer: "PreTrainedTokenizerBase", setting: str, base: Path) -> str | None:
    """The Jinja text `data.template` means: a file's (relative to `base`), or the tokenizer's own for auto.

    Dates in it are fixed (`freeze_dates`). None where auto finds none. Raises UsageError for a file that is missing
    or not UTF-8.
    """
    if setting == "auto":
        return None if tokenizer.chat_template is None else freeze_dates(str(tokenizer.get_chat_template()))
    path = base / setting
    try:
        return freeze_dates(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"data.template: cannot read {path} ({error.strerror}); write auto or the path of a Jinja file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"data.template: {path} is not UTF-8 (byte {error.start})") from error


def freeze_dates(source: str) -> str:
    """`source` with every `strftime_now("…")` (Llama-3.1 writes today's date so) replaced by today's text.

    The run keeps this text, so a run resumed or chatted with tomorrow has the prompt it was trained with.
    """
    now = datetime.now()
    return _STRFTIME_NOW.sub(lambda call: json.dumps(now.strftime(call["format"])), source)


def special_spelling(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Finds text that would tokenise as a special or otherwise added token."""
    spellings = sorted(_added_tokens(tokenizer).values(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)) or "(?!)")


def _added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Special and otherwise added tokens; whitespace that is one (Gemma's newlines) is ordinary text."""
    contents = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    return {id: content for id, content in contents.items() if not content.isspace()}


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _refusal(error: TemplateError) -> str:
    return f"the chat template does not take this dialog: {error.message}"
