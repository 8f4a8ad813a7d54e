"""The Python API: what the command line does, as short in a notebook.

from tunewright.api import chat, load_config, train

run = train(load_config("run.yaml", "train.epochs=1"))
print(run.report_md.read_text())
print(chat(run).ask("Who are you?").text)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.chat.partner import Partner, open_partner
from tunewright.chat.session import Session
from tunewright.config.load import load_config as load_config_file
from tunewright.config.schema import RunConfig
from tunewright.data.examples import Message
from tunewright.engine.start import make_ready, start
from tunewright.engine.watch import Silent, Watcher
from tunewright.models.generate import Answer
from tunewright.runs.folder import RunFolder


def load_config(source: str | Path | Mapping[str, Any], *overrides: str) -> RunConfig:
    """A config from a YAML file, a recipe's name or a mapping, with `key=value` overrides.

    Raises UsageError that lists all mistakes at once.
    """
    if isinstance(source, Mapping):
        return load_config_file(None, overrides, dict(source))
    return load_config_file(Path(source), overrides)


def train(config: RunConfig, watcher: Watcher | None = None) -> RunFolder:
    """Prove, plan, train and report; the run folder. Raises UsageError before start, RunError or Interrupted after."""
    return start(make_ready(config, Path.cwd()), "tunewright.api.train(config)", watcher or Silent())


class Chat:
    """A dialog with a run or a model, by the template, system prompt and stop tokens it was trained with."""

    def __init__(self, partner: Partner) -> None:
        self._partner = partner
        self._session = Session(partner.template, partner.system, partner.context, partner.sampling.max_new_tokens)

    @property
    def messages(self) -> list[Message]:
        """The dialog so far; when the context is full, its oldest turns are forgotten."""
        return self._session.messages

    def ask(self, question: str, seed: int = 0) -> Answer:
        """The answer to the next question of this dialog: its `text`, and `finish`, "length" where it was cut.

        Raises UsageError for a question that cannot be asked; the dialog is as it was then.
        """
        ids = self._session.prompt(question)
        *_, answer = self._session.answer(ids, lambda ids: self._partner.speak(ids, seed))
        assert isinstance(answer, Answer)
        return answer


def chat(target: RunFolder | str | Path, checkpoint: str | None = None) -> Chat:
    """Open a run (at one of its checkpoints) or a model for a dialog."""
    path = target.path if isinstance(target, RunFolder) else target
    return Chat(open_partner(str(path), checkpoint))
