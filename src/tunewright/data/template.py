"""The chat template: how a dialog becomes text, token ids and loss weights; one renderer for training, chat and export.

The text is the tokenizer's own Jinja template, or another one given, tokenised as a whole. Which tokens are trained
follows from structure, never from searching decoded text:

1. a template with `{% generation %}` marks says itself which characters the assistant writes;
2. otherwise the dialog up to a question, rendered with the generation prompt, is how the dialog up to its answer
   begins, and what that adds is what the model must write.

A token is trained when it lies wholly inside such a span and not behind the stop token that ends it. Its loss weight
is that of its message.

Some templates render an answer differently once the dialog goes on: thinking models forget earlier thoughts, others
write the end only behind the last answer. Such answers are trained in sequences of their own, each as the model sees
it at that moment; the token forest computes what these sequences share only once.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from tunewright.data.escape import Escape, backend
from tunewright.data.examples import Dialog, Encoded, Message, ToolCall
from tunewright.data.render import Renderer, Tools, parse_tools
from tunewright.data.template_table import fitting, named, require_tokens, table
from tunewright.data.words import Tokens, WordTokenizer
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Reasoning = Literal["train", "strip"]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_THINKING_SWITCHES = ("enable_thinking", "thinking")  # variables by which templates let a model think or not
_QUESTION, _ANSWER = "tunewright-question", "tunewright-answer"  # what the template is probed with
_THOUGHTS, _RESULT, _TOOL = "tunewright-thoughts", "tunewright-result", "tunewright_tool"
_MANY = 100  # texts for which it pays to know words
_CHUNK = 1000  # dialogs tokenised per call: large enough for the batch speed, small enough for flat memory

UNPROMPTED = "the chat template's generation prompt is not how it begins this answer"
UNTHINKING = f"{UNPROMPTED}; where a thinking model is to answer without thoughts, set data.reasoning: strip"
NO_QUESTION = "the dialog begins with an answer"
NO_TOOLS = "it comes with tools, and the chat template does not show them to the model"
NO_CALLS = "it calls tools, and the chat template leaves calls or their results out"
NO_REASONING = "the chat template leaves its reasoning out; strip that (data.reasoning: strip) or take another template"


@dataclass(frozen=True, slots=True)
class EncodedDialog:
    """A dialog that can be trained on.

    `sequences` is one, or several where the template renders earlier answers differently once the dialog goes on;
    every trained answer is trained in exactly one of them. `straddling` counts tokens that begin before an answer and
    end inside it (they stay masked), `spells_special` says that a message contains the text of a control token, which
    is tokenised as plain text. `cut` is the number of messages left out so that it fits (data/cut.py).
    """

    sequences: tuple[Encoded, ...]
    straddling: int
    spells_special: bool
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A dialog this template cannot train on, and why; equal reasons are equal strings, so that they can be counted."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """The characters [start, end) of `text` that the model must write; `text` is the dialog up to there."""

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The sequences of one dialog as text, each with its answers; `broken` where spellings in it are."""

    sequences: list[tuple[str, list[_Answer]]]
    broken: bool


class ChatTemplate:
    """One renderer for training, chat, evaluation and export.

    `reasoning` says what becomes of what an assistant thought before it answered: `train` lets the template place it,
    or writes it in front of the answer in <think> tags where the template knows no place; `strip` leaves it out.

    Attributes:
        source: Jinja text of the template.
        stop_ids: every id that ends an answer: the ids given, the tokenizer's eos, the template's own turn end.
        turn_end: id of the special token the template writes after an answer, None where it writes none.
        prompt_is_silent: the template ignores `add_generation_prompt` and writes special tokens between question and
            answer, so the model itself must write the header of its answer.

    Raises UsageError where there is no template, its Jinja is wrong, or it cannot render one question and answer.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        source: str | None,
        eos_ids: Sequence[int],
        reasoning: Reasoning = "train",
    ) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "this model's tokenizer has no fast version (tokenizer.json), which is needed to know the characters "
                "of each token; convert it once with transformers and point `model` at the result"
            )
        source = own_template(tokenizer) if source is None else source
        if source is None:
            raise UsageError(
                "this model's tokenizer has no chat template, so it is not known how a dialog is written; name one "
                "in `data.template` (`tunewright ls templates` shows them), give a file there (data.template: "
                "path.jinja), or start from the model's chat version (-instruct, -chat)"
            )
        self.source: str = source
        self._made_from = (tokenizer, source, tuple(eos_ids), reasoning)
        self._tokenizer = tokenizer
        self._strip = reasoning == "strip"
        self._switchable = reasoning == "train" and without_thinking(source) != source
        self._marked = _GENERATION_MARK.search(source) is not None
        self._added = _added_tokens(tokenizer)
        self._spelling = special_spelling(tokenizer)
        self._renderer = _compile(source, tokenizer)
        self._escape = Escape(tokenizer, source)
        self.turn_end, self.prompt_is_silent = self._probe()
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        turn_end = [] if self.turn_end is None else [self.turn_end]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos_ids, *eos, *turn_end]))
        self._stops = frozenset(self.stop_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, self._made_from  # compiled Jinja cannot be sent to another process

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: str | None = None) -> str:
        """The text of a dialog; `tools` is a JSON list of the tools at hand.

        Raises UsageError with the template's own words where it refuses the messages.
        """
        try:
            return self._renderer.text(self._placed(messages), parse_tools(tools), add_generation_prompt)
        except (TemplateError, TypeError, ValueError) as error:
            raise UsageError(_refusal(error)) from error

    def prompt_ids(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """Token ids after which the model writes its answer: the dialog so far and the generation prompt."""
        if not self._escape.spelled(messages, tools):
            text = self.render(messages, add_generation_prompt=True, tools=tools)
            return list(self._encode([text])[0].ids)
        try:
            broken, tools = self._escape.broken(messages), self._escape.broken_tools(tools)
            text = self.render(broken, add_generation_prompt=True, tools=tools)
            return list(self._escape.encode([text])[0].ids)
        except ValueError as error:
            raise UsageError(f"this cannot be said to the model: {error}") from error

    def encode(self, dialog: Dialog) -> tuple[Encoded, ...]:
        """The sequences of one dialog. Raises UsageError with the place where it cannot be trained on."""
        (result,) = self.attempt_many([dialog])
        if isinstance(result, Refused):
            raise UsageError(f"{dialog.place}: {result.reason}")
        return result.sequences

    def attempt_many(self, dialogs: Sequence[Dialog]) -> Iterator[EncodedDialog | Refused]:
        """One result per dialog, in order: the encoding, or why this template cannot train on it."""
        for begin in range(0, len(dialogs), _CHUNK):
            rendered = [self._render(dialog) for dialog in dialogs[begin : begin + _CHUNK]]
            plain = (item for item in rendered if isinstance(item, _Rendered) and not item.broken)
            encodings = iter(self._encode([text for item in plain for text, _ in item.sequences]))
            for item in rendered:
                if isinstance(item, Refused):
                    yield item
                elif item.broken:
                    yield self._weigh_broken(item)
                else:
                    yield self._weigh(item, [next(encodings) for _ in item.sequences])

    def _encode(self, texts: list[str]) -> "Sequence[Encoding | Tokens]":
        if len(texts) >= _MANY:
            return self._words.encode_batch(texts)
        return list(backend(self._tokenizer).encode_batch(texts, add_special_tokens=False))

    @cached_property
    def _words(self) -> WordTokenizer:
        return WordTokenizer(backend(self._tokenizer))

    def _render(self, dialog: Dialog) -> _Rendered | Refused:
        try:
            broken = self._escape.spelled(dialog.messages, dialog.tools)
            messages = self._escape.broken(dialog.messages) if broken else dialog.messages
            tools = parse_tools(self._escape.broken_tools(dialog.tools) if broken else dialog.tools)
            if tools is not None and not self._shows_tools:
                return Refused(NO_TOOLS)
            if not self._shows_calls and any(message.tool_calls or message.role == "tool" for message in messages):
                return Refused(NO_CALLS)
            sequences = self._sequences(self._placed(messages), tools)
        except TemplateError as error:
            return Refused(_refusal(error))
        except (TypeError, ValueError) as error:  # Jinja's arithmetic on what a message lacks, and broken JSON
            return Refused(str(error))
        return sequences if isinstance(sequences, Refused) else _Rendered(sequences, broken)

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with their reasoning where the template will find it, or without."""
        if self._strip:
            return [_without_reasoning(message) for message in messages]
        if any(message.reasoning is not None for message in messages) and not self._places_reasoning:
            return [_with_inline_reasoning(message) for message in messages]
        return messages

    def _sequences(self, messages: Sequence[Message], tools: Tools | None) -> list[tuple[str, list[_Answer]]] | Refused:
        """The whole dialog with the answers that stand in it as they stood when they were given, and the text up to
        each answer that does not, with those that do so there."""
        trained = [i for i, message in enumerate(messages) if message.train]
        if not trained:
            return [(self._renderer.text(messages, tools), [])]
        pending: list[_Answer] = []
        for i in trained:
            answer = self._answer(messages[: i + 1], tools)
            if isinstance(answer, Refused):
                return answer
            pending.append(answer)
        whole = pending[-1].text if trained[-1] + 1 == len(messages) else self._renderer.text(messages, tools)
        sequences = []
        while pending:
            placed = [(answer, self._within(whole, answer)) for answer in pending]
            inside = [answer for _, answer in placed if answer is not None]
            if inside:
                sequences.append((whole, inside))
            pending = [answer for answer, found in placed if found is None]
            whole = pending[-1].text if pending else ""
        return sequences[::-1]

    def _within(self, whole: str, answer: _Answer) -> _Answer | None:
        """`answer` as it stands in `whole`, None where that goes on differently before the answer's stop token."""
        if whole.startswith(answer.text):
            return answer
        end = self._end_of_stop(answer)
        return replace(answer, text=answer.text[:end], end=end) if whole.startswith(answer.text[:end]) else None

    def _end_of_stop(self, answer: _Answer) -> int:
        """One past the first stop token of the run of added tokens and whitespace that ends the answer."""
        text, position, end = answer.text, answer.end, answer.end
        while position > answer.start:
            before = max(answer.start, len(text[:position].rstrip()))
            id = next((id for id, token in self._added.items() if text.endswith(token, answer.start, before)), None)
            if id is None:
                break
            end = before if id in self._stops else end
            position = before - len(self._added[id])
        return end

    def _answer(self, messages: Sequence[Message], tools: Tools | None) -> _Answer | Refused:
        """The answer that ends `messages`."""
        *before, message = messages
        span = self._marked_span(messages, tools) if self._marked else None
        if span is None:
            if not before:
                return Refused(NO_QUESTION)
            text = self._renderer.text(messages, tools)
            prompt = self._renderer.text(before, tools, add_generation_prompt=True)
            if not text.startswith(prompt):
                return Refused(UNTHINKING if self._switchable else UNPROMPTED)
            span = _Answer(text, len(prompt), len(text), message.weight)
        thoughts = _reasoning(message)
        if thoughts is not None and thoughts.strip() not in span.text[span.start : span.end]:
            return Refused(NO_REASONING)
        return span

    def _marked_span(self, messages: Sequence[Message], tools: Tools | None) -> _Answer | None:
        """The answer that ends `messages` by the template's marks, None where these are not one per answer."""
        text, marks = self._renderer.marked(messages, tools)
        if len(marks) != sum(message.role == "assistant" for message in messages):
            return None
        return _Answer(text, *marks[-1], messages[-1].weight)

    def _weigh_broken(self, rendered: _Rendered) -> EncodedDialog | Refused:
        try:
            return self._weigh(rendered, self._escape.encode([text for text, _ in rendered.sequences]))
        except ValueError as error:
            return Refused(str(error))

    def _weigh(self, rendered: _Rendered, encodings: "Sequence[Encoding | Tokens]") -> EncodedDialog:
        sequences = []
        straddling = 0
        for (text, answers), encoding in zip(rendered.sequences, encodings, strict=True):
            encoded, count = self._weigh_one(text, answers, encoding)
            sequences.append(encoded)
            straddling += count
        return EncodedDialog(tuple(sequences), straddling, rendered.broken)

    def _weigh_one(self, text: str, answers: Sequence[_Answer], encoding: "Encoding | Tokens") -> tuple[Encoded, int]:
        ids = np.array(encoding.ids, np.int32)
        weights = np.zeros(len(ids), np.float32)
        straddling = 0
        for answer in answers:
            first, last = _edge(encoding, text, answer.start), _edge(encoding, text, answer.end)
            if first is None or last is None:
                first, last, count = _tokens_inside(encoding, answer.start, answer.end)
                straddling += count
            weights[first : self._stop_after(text, encoding, first, last)] = answer.weight
        return Encoded(ids, weights), straddling

    def _stop_after(self, text: str, encoding: "Encoding | Tokens", first: int, last: int) -> int:
        """One past the first stop token of the run of added tokens and whitespace that ends [first, last).

        `last` where there is none: then the stop proof fails.
        """
        ids, stop = encoding.ids, last
        for i in range(last - 1, first - 1, -1):
            if ids[i] in self._stops:
                stop = i + 1
            elif ids[i] not in self._added and not text[slice(*encoding.token_to_chars(i) or (0, 0))].isspace():
                break
        return stop

    def _probe(self) -> tuple[int | None, bool]:
        """Render one question and answer: the special token behind the answer; is the generation prompt ignored?"""
        question, answer = Message("user", _QUESTION), Message("assistant", _ANSWER)
        try:
            whole = self._renderer.text([question, answer])
            prompt = self._renderer.text([question], add_generation_prompt=True)
            unprompted = self._renderer.text([question])
        except (TemplateError, TypeError) as error:
            raise UsageError(f"the chat template cannot render one question and its answer: {error}") from error
        before, found, after = whole.rpartition(_ANSWER)
        if not found or _QUESTION not in before:
            raise UsageError("the chat template leaves out the content of the messages; use another `data.template`")
        turn_end = next((id for id in self._encode([after])[0].ids if id in self._added), None)
        lead = before.removeprefix(prompt)
        return turn_end, prompt == unprompted and lead != before and self._spelling.search(lead) is not None

    @cached_property
    def markers(self) -> tuple[int, ...]:
        """Ids of the special and otherwise added tokens that the template writes around a question and its answer."""
        dialog = [Message("user", _QUESTION), Message("assistant", _ANSWER)]
        written = self._encode([self._renderer.text(dialog)])[0].ids
        return tuple(dict.fromkeys(id for id in written if id in self._added))

    @cached_property
    def _places_reasoning(self) -> bool:
        thinking = Message("assistant", _ANSWER, reasoning=_THOUGHTS)
        return self._probe_shows([Message("user", _QUESTION), thinking], None, _THOUGHTS)

    @cached_property
    def _shows_tools(self) -> bool:
        return self._probe_shows([Message("user", _QUESTION)], _PROBE_TOOLS, _TOOL)

    @cached_property
    def _shows_calls(self) -> bool:
        call = Message("assistant", "", tool_calls=(ToolCall(_TOOL, "{}"),))
        dialog = [Message("user", _QUESTION), call, Message("tool", _RESULT, name=_TOOL)]
        return self._probe_shows(dialog, None, _TOOL) and self._probe_shows(dialog, None, _RESULT)

    def _probe_shows(self, messages: Sequence[Message], tools: Tools | None, sought: str) -> bool:
        try:
            return sought in self._renderer.text(messages, tools)
        except (TemplateError, TypeError):
            return True  # it refuses in its own words, and will do so again for the dialog


_PROBE_TOOLS: Tools = [
    {
        "type": "function",
        "function": {"name": _TOOL, "description": "", "parameters": {"type": "object", "properties": {}}},
    }
]


def template_source(
    tokenizer: "PreTrainedTokenizerBase", setting: str, base: Path, model: str = "", reasoning: Reasoning = "train"
) -> str | None:
    """The Jinja text `data.template` means, None where auto finds none.

    auto is the tokenizer's own, else the one of our table that fits the name of the model. Otherwise a name in that
    table, or a file relative to `base`. Dates in it are fixed (`freeze_dates`), and thinking is off where the data's
    reasoning is stripped, so that chat and export, which read this text, keep to it.
    Raises UsageError for a file that is missing or not UTF-8, and for tokens the tokenizer does not have.
    """
    source = _found_source(tokenizer, setting, base, model)
    if source is None:
        return None
    return freeze_dates(without_thinking(source) if reasoning == "strip" else source)


def _found_source(tokenizer: "PreTrainedTokenizerBase", setting: str, base: Path, model: str) -> str | None:
    if setting == "auto":
        own = own_template(tokenizer)
        fits = fitting(model) if own is None else None
        return own if fits is None else _table_source(fits, tokenizer)
    path = base / setting
    if named(setting) is not None and not path.is_file():
        return _table_source(setting, tokenizer)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        near = difflib.get_close_matches(setting, table(), n=1)
        meant = f"; did you mean {near[0]}?" if near else ", or a name from `tunewright ls templates`"
        raise UsageError(
            f"data.template: cannot read {path} ({error.strerror}); write auto, the path of a Jinja file{meant}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"data.template: {path} is not UTF-8 (byte {error.start})") from error


def _table_source(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    entry = named(name)
    assert entry is not None
    require_tokens(name, entry, tokenizer)
    return entry.source


def own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The tokenizer's own Jinja text, None where it has none; one for tools is joined with the one without."""
    own: str | dict[str, str] | None = tokenizer.chat_template
    if own is None or isinstance(own, str):
        return own
    default, with_tools = own.get("default"), own.get("tool_use")
    if default is None:
        raise UsageError(
            f"this model's tokenizer has several chat templates ({', '.join(own)}) and none is the default; "
            "save the one you mean to a file and give it in `data.template: path.jinja`"
        )
    if with_tools is None:
        return default
    # trim_blocks takes the newline behind each tag away again, as Jinja does with the last one of a template.
    tools, plain = with_tools.removesuffix("\n"), default.removesuffix("\n")
    return f"{{% if tools %}}\n{tools}{{% else %}}\n{plain}{{% endif %}}"


def without_thinking(source: str) -> str:
    """`source` with the switches set by which a template lets its model think, unless the caller sets them."""
    switches = [name for name in _THINKING_SWITCHES if re.search(rf"\b{name}\b", source)]
    off = [f"{{%- if {name} is not defined %}}{{%- set {name} = false %}}{{%- endif %}}\n" for name in switches]
    return "".join(off) + source


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


def _edge(encoding: "Encoding | Tokens", text: str, position: int) -> int | None:
    """The token that begins at a character, where the one before it ends there; None where it is less simple."""
    token = len(encoding.ids) if position == len(text) else encoding.char_to_token(position)
    if token is None or token == 0:
        return None
    before = encoding.token_to_chars(token - 1)
    here = (position, position) if position == len(text) else encoding.token_to_chars(token)
    return token if before is not None and here is not None and before[1] == position == here[0] else None


def _tokens_inside(encoding: "Encoding | Tokens", start: int, end: int) -> tuple[int, int, int]:
    """[first, last) of the tokens wholly inside the characters [start, end), and how many only end inside.

    Tokens of one character share its offsets, and some tokenizers trim a token's leading space from them: what no
    token claims belongs to the one after it. Both bounds then never fall, and bisection finds the tokens.
    """
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    ends = np.maximum.accumulate(offsets[:, 1])
    starts = np.minimum(offsets[:, 0], np.concatenate([[0], ends])[:-1])
    first = int(np.searchsorted(starts, start))
    last = min(int(np.searchsorted(ends, end, side="right")), int(np.searchsorted(starts, end)))
    return first, last, int(np.count_nonzero(ends[:first] > start))


def _compile(source: str, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    try:
        return Renderer(source, tokenizer.special_tokens_map)
    except TemplateSyntaxError as error:
        raise UsageError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error


def _reasoning(message: Message) -> str | None:
    """What an assistant thought, wherever it stands."""
    if message.reasoning is not None:
        return message.reasoning
    thought = _THOUGHT.match(message.content)
    return None if thought is None else thought[1]


def _without_reasoning(message: Message) -> Message:
    thought = _THOUGHT.match(message.content) if message.role == "assistant" else None
    if message.reasoning is None and thought is None:
        return message
    return replace(message, content=message.content[thought.end() :] if thought else message.content, reasoning=None)


def _with_inline_reasoning(message: Message) -> Message:
    if message.reasoning is None:
        return message
    return replace(message, content=f"<think>\n{message.reasoning}\n</think>\n\n{message.content}", reasoning=None)


def _refusal(error: Exception) -> str:
    message = error.message if isinstance(error, TemplateError) else str(error)
    return f"the chat template does not take this dialog: {message}"
