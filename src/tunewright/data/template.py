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

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from tunewright.data.escape import Escape, backend
from tunewright.data.examples import Dialog, Encoded, Message, ToolCall
from tunewright.data.render import Renderer, Tools, parse_tools
from tunewright.data.template_source import Reasoning, own_template, without_thinking
from tunewright.data.weigh import Answer, Weigher
from tunewright.data.words import Tokens, WordTokenizer
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_QUESTION, _ANSWER = "tunewright-question", "tunewright-answer"  # what the template is probed with
_THOUGHTS, _RESULT, _TOOL = "tunewright-thoughts", "tunewright-result", "tunewright_tool"
_MANY = 100  # texts for which it pays to know words
_CHUNK = 1000  # dialogs tokenised per call: large enough for the batch speed, small enough for flat memory

_OTHERWISE = "the chat template begins this answer otherwise than its generation prompt does"
UNPROMPTED = f"{_OTHERWISE}; take another data.template"
UNTHINKING = f"{_OTHERWISE}; where a thinking model is to answer without thoughts, set data.reasoning: strip"
NO_QUESTION = "the dialog begins with an answer"
NO_TOOLS = "it comes with tools, and the chat template does not show them to the model"
NO_CALLS = "it calls tools, and the chat template leaves calls or their results out"
NO_REASONING = "the chat template leaves its reasoning out; strip that (data.reasoning: strip) or take another template"


@dataclass(frozen=True, slots=True)
class EncodedDialog:
    """A dialog that can be trained on.

    `sequences` is one, or several where the template renders earlier answers differently once the dialog goes on;
    every trained answer is trained in exactly one of them, and the longest has `longest` tokens. `straddling` counts
    tokens that begin before an answer and end inside it (they stay masked), `spells_special` says that a message
    contains the text of a control token, which is tokenised as plain text. `cut` is the number of messages left out so
    that it fits, `uncut` how many tokens its longest sequence had before, 0 where nothing is cut (data/cut.py).
    """

    sequences: tuple[Encoded, ...]
    longest: int
    straddling: int
    spells_special: bool
    cut: int = 0
    uncut: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A dialog this template cannot train on, and why; equal reasons are equal strings, so that they can be counted."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Rendered:
    """The sequences of one dialog as text, each with its answers; `broken` where spellings in it are."""

    sequences: list[tuple[str, list[Answer]]]
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
        self._weigher = Weigher(self._added, frozenset(self.stop_ids))

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
        try:
            if self._escape.spelled(messages, tools):
                broken, tools = self._escape.broken(messages), self._escape.broken_tools(tools)
                (tokens,) = self._escape.encode([self.render(broken, add_generation_prompt=True, tools=tools)])
            else:
                (tokens,) = self._encode([self.render(messages, add_generation_prompt=True, tools=tools)])
        except ValueError as error:
            raise UsageError(f"this cannot be said to the model: {error}") from error
        ids: list[int] = tokens.ids.tolist()
        return ids

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

    def _encode(self, texts: list[str]) -> list[Tokens]:
        if len(texts) >= _MANY:
            return self._words.encode_batch(texts)
        return [Tokens.of(one) for one in backend(self._tokenizer).encode_batch(texts, add_special_tokens=False)]

    @cached_property
    def _words(self) -> WordTokenizer:
        return WordTokenizer(backend(self._tokenizer))

    def _render(self, dialog: Dialog) -> _Rendered | Refused:
        try:
            broken = self._escape.spelled(dialog.messages, dialog.tools)
            messages = self._escape.broken(dialog.messages) if broken else dialog.messages
            tools = parse_tools(self._escape.broken_tools(dialog.tools) if broken else dialog.tools)
            if tools is not None and not self.shows_tools:
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

    def _sequences(self, messages: Sequence[Message], tools: Tools | None) -> list[tuple[str, list[Answer]]] | Refused:
        """The whole dialog with the answers that stand in it as they stood when they were given, and the text up to
        each answer that does not, with those that do so there."""
        trained = [i for i, message in enumerate(messages) if message.train]
        if not trained:
            return [(self._renderer.text(messages, tools), [])]
        pending: list[Answer] = []
        for i in trained:
            answer = self._answer(messages[: i + 1], tools)
            if isinstance(answer, Refused):
                return answer
            pending.append(answer)
        whole = pending[-1].text if trained[-1] + 1 == len(messages) else self._renderer.text(messages, tools)
        sequences = []
        while pending:
            placed = [(answer, self._weigher.within(whole, answer)) for answer in pending]
            inside = [answer for _, answer in placed if answer is not None]
            if inside:
                sequences.append((whole, inside))
            pending = [answer for answer, found in placed if found is None]
            whole = pending[-1].text if pending else ""
        return sequences[::-1]

    def _answer(self, messages: Sequence[Message], tools: Tools | None) -> Answer | Refused:
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
            span = Answer(text, len(prompt), len(text), message.weight)
        thoughts = _reasoning(message)
        if thoughts is not None and thoughts.strip() not in span.text[span.start : span.end]:
            return Refused(NO_REASONING)
        return span

    def _marked_span(self, messages: Sequence[Message], tools: Tools | None) -> Answer | None:
        """The answer that ends `messages` by the template's marks, None where these are not one per answer."""
        text, marks = self._renderer.marked(messages, tools)
        if len(marks) != sum(message.role == "assistant" for message in messages):
            return None
        return Answer(text, *marks[-1], messages[-1].weight)

    def _weigh_broken(self, rendered: _Rendered) -> EncodedDialog | Refused:
        try:
            return self._weigh(rendered, self._escape.encode([text for text, _ in rendered.sequences]))
        except ValueError as error:
            return Refused(str(error))

    def _weigh(self, rendered: _Rendered, encodings: Sequence[Tokens]) -> EncodedDialog:
        sequences = []
        longest = straddling = 0
        for (text, answers), encoding in zip(rendered.sequences, encodings, strict=True):
            encoded, count = self._weigher.weigh(text, answers, encoding)
            sequences.append(encoded)
            longest = max(longest, len(encoded))
            straddling += count
        return EncodedDialog(tuple(sequences), longest, straddling, rendered.broken)

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
        turn_end = next((id for id in self._encode([after])[0].ids.tolist() if id in self._added), None)
        lead = before.removeprefix(prompt)
        return turn_end, prompt == unprompted and lead != before and self._spelling.search(lead) is not None

    @cached_property
    def markers(self) -> tuple[int, ...]:
        """Ids of the special and otherwise added tokens that the template writes around a question and its answer."""
        dialog = [Message("user", _QUESTION), Message("assistant", _ANSWER)]
        written = self._encode([self._renderer.text(dialog)])[0].ids.tolist()
        return tuple(dict.fromkeys(id for id in written if id in self._added))

    @cached_property
    def _places_reasoning(self) -> bool:
        thinking = Message("assistant", _ANSWER, reasoning=_THOUGHTS)
        return self._probe_shows([Message("user", _QUESTION), thinking], None, _THOUGHTS)

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the tools at hand reach the text."""
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


def special_spelling(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Finds text that would tokenise as a special or otherwise added token."""
    spellings = sorted(_added_tokens(tokenizer).values(), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)) or "(?!)")


def _added_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Special and otherwise added tokens; whitespace that is one (Gemma's newlines) is ordinary text."""
    contents = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
    return {id: content for id, content in contents.items() if not content.isspace()}


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
