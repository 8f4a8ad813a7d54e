"""A conversation: history, system prompt, tools, and what still fits into the model's context. It knows no terminal.

The model is a function from prompt ids to a stream of text pieces that ends with an Answer, so the same session serves
the command line, the page and tests.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tunewright.data.examples import Message, opening
from tunewright.errors import UsageError

if TYPE_CHECKING:
    from tunewright.models.generate import Answer

Speak = Callable[[list[int]], "Iterator[str | Answer]"]


class Template(Protocol):
    """The one thing a session asks of a ChatTemplate."""

    def prompt_ids(self, messages: list[Message], tools: str | None) -> list[int]: ...


class Session:
    """History of one chat. `context` and `max_new_tokens` are in tokens; `tools` is a JSON list of those at hand."""

    def __init__(
        self, template: Template, system: str | None, context: int, max_new_tokens: int, tools: str | None = None
    ) -> None:
        self.template = template
        self.system = system
        self.context = context
        self.reserve = min(max_new_tokens, context // 2)  # kept free for the answer
        self.tools = tools
        self.turns: list[Message] = []
        self._before: list[Message] = []  # the turns before the latest `prompt` or `results`
        self.dropped = 0  # messages forgotten by the latest `prompt` or `results`, because the context was full

    @property
    def messages(self) -> list[Message]:
        """The system prompt, where there is one, and all turns still remembered."""
        return [*opening(self.system), *self.turns]

    def reset(self) -> None:
        self.turns = []

    def withdraw(self) -> None:
        """Forget a question, or results, that will not be answered."""
        self.turns = self._before

    def prompt(self, question: str) -> list[int]:
        """Add a question and return the ids to answer, with the oldest turns dropped until an answer fits.

        Raises UsageError when the question alone is too long or the template refuses it; nothing has changed then.
        """
        return self._add([*self.turns, Message("user", question)], "question takes")

    def results(self, called: Message, returned: Sequence[str]) -> list[int]:
        """Add what the calls of the latest answer returned, one text for each, and return the ids to answer.

        `called` is that answer with its calls, so that the template writes them as it did in training. Raises
        UsageError as `prompt` does, and for a template that does not show results; nothing has changed then.
        """

        def turns(texts: Sequence[str]) -> list[Message]:
            calls = zip(called.tool_calls, texts, strict=True)
            return [*self.turns[:-1], called, *(Message("tool", text, name=call.name) for call, text in calls)]

        silent = self._ids(turns([""] * len(returned)))
        if any(returned) and self._ids(turns(returned)) == silent:
            raise UsageError("the model's chat template does not show what a tool returned, so it cannot be answered")
        return self._add(turns(returned), "question and its results take")

    def _add(self, turns: list[Message], what: str) -> list[int]:
        """Go on with these turns, or with the latest of them that leave room for an answer."""
        every = len(turns)
        ids = self._ids(turns)
        while len(ids) + self.reserve > self.context:
            later = next((index for index, turn in enumerate(turns) if index and turn.role == "user"), None)
            if later is None:
                tools = "" if self.tools is None else " and tools"
                raise UsageError(
                    f"the {what} {len(ids):,} tokens with its system prompt{tools}, and the model's context is "
                    f"{self.context:,} of which {self.reserve:,} are kept for the answer; shorten it"
                )
            turns = turns[later:]  # without a question and all that answered it
            ids = self._ids(turns)
        self.dropped = every - len(turns)
        self._before = self.turns
        self.turns = turns
        return ids

    def _ids(self, turns: list[Message]) -> list[int]:
        return self.template.prompt_ids([*opening(self.system), *turns], self.tools)

    def answer(self, ids: list[int], speak: Speak) -> "Iterator[str | Answer]":
        """Pass on what `speak(ids)` says and remember it.

        When the listener leaves early, what was said until then is remembered, and a question without a word of answer
        is forgotten, as are results: question and answer always alternate.
        """
        said: list[str] = []
        stream = speak(ids)
        try:
            for piece in stream:
                if isinstance(piece, str):
                    said.append(piece)
                yield piece
        finally:
            if said:
                self.turns.append(Message("assistant", "".join(said)))
            else:
                self.withdraw()
