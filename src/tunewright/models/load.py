"""Model folders into memory: tokenizer, weights, and the ids that end an answer.

Everything here reads local files only and never runs code that comes with a model.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import UsageError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model = PreTrainedModel | PeftModel


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's fast tokenizer. Raises UsageError when there is none that can be read."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"{folder}: the tokenizer cannot be read ({first_line(error)})") from error
    if not tokenizer.is_fast:
        raise UsageError(
            f"{folder}: only a slow tokenizer ({type(tokenizer).__name__}) is there; "
            "save it once as tokenizer.json with transformers' fast tokenizers"
        )
    return tokenizer


def load_model(folder: Path, dtype: "torch.dtype", attention: str | None = None) -> "PreTrainedModel":
    """The causal language model of `folder` with weights in `dtype`, in eval mode, on the CPU.

    `attention` is a name that transformers' AttentionInterface knows; None takes `own_attention`. Weights are mapped
    and cast tensor by tensor.
    Raises UsageError when the folder's architecture is unknown or its weights do not cover the whole model: a layer
    that silently starts from random numbers would train, and answer nonsense.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    loaded: Any
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{folder}: the model cannot be loaded ({first_line(error)})") from error
    model: PreTrainedModel
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(entry) for entry in info["mismatched_keys"])
    if lacking:
        raise UsageError(
            f"{folder}: {len(lacking)} weights are missing or have another shape than config.json says, "
            f"first {lacking[0]}; fetch the whole model again"
        )
    return model


def own_attention(model: "PreTrainedModel") -> str:
    """The attention that answers: sdpa where the architecture can use it, else eager (Gemma-2 caps its scores).

    It is what transformers takes when a model is loaded and none is named.
    """
    return model.get_correct_attn_implementation(None)


def on_device(model: "Model", device: "torch.device | None" = None) -> "Model":
    """`model`, moved to `device`, or to the fastest one here."""
    import torch

    if device is None:
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        device = torch.device("cuda" if cuda else "mps" if mps else "cpu")
    movable: Any = model  # transformers wraps .to in a decorator that type checkers cannot read
    movable.to(device)
    return model


def eos_ids(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Every id by which the folder says that an answer ends: generation config, config and tokenizer, in that order.

    Raises UsageError for a file that is no JSON object.
    """
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        stated = read_json(path).get("eos_token_id") if path.is_file() else None
        ids += stated if isinstance(stated, list) else [] if stated is None else [stated]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(ids))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a model's JSON file. Raises UsageError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object; fetch the file again")
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and advice of transformers and PEFT; what matters we check and say ourselves."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error of another package says, without the advice that follows."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
