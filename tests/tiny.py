"""Tiny random models and sequences for tests of the forest and the loop."""

from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tunewright.data.examples import Encoded
from tunewright.models.fused import fuse_blocks
from tunewright.models.fused_norm import FusedRMSNorm

VOCABULARY = 61

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "mistral-window": (MistralConfig, {"sliding_window": 5}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}),
    "gemma2": (Gemma2Config, {"sliding_window": 4}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 4}),
    "phi3": (Phi3Config, {}),
    "glm4": (Glm4Config, {}),
    "olmo2": (Olmo2Config, {}),
    "falcon": (FalconConfig, {}),
    "bloom": (BloomConfig, {"n_layer": 2, "n_head": 4}),
    "gpt2": (GPT2Config, {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0}),
}


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    kind, own = _FAMILIES[family]
    settings = {**_SHAPE, **own, **changes}
    if family == "falcon":
        del settings["head_dim"]  # it follows from the rest there, and cannot be said
    return kind(**settings)


def seeing_config(**changes: Any) -> Gemma3Config:
    """Gemma 3 with a vision tower, as its larger releases have one; the tower's layers are called q_proj, too."""
    return Gemma3Config(
        text_config=tiny_config("gemma3", **changes).to_dict(),
        vision_config={
            **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"image_size": 8, "patch_size": 4},
        },
        mm_tokens_per_image=4,
    )


class WideRMSNorm(torch.nn.Module):
    """RMSNorm in the input's own precision; transformers' own drop to float32, even in a float64 model."""

    def __init__(self, weight: torch.nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.offset + self.weight)


def widen_norms(model: torch.nn.Module) -> None:
    """Replace every RMSNorm below `model` by a `WideRMSNorm` on the same weight; fused ones are wide already."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and not isinstance(child, FusedRMSNorm):
                offset = 1.0 if type(child).__name__.startswith("Gemma") else 0.0
                eps = vars(child)["eps" if offset else "variance_epsilon"]
                setattr(parent, name, WideRMSNorm(child.weight, eps, offset))


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, attention: str = "sdpa", fused: bool = False
) -> PreTrainedModel:
    """A model with random weights that depend on nothing but family and type; `fused` as training makes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(family)
        config.initializer_range = 0.2
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    if fused:
        fuse_blocks(model)
    if dtype == torch.float64:
        widen_norms(model)
    return model


def encoded(ids: list[int], weights: list[float]) -> Encoded:
    return Encoded(np.array(ids, np.int32), np.array(weights, np.float32))


def random_sequences(seed: int, count: int = 9, longest: int = 24, alphabet: int = 3) -> list[Encoded]:
    """Ragged sequences over a small alphabet: shared prefixes, duplicates, several trained spans."""
    rng = np.random.default_rng(seed)
    sequences: list[Encoded] = []
    for _ in range(count):
        if sequences and rng.random() < 0.5:
            base = sequences[rng.integers(len(sequences))].input_ids
            ids = np.concatenate(
                [base[: rng.integers(0, len(base) + 1)], rng.integers(3, 3 + alphabet, rng.integers(1, 8))]
            )
        else:
            ids = rng.integers(3, 3 + alphabet, rng.integers(1, longest + 1))
        weights = (rng.random(len(ids)) < 0.5) * rng.choice([0.5, 1.0, 2.0], len(ids))
        sequences.append(Encoded(ids.astype(np.int32), weights.astype(np.float32)))
    sequences.append(sequences[0])
    return sequences
