"""The Python API on a tiny run; `train` and `load_config` are run by the README's block (tests/docs)."""

from pathlib import Path

import pytest

from tests.folders import SYSTEM, tiny_folder, tiny_run
from tunewright.api import Chat, chat
from tunewright.chat.partner import open_partner
from tunewright.data.examples import Message
from tunewright.errors import UsageError
from tunewright.models.generate import generate
from tunewright.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder(tmp_path_factory.mktemp("model")))


def test_an_answer_says_how_it_ended_and_the_next_question_sees_it(run: RunFolder) -> None:
    talk = chat(run)
    first = talk.ask("Who are you?", seed=3)
    assert talk.messages == [
        Message("system", SYSTEM), Message("user", "Who are you?"), Message("assistant", first.text)
    ]  # fmt: skip
    assert first.finish in ("stop", "length")
    assert (first.finish == "length") == (len(first.ids) == 20), "20 is the run's chat.max_new_tokens"
    partner = open_partner(str(run.path))
    ids = partner.template.prompt_ids([*talk.messages, Message("user", "And now?")])
    (expected,) = generate(partner.model, partner.tokenizer, [ids], partner.stop_ids, 20, 0.6, 0.8, seed=4)
    assert talk.ask("And now?", seed=4) == expected


def test_a_question_that_cannot_be_asked_does_not_spoil_the_dialog(run: RunFolder) -> None:
    talk = chat(run)
    talk.ask("Who are you?")
    before = talk.messages
    with pytest.raises(UsageError, match="shorten it"):
        talk.ask("very long " * 2000)
    assert talk.messages == before
    talk.ask("Who?")
    assert talk.messages[: len(before)] == before


def test_when_the_context_is_full_the_oldest_turns_go(run: RunFolder) -> None:
    partner = open_partner(str(run.path))
    partner.model.config.max_position_embeddings = 160
    talk = Chat(partner)
    for number in range(12):
        talk.ask(f"Question {number}?")
    questions = [message.content for message in talk.messages if message.role == "user"]
    assert talk.messages[0] == Message("system", SYSTEM)
    assert 1 <= len(questions) < 12
    assert questions[-1] == "Question 11?"


def test_a_folder_is_opened_by_its_path(run: RunFolder) -> None:
    assert chat(str(run.path)).messages == chat(Path(run.path)).messages == [Message("system", SYSTEM)]
