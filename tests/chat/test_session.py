from collections.abc import Iterator

import pytest

from tunewright.chat.session import Session
from tunewright.data.examples import Message, ToolCall
from tunewright.errors import UsageError


class Counting:
    """One token per character, so that lengths can be read off the texts."""

    def prompt_ids(self, messages: list[Message], tools: str | None) -> list[int]:
        return [ord(character) for message in messages for character in message.content]


def say(*pieces: str) -> Iterator[str]:
    yield from pieces


def turn(session: Session, question: str, *pieces: str) -> None:
    assert list(session.answer(session.prompt(question), lambda ids: say(*pieces))) == list(pieces)


def test_history_and_system_reach_the_prompt() -> None:
    session = Session(Counting(), "sys", context=100, max_new_tokens=10)
    turn(session, "one", "fir", "st")
    assert "".join(map(chr, session.prompt("two"))) == "sysonefirsttwo"
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "user"]


def test_tools_reach_every_prompt_and_take_room() -> None:
    class Listing(Counting):
        def prompt_ids(self, messages: list[Message], tools: str | None) -> list[int]:
            return [*map(ord, tools or ""), *super().prompt_ids(messages, tools)]

    session = Session(Listing(), None, context=24, max_new_tokens=10, tools="[T]")
    turn(session, "aaa", "AAA")
    assert "".join(map(chr, session.prompt("bb"))) == "[T]aaaAAAbb"
    session.withdraw()
    with pytest.raises(UsageError, match="15 tokens with its system prompt and tools"):
        session.prompt("x" * 12)


def test_oldest_turns_go_first_and_the_system_prompt_stays() -> None:
    session = Session(Counting(), "SYS", context=24, max_new_tokens=10)
    turn(session, "aaa", "AAA")
    turn(session, "bbb", "BBB")  # 3 + 6 + 3 + reserve 10 = 22
    assert session.dropped == 0
    assert "".join(map(chr, session.prompt("cc"))) == "SYSbbbBBBcc"
    assert session.dropped == 2


def test_a_question_that_alone_is_too_long_is_refused_and_changes_nothing() -> None:
    session = Session(Counting(), None, context=20, max_new_tokens=10)
    turn(session, "a", "A")
    before = session.messages
    with pytest.raises(UsageError, match="11 tokens"):
        session.prompt("x" * 11)
    assert session.messages == before
    turn(session, "works", "yes")
    assert session.messages[:2] == before


def test_a_question_that_the_template_refuses_changes_nothing() -> None:
    class Refusing(Counting):
        def prompt_ids(self, messages: list[Message], tools: str | None) -> list[int]:
            if "☠" in messages[-1].content:
                raise UsageError("this cannot be said to the model")
            return super().prompt_ids(messages, tools)

    session = Session(Refusing(), None, context=100, max_new_tokens=10)
    turn(session, "a", "A")
    with pytest.raises(UsageError, match="cannot be said"):
        session.prompt("☠")
    turn(session, "b", "B")
    assert [message.content for message in session.messages] == ["a", "A", "b", "B"]


def test_a_stopped_answer_is_remembered_as_far_as_it_was_said() -> None:
    session = Session(Counting(), None, context=100, max_new_tokens=10)
    answer = session.answer(session.prompt("q"), lambda ids: say("par", "tial", " never"))
    assert [next(answer), next(answer)] == ["par", "tial"]
    answer.close()
    assert session.turns[-1] == Message("assistant", "partial")


def test_an_answer_stopped_before_its_first_word_takes_its_question_along() -> None:
    session = Session(Counting(), None, context=100, max_new_tokens=10)

    def interrupted(ids: list[int]) -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    with pytest.raises(KeyboardInterrupt):
        list(session.answer(session.prompt("q"), interrupted))
    assert session.turns == []


CALLED = Message("assistant", "c", tool_calls=(ToolCall("t", "{}"), ToolCall("u", "{}")))


def test_results_go_with_their_question_when_the_context_is_full() -> None:
    session = Session(Counting(), None, context=24, max_new_tokens=10)
    turn(session, "aaa", "C")
    assert "".join(map(chr, session.results(CALLED, ["R", "S"]))) == "aaacRS"
    assert [(message.role, message.name) for message in session.turns[2:]] == [("tool", "t"), ("tool", "u")]
    assert list(session.answer([], lambda ids: say("AAA"))) == ["AAA"]
    assert "".join(map(chr, session.prompt("bbbbbb"))) == "bbbbbb"
    assert session.dropped == 5


def test_results_without_an_answer_are_forgotten() -> None:
    session = Session(Counting(), None, context=24, max_new_tokens=10)
    turn(session, "aaa", "C")
    before = list(session.turns)
    assert list(session.answer(session.results(CALLED, ["R", "S"]), lambda ids: say())) == []
    assert session.turns == before
    with pytest.raises(UsageError, match="the question and its results take 20 tokens"):
        session.results(CALLED, ["R" * 8, "S" * 8])
    assert session.turns == before


def test_a_template_that_does_not_show_results_is_refused() -> None:
    class Deaf(Counting):
        def prompt_ids(self, messages: list[Message], tools: str | None) -> list[int]:
            return super().prompt_ids([message for message in messages if message.role != "tool"], tools)

    session = Session(Deaf(), None, context=24, max_new_tokens=10)
    turn(session, "aaa", "C")
    with pytest.raises(UsageError, match="does not show what a tool returned"):
        session.results(CALLED, ["R", "S"])
    assert session.turns[-1] == Message("assistant", "C")
