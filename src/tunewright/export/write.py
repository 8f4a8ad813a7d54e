"""Write a run as a model folder that other programs load, and prove it before it gets its name.

The folder is made aside and renamed last, so DEST is either a proven model or not there.
"""

import gc
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.chat.partner import load_tuned, run_template, weights_folder
from tunewright.data.examples import Message, opening
from tunewright.data.template import ChatTemplate
from tunewright.errors import RunError, UsageError
from tunewright.export.card import adapter_card, model_card
from tunewright.export.merge import merged, stored_dtype, strip_remote_code
from tunewright.export.proof import Proof, logits_of, prove
from tunewright.export.template import prove_template, with_system
from tunewright.files import WRITE_ERRORS, aside, cause, why_not_a_new_folder
from tunewright.models.generate import generate
from tunewright.models.load import load_model, load_tokenizer, quiet
from tunewright.runs.folder import RunFolder

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_PROMPTS = (
    "Who are you?",
    "你好，请介绍一下你自己。",
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "我今天很累，怎么办？",
    "How do I learn to play the piano?",
    "3 + 4 = ?",
    "Tell me something that nobody knows.",
)
_ANSWER_TOKENS = 16  # how far each proof prompt is continued by the tuned model
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(I?)B", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: where, which weights, its files with sizes in bytes, and the proof (None for an adapter)."""

    path: Path
    weights: str
    files: dict[str, int]
    proof: Proof | None


def export_model(
    run: RunFolder,
    destination: Path,
    checkpoint: str | None = None,
    max_shard_size: str = "2GB",
    dtype: str = "base",
    notify: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Merge, write and prove. `dtype` is "base" (that of the base model's files), float32, bfloat16 or float16.

    Raises UsageError before any work when DEST is taken or the run has no such weights, RunError when the proof
    fails; nothing is left behind then.
    """
    import torch

    check_destination(destination)
    shard_bytes = size_in_bytes(max_shard_size)
    weights, which = weights_folder(run, checkpoint)
    tokenizer = load_tokenizer(run.model_folder)
    trained = run_template(run, tokenizer)
    system = run.config.data.system
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    stored = stored_dtype(run.model_folder) if dtype == "base" else kinds[dtype]

    notify(f"Asking the tuned model ({which}) …")
    sequences, tuned_logits, base_logits = _reference(run, weights, tokenizer, trained)
    with _written(destination) as folder:
        notify(f"Merging and writing {_name(stored)} weights …")
        model = merged(load_tuned(run, weights, _loading_dtype(run, weights, stored)), stored)
        model.generation_config = _generation_config(run, tokenizer)
        with quiet():
            model.save_pretrained(folder, max_shard_size=shard_bytes)
        del model
        tokenizer.chat_template = with_system(trained.source, system)
        tokenizer.save_pretrained(folder)
        strip_remote_code(folder)

        notify("Reading it back and comparing …")
        written_tokenizer = load_tokenizer(folder)
        prove_template(trained, ChatTemplate(written_tokenizer, None, run.stop_ids), system)
        proof = prove(tuned_logits, base_logits, _written_logits(folder, sequences), _name(stored))
        (folder / "README.md").write_text(model_card(run, destination.name, which, proof), encoding="utf-8")
    return Exported(destination, which, _sizes(destination), proof)


def export_adapter(run: RunFolder, destination: Path, checkpoint: str | None = None) -> Exported:
    """Copy the PEFT adapter with tokenizer, chat template and a card. Raises UsageError for a run without adapters."""
    check_destination(destination)
    weights, which = weights_folder(run, checkpoint)
    if not (weights / "adapter").is_dir():
        raise UsageError(f"{run.path}: a run with method.tuning full has no adapter; leave --adapter-only out")
    tokenizer = load_tokenizer(run.model_folder)
    tokenizer.chat_template = with_system(run_template(run, tokenizer).source, run.config.data.system)
    with _written(destination) as folder:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(weights / "adapter" / name, folder / name)
        _name_base(folder / "adapter_config.json", run)
        tokenizer.save_pretrained(folder)
        strip_remote_code(folder)
        (folder / "README.md").write_text(adapter_card(run, destination.name, which), encoding="utf-8")
    return Exported(destination, which, _sizes(destination), None)


def check_destination(destination: Path) -> None:
    """Raise UsageError unless DEST is free or an empty folder, and can be written."""
    if (reason := why_not_a_new_folder(destination)) is not None:
        raise UsageError(f"DEST: {reason}; name a new folder")


def size_in_bytes(size: str) -> int:
    """Bytes of a size such as 500MB or 2GiB. Raises UsageError for anything else."""
    if (found := _SIZE.fullmatch(size.strip())) is not None:
        unit: int = (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper())
        if (amount := round(float(found[1]) * unit)) > 0:
            return amount
    raise UsageError(f"--max-shard-size: {size!r} is no size; write it as 500MB or 2GB")


def _reference(
    run: RunFolder, weights: Path, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate
) -> "tuple[list[list[int]], list[torch.Tensor], list[torch.Tensor]]":
    """Token sequences of the proof, and what the tuned model and its base say to them."""
    import torch
    from peft import PeftModel

    model = load_tuned(run, weights, torch.float32)
    system = opening(run.config.data.system)
    questions = [*_PROMPTS, *(run.config.samples.prompts or [])]
    prompts = [template.prompt_ids([*system, Message("user", question)]) for question in questions]
    answers = generate(model, tokenizer, prompts, run.stop_ids, _ANSWER_TOKENS)
    sequences = [prompt + answer.ids for prompt, answer in zip(prompts, answers, strict=True)]
    tuned = logits_of(model, sequences)
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            return sequences, tuned, logits_of(model, sequences)
    del model
    gc.collect()
    return sequences, tuned, logits_of(load_model(run.model_folder, torch.float32), sequences)


def _written_logits(folder: Path, sequences: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
    import torch

    gc.collect()
    return logits_of(load_model(folder, torch.float32), sequences)


def _loading_dtype(run: RunFolder, weights: Path, stored: "torch.dtype") -> "torch.dtype":
    """A type that holds the weights before merging without rounding them."""
    import torch

    source = run.model_folder if (weights / "adapter").is_dir() else weights / "model"
    held = stored_dtype(source)
    return held if held == stored else torch.float32


def _generation_config(run: RunFolder, tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """All stop ids, and the run's chat settings as default; left open, top_k would be 50 in transformers."""
    from transformers import GenerationConfig

    chat = run.config.chat
    sampling: dict[str, Any] = {"do_sample": False}
    if chat.temperature:
        sampling = {"do_sample": True, "temperature": chat.temperature, "top_p": chat.top_p, "top_k": 0}
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(run.stop_ids),
        pad_token_id=run.stop_ids[0] if pad is None else pad,
        max_new_tokens=chat.max_new_tokens,
        **sampling,
    )


def _name_base(config: Path, run: RunFolder) -> None:
    """Let the adapter name its base as the user did, where that means something on other machines."""
    content = json.loads(config.read_text(encoding="utf-8"))
    hub = run.provenance["model"]["revision"]
    content["base_model_name_or_path"] = run.config.model.name if hub else str(run.model_folder)
    content["revision"] = hub
    config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _written(destination: Path) -> Iterator[Path]:
    """A folder beside DEST that becomes DEST when the block ends well, and is removed otherwise."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with aside(destination) as folder:
            folder.mkdir()
            yield folder
    except WRITE_ERRORS as error:
        raise RunError(f"{destination}: cannot be written ({cause(error)}); nothing was exported") from error


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
