"""Tiny random models and sequences for tests of the forest and the loop."""

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tunewright.data.examples import Encoded

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


def tiny_config(family: str) -> PreTrainedConfig:
    configs = {
        "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
        "qwen2": lambda: Qwen2Config(**_SHAPE),
        "qwen3": lambda: Qwen3Config(**_SHAPE),
        "mistral-window": lambda: MistralConfig(**_SHAPE, sliding_window=5),
        "mixtral": lambda: MixtralConfig(
            **_SHAPE, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"
        ),
        "gemma2": lambda: Gemma2Config(**_SHAPE, sliding_window=4),
        "gemma3": lambda: Gemma3TextConfig(**_SHAPE, sliding_window=4),
    }
    return configs[family]()


class WideRMSNorm(torch.nn.Module):
    """RMSNorm in the input's own precision; transformers' own drop to float32, even in a float64 model."""

    def __init__(self, weight: torch.nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.offset + self.weight)


def widen_norms(model: torch.nn.Module) -> None:
    """Replace every RMSNorm below `model` by a `WideRMSNorm` on the same weight."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                offset = 1.0 if type(child).__name__.startswith("Gemma") else 0.0
                setattr(parent, name, WideRMSNorm(child.weight, 1e-6, offset))


def tiny_model(family: str = "llama", dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """A model with random weights that depend on nothing but the family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(family)
        config.initializer_range = 0.2
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
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
