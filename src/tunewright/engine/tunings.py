"""What is trained: set a loaded model up for a tuning, and write or restore its weights.

`lora` freezes the model in the arithmetic's type and trains float32 adapters. `full` trains float32 weights
and, where bfloat16 is fast, computes in it by autocast, so that small updates are not rounded away.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from tunewright.config.schema import RunConfig
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.model import cannot_follow
from tunewright.models.adapters import add_lora, load_adapter
from tunewright.models.fused import fuse_blocks
from tunewright.models.load import load_model, quiet

Tuned = PreTrainedModel | PeftModel

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What architectures that attend through transformers' interface call the rate of dropout on attention weights.
_ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")


def weights_dtype(tuning: str, compute: torch.dtype) -> torch.dtype:
    """Type in which the model's own weights are held."""
    return compute if tuning == "lora" else torch.float32


def training_device() -> torch.device:
    """Where models are trained here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_forest(folder: Path) -> PreTrainedConfig:
    """The config of a model that can be trained on forests, as far as that shows before it is built.

    Raises UsageError for attention code of its own and for dropout on attention.
    """
    settings: PreTrainedConfig = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    values = settings.get_text_config().to_dict()
    for name in _ATTENTION_DROPOUT:
        if rate := values.get(name):
            raise UsageError(
                f"{folder / 'config.json'} sets {name} to {rate}, which is not defined on a token forest; set it to 0 "
                "there. Answers do not depend on it"
            )
    # Asked of the class: some architectures fail on an attention they do not know as soon as they are built.
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    if not kind.is_backend_compatible():
        raise cannot_follow(settings.model_type, "they bring attention code, or other layers, of their own")
    return settings


def load_for_training(folder: Path, config: RunConfig, compute: torch.dtype, weights: Path | None) -> Tuned:
    """The base model of `folder` made trainable, with the trained weights of a checkpoint folder if one is given."""
    register_forest_attention()
    tuning = config.method.tuning
    source = weights / "model" if weights is not None and tuning == "full" else folder
    model = load_model(source, weights_dtype(tuning, compute), FOREST_ATTENTION)
    fuse_blocks(model)
    nn.Module.to(model, training_device())
    if tuning == "full":
        train_language_model(model)
        # Answers are sampled as the run says. The makers' own flags may not even be valid together (a temperature
        # without sampling), and transformers then refuses to save them beside the weights.
        model.generation_config = GenerationConfig(
            **{name: ids for name, ids in model.generation_config.to_dict().items() if name in _SPECIAL_IDS}
        )
        return model
    if weights is None:
        return add_lora(model, config.lora, config.train.seed)
    return load_adapter(model, weights / "adapter", trainable=True)


def train_language_model(model: PreTrainedModel) -> None:
    """Train all that text passes through: the decoder and the output layer; a vision tower, say, stays as it is."""
    head: Any = model.get_output_embeddings()
    model.requires_grad_(False)
    for part in (model.get_decoder(), head):
        part.requires_grad_(True)


def trainable(model: Tuned) -> list[tuple[str, Tensor]]:
    """Name and parameter of everything that is trained, in a fixed order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def as_base(model: Tuned) -> AbstractContextManager[None]:
    """Within the block adapters are off; what is trained in full stays as it is."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def write_weights(model: Tuned, folder: Path) -> None:
    """Write `folder/adapter` (PEFT's format) or `folder/model` (transformers' format, in the weights' own type)."""
    with quiet():
        if isinstance(model, PeftModel):
            model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
            # PEFT's model card is a form to fill in; the run's report says it all.
            (folder / "adapter" / "README.md").unlink(missing_ok=True)
        else:
            model.save_pretrained(str(folder / "model"))
