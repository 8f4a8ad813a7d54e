"""The Python API: what the command line does, as short in a notebook.

from tunewright.api import chat, load_config, train

run = train(load_config("run.yaml", "train.epochs=1"))
print(run.report_md.read_text())
print(chat(run).ask("Who are you?"))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.chat.partner import Partner, open_partner
from tunewright.config.load import load_config as load_config_file
from tunewright.config.schema import RunConfig
from tunewright.data.examples import Message
from tunewright.engine.start import make_ready, start
from tunewright.engine.watch import Silent, Watcher
from tunewright.models.generate import generate
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
        self.messages: list[Message] = [Message("system", partner.system)] if partner.system else []

    def ask(self, question: str, seed: int = 0) -> str:
        """The answer to the next question of this dialog."""
        partner, sampling = self._partner, self._partner.sampling
        self.messages.append(Message("user", question))
        (answer,) = generate(
            partner.model,
            partner.tokenizer,
            [partner.template.prompt_ids(self.messages)],
            partner.stop_ids,
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.top_p,
            seed,
        )
        self.messages.append(Message("assistant", answer.text))
        return answer.text


def chat(target: RunFolder | str | Path, checkpoint: str | None = None) -> Chat:
    """Open a run (at one of its checkpoints) or a model for a dialog."""
    path = target.path if isinstance(target, RunFolder) else target
    return Chat(open_partner(str(path), checkpoint))
