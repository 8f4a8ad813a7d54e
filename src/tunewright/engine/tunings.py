"""What is trained: set a loaded model up for a tuning, and write or restore its weights.

`lora` freezes the model in the arithmetic's type and trains float32 adapters. `full` trains float32 weights
and, where bfloat16 is fast, computes in it by autocast, so that small updates are not rounded away.
"""

from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunewright.config.schema import RunConfig
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.models.adapters import add_lora, load_adapter
from tunewright.models.fused import fuse_blocks
from tunewright.models.load import load_model, quiet

Tuned = PreTrainedModel | PeftModel


def weights_dtype(tuning: str, compute: torch.dtype) -> torch.dtype:
    """Type in which the model's own weights are held."""
    return compute if tuning == "lora" else torch.float32


def load_for_training(folder: Path, config: RunConfig, compute: torch.dtype, weights: Path | None) -> Tuned:
    """The base model of `folder` made trainable, with the trained weights of a checkpoint folder if one is given."""
    register_forest_attention()
    tuning = config.method.tuning
    source = weights / "model" if weights is not None and tuning == "full" else folder
    model = load_model(source, weights_dtype(tuning, compute), FOREST_ATTENTION)
    fuse_blocks(model)
    if torch.cuda.is_available():
        nn.Module.cuda(model)
    if tuning == "full":
        model.requires_grad_(True)
        return model
    if weights is None:
        return add_lora(model, config.lora, config.train.seed)
    return load_adapter(model, weights / "adapter", trainable=True)


def trainable(model: Tuned) -> list[tuple[str, Tensor]]:
    """Name and parameter of everything that is trained, in a fixed order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def write_weights(model: Tuned, folder: Path) -> None:
    """Write `folder/adapter` (PEFT's format) or `folder/model` (transformers' format, in the weights' own type)."""
    with quiet():
        if isinstance(model, PeftModel):
            model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
            # PEFT's model card is a form to fill in; the run's report says it all.
            (folder / "adapter" / "README.md").unlink(missing_ok=True)
        else:
            model.save_pretrained(str(folder / "model"))
