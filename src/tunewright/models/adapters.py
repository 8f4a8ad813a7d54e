"""LoRA adapters on a frozen model, in PEFT's format from the start: new ones, and ones from a folder."""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.config.schema import LoraConfig
from tunewright.errors import RunError, UsageError
from tunewright.models.load import first_line, quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

_ALL = "all-linear"


def add_lora(model: "PreTrainedModel", lora: LoraConfig, seed: int) -> "PeftModel":
    """`model` with fresh adapters, which alone require gradients; float32 whatever the model's type.

    Their first values come from `seed` and nothing else; the global random state is left as it was.
    Raises UsageError for a target that the model does not have.
    """
    import peft
    import torch

    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT says int and only ever divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        exclude_modules=_beside_the_language_model(model),
        bias="none",
    )
    settings._register_custom_module(_fused())
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings, autocast_adapter_dtype=True)


def load_adapter(model: "PreTrainedModel", folder: Path, trainable: bool = False) -> "PeftModel":
    """`model` with the adapter of a PEFT folder (safetensors only), float32, frozen unless `trainable`.

    Raises UsageError when the folder holds no such adapter, RunError when it does not fit the model.
    """
    import peft
    from safetensors import safe_open

    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file():
        raise UsageError(f"{folder}: no adapter, adapter_config.json is missing")
    if not weights.is_file():
        pickle = (
            " (adapter_model.bin is a pickle file and never read)" if (folder / "adapter_model.bin").exists() else ""
        )
        raise UsageError(f"{folder}: no adapter weights, expected adapter_model.safetensors{pickle}")
    try:
        with quiet():
            settings = peft.LoraConfig.from_pretrained(str(folder), local_files_only=True)
            settings.inference_mode = not trainable
            settings._register_custom_module(_fused())
            adapted = peft.PeftModel.from_pretrained(
                model,
                str(folder),
                is_trainable=trainable,
                config=settings,
                autocast_adapter_dtype=True,
                local_files_only=True,
            )
    except (ValueError, RuntimeError, KeyError) as error:
        raise RunError(f"{folder}: the adapter does not fit the model ({first_line(error)})") from error
    with safe_open(weights, "pt") as file:
        saved = set(file.keys())
    # PEFT itself only warns, and the adapter would then act in part or not at all.
    expected = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if saved != expected:
        first = sorted(saved ^ expected)[0]
        raise RunError(
            f"{folder}: the adapter does not fit the model, {len(saved ^ expected)} tensors differ, first {first}"
        )
    return adapted


def _fused() -> "dict[type[nn.Module], type[nn.Module]]":
    """PEFT's registration point for layer types: every plain linear gets the fused adapter."""
    from torch import nn

    from tunewright.models.fused_lora import FusedLoraLinear

    return {nn.Linear: FusedLoraLinear}


def linear_names(model: "PreTrainedModel") -> list[str]:
    """Short names of the linear layers that adapters may be put on, in model order, without the output layer.

    Of a model that also sees or hears, these are the layers of its language model.
    """
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in _linear_paths(model, _decoder_path(model))))


def _linear_paths(model: "PreTrainedModel", below: str) -> list[str]:
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    layers = (name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer is not head)
    return [name for name in layers if name.startswith(below)]


def _decoder_path(model: "PreTrainedModel") -> str:
    """Where the language model's layers are, as `model.language_model.`; empty where they are all there is."""
    decoder = model.get_decoder()
    return next(f"{name}." if name else "" for name, module in model.named_modules() if module is decoder)


def _beside_the_language_model(model: "PreTrainedModel") -> str | None:
    """A pattern of layers that no text passes through, as those of a vision tower; None where there are none."""
    path = _decoder_path(model)
    if len(_linear_paths(model, path)) == len(_linear_paths(model, "")):
        return None
    return rf"(?!{re.escape(path)}).*"


def _output_names(model: "PreTrainedModel") -> list[str]:
    head = model.get_output_embeddings()
    return [name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if head is not None and layer is head]


def _targets(model: "PreTrainedModel", lora: LoraConfig) -> str | list[str]:
    """What PEFT is to adapt; every name checked, since PEFT matches what it can and drops the rest."""
    if lora.target == _ALL:
        return _ALL  # PEFT leaves the output layer out
    wanted = [lora.target] if isinstance(lora.target, str) else lora.target
    known = linear_names(model)
    for name in wanted:
        if name not in known and name in _output_names(model):
            # Its input is projected to the vocabulary for trained tokens only, and in tied models it is the embedding.
            raise UsageError(f"lora.target: adapters on the output layer {name!r} are not supported; take it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"lora.target: the model has no linear layer {name!r}; {hint}It has {', '.join(known)}, or use {_ALL}"
            )
    if not wanted:
        raise UsageError(f"lora.target: the list is empty; name layers ({', '.join(known)}) or use {_ALL}")
    return wanted
