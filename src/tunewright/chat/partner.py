"""What can be talked to: a run at one of its checkpoints, or any model; opened with its own template and stop ids.

For a run everything comes from its folder, so that the prompt in chat is the prompt of training.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config.schema import ChatConfig, ModelConfig
from tunewright.data.template import ChatTemplate
from tunewright.data.template_source import template_source
from tunewright.errors import UsageError
from tunewright.models.adapters import load_adapter
from tunewright.models.dtype import dtype_of
from tunewright.models.generate import Answer, stream
from tunewright.models.load import eos_ids, load_model, load_tokenizer, on_device
from tunewright.models.resolve import resolve_model
from tunewright.runs.checkpoints import fault, newest_sound
from tunewright.runs.folder import RunFolder
from tunewright.runs.names import is_run

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Partner:
    """An opened model. `adapted` is set when its adapters can be switched off, `base_folder` when it has a base."""

    name: str
    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    system: str | None
    sampling: ChatConfig
    base_folder: Path | None = None
    _base: "PreTrainedModel | PeftModel | None" = field(default=None, repr=False)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        length: int = self.model.config.get_text_config().max_position_embeddings
        return length

    def speak(self, ids: list[int], seed: int, base: bool = False) -> Iterator[str | Answer]:
        """Stream an answer to a prompt, of the tuned model or of its base."""
        model, context = self._base_model() if base else (self.model, nullcontext())
        with context:
            yield from stream(
                model,
                self.tokenizer,
                ids,
                self.stop_ids,
                self.sampling.max_new_tokens,
                self.sampling.temperature,
                self.sampling.top_p,
                seed,
            )

    def _base_model(self) -> "tuple[PreTrainedModel | PeftModel, AbstractContextManager[None]]":
        """The base: the same weights with adapters off, or, after full tuning, a second model on first use."""
        from peft import PeftModel

        if isinstance(self.model, PeftModel):
            return self.model, self.model.disable_adapter()
        if self.base_folder is None:
            raise UsageError(f"{self.name} was not tuned here: there is no base to compare with")
        base = self._base or on_device(load_model(self.base_folder, self.model.dtype))
        self._base = base
        return base, nullcontext()


def open_partner(target: str, checkpoint: str | None = None) -> Partner:
    """Open a run folder, a checkpoint inside one, or a model (built-in name, folder, GGUF, hub id).

    Raises UsageError when there is no such thing, or it cannot chat.
    """
    path = Path(target).expanduser()
    if is_run(path):
        return _open_run(RunFolder.open(path), checkpoint)
    if path.parent.name == "checkpoints" and is_run(path.parent.parent):
        return _open_run(RunFolder.open(path.parent.parent), str(path))
    if checkpoint is not None:
        raise UsageError(f"--checkpoint needs a run, and {target} is none; `tunewright runs` lists the runs here")
    return _open_model(target)


def weights_folder(run: RunFolder, checkpoint: str | None = None) -> tuple[Path, str]:
    """(folder that holds `adapter/` or `model/`, its name in words) of a run's result or of one checkpoint.

    `checkpoint` is a step number or a path; None is the finished result, or the newest sound checkpoint of a run
    that is not finished. Raises UsageError, listing what is there, when it does not exist or is damaged.
    """
    if checkpoint is None:
        if run.adapter_path.is_dir() or run.model_path.is_dir():
            return run.path, "end of training"
        sound = newest_sound(run.checkpoints_path)
        if sound is None:
            raise UsageError(f"{run.path}: the run has no weights yet, neither a result nor a sound checkpoint")
        return sound.path, f"{sound.path.name} (the run is not finished)"
    step = checkpoint.removeprefix("step-")
    folder = run.checkpoint_path(int(step)) if step.isdecimal() else Path(checkpoint).expanduser()
    if not folder.is_dir():
        there = ", ".join(entry.name.removeprefix("step-") for entry in reversed(run.checkpoints())) or "none"
        raise UsageError(f"--checkpoint {checkpoint}: {folder} does not exist; checkpoints of this run: {there}")
    reason = fault(folder)
    if reason is not None:
        raise UsageError(f"--checkpoint {checkpoint}: the checkpoint is damaged: {reason}; choose another one")
    return folder, folder.name


def run_template(run: RunFolder, tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate:
    """The template a run was trained with. Raises UsageError for a run on raw text with a model that has none."""
    source = run.template_source
    if source is None and tokenizer.chat_template is None:
        raise UsageError(f"{run.path}: trained on raw text, with a model that has no chat template: it cannot chat")
    return ChatTemplate(tokenizer, source, run.stop_ids)


def load_tuned(run: RunFolder, weights: Path, dtype: "torch.dtype") -> "PreTrainedModel | PeftModel":
    """The model of a run with the weights of one of its folders, on the CPU."""
    if (weights / "adapter").is_dir():
        return load_adapter(load_model(run.model_folder, dtype), weights / "adapter")
    return load_model(weights / "model", dtype)


def _open_run(run: RunFolder, checkpoint: str | None) -> Partner:
    weights, which = weights_folder(run, checkpoint)
    tokenizer = load_tokenizer(run.model_folder)
    template = run_template(run, tokenizer)
    return Partner(
        name=f"{run.path}, {which}",
        model=on_device(load_tuned(run, weights, dtype_of(run.config.model.dtype))),
        tokenizer=tokenizer,
        template=template,
        stop_ids=run.stop_ids,
        system=run.config.data.system,
        sampling=run.config.chat,
        base_folder=run.model_folder,
    )


def _open_model(target: str) -> Partner:
    folder = resolve_model(ModelConfig(name=target), Path.cwd())
    tokenizer = load_tokenizer(folder.path)
    source = template_source(tokenizer, "auto", Path.cwd(), target)
    template = ChatTemplate(tokenizer, source, eos_ids(folder.path, tokenizer))
    return Partner(
        name=folder.name,
        model=on_device(load_model(folder.path, dtype_of("auto"))),
        tokenizer=tokenizer,
        template=template,
        stop_ids=template.stop_ids,
        system=None,
        sampling=_own_sampling(folder.path),
    )


def _own_sampling(folder: Path) -> ChatConfig:
    """What the model's makers (or `tunewright export`) recommend, else our defaults."""
    path = folder / "generation_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stated.get("do_sample") is False:
        stated |= {"temperature": 0, "top_p": None}
    return ChatConfig(**{key: stated[key] for key in ChatConfig.model_fields if stated.get(key) is not None})
