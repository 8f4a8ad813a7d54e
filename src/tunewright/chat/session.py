"""A conversation: history, system prompt, and what still fits into the model's context. It knows no terminal.

The model is a function from prompt ids to a stream of text pieces that ends with an Answer, so the same session serves
the command line, the page and tests.
"""

from collections.abc import Callable, Iterator
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
        self.dropped = 0  # messages forgotten by the latest `prompt`, because the context was full

    @property
    def messages(self) -> list[Message]:
        """The system prompt, where there is one, and all turns still remembered."""
        return [*opening(self.system), *self.turns]

    def reset(self) -> None:
        self.turns = []

    def withdraw(self) -> None:
        """Forget a question that will not be answered."""
        self.turns.pop()

    def prompt(self, question: str) -> list[int]:
        """Add a question and return the ids to answer, with the oldest turns dropped until an answer fits.

        Raises UsageError when the question alone is too long or the template refuses it; nothing has changed then.
        """
        turns = [*self.turns, Message("user", question)]
        ids = self.template.prompt_ids([*opening(self.system), *turns], self.tools)
        while len(ids) + self.reserve > self.context:
            if len(turns) < 3:
                tools = "" if self.tools is None else " and tools"
                raise UsageError(
                    f"the question takes {len(ids):,} tokens with its system prompt{tools}, and the model's context is "
                    f"{self.context:,} of which {self.reserve:,} are kept for the answer; shorten it"
                )
            turns = turns[2:]  # a question and its answer
            ids = self.template.prompt_ids([*opening(self.system), *turns], self.tools)
        self.dropped = len(self.turns) + 1 - len(turns)
        self.turns = turns
        return ids

    def answer(self, ids: list[int], speak: Speak) -> "Iterator[str | Answer]":
        """Pass on what `speak(ids)` says and remember it.

        When the listener leaves early, what was said until then is remembered, and a question without a word of answer
        is forgotten: question and answer always alternate.
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
