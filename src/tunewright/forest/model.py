"""A causal language model that computes losses on forests: the one way training and scoring call a model."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, NotOnForest, register_forest_attention
from tunewright.forest.build import Forest
from tunewright.forest.head import Head, weighted_nll
from tunewright.forest.layout import Backend, ForestLayout, best_backend
from tunewright.forest.log_probs import sequence_log_probs

if TYPE_CHECKING:
    from peft import PeftModel


class ForestModel:
    """Wraps a transformers causal language model, with PEFT adapters or without.

    Only the decoder is called; the head is applied to loss rows alone (`head.py`). Raises UsageError, at once or from
    the first forest, for an architecture that computes something else on a forest than on sequences.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", backend: Backend | None = None) -> None:
        self.model = plain_model(model)
        self.device = self.model.device
        self.backend: Backend = backend or best_backend(self.device)
        self.decoder: nn.Module = self.model.get_decoder()
        config: PreTrainedConfig = self.model.config.get_text_config()
        settings = config.to_dict()
        scaling = settings.get("logits_scaling")
        self._softcap: float | None = settings.get("final_logit_softcapping")
        self._scale: float = 1 / scaling if scaling is not None else settings.get("logit_scale") or 1.0
        self._windows = stated_windows(config)
        if self.decoder is self.model or not isinstance(self.decoder, PreTrainedModel):
            raise cannot_follow(config.model_type, "their decoder cannot be told from their output layer")
        if not isinstance(self.model.get_output_embeddings(), nn.Linear):
            raise cannot_follow(config.model_type, "their output layer is not a linear one")

    @property
    def head(self) -> Head:
        """The output head as it is now; its weight is read anew each time because training may replace it."""
        embedding: Any = self.model.get_output_embeddings()
        return Head(embedding.weight, embedding.bias, softcap=self._softcap, scale=self._scale)

    def layout(self, forest: Forest) -> ForestLayout:
        return ForestLayout(forest, self.device, self.backend)

    def hidden(self, layout: ForestLayout) -> Tensor:
        """Final hidden states [T, D], in the type that products are computed in."""
        layout.wanted_rows = None
        return self._decoded(layout)

    def loss_hidden(self, layout: ForestLayout) -> Tensor:
        """Final hidden states [R, D] of the loss rows alone, in the type that products are computed in."""
        # Where no loss is read, rows to compute nothing for would only be a special case.
        layout.wanted_rows = layout.loss_rows if len(layout.loss_rows) else None
        hidden = self._decoded(layout)
        # Architectures whose last layer has no fast form give all rows.
        return hidden if len(hidden) == len(layout.loss_rows) else hidden[layout.loss_rows]

    def _decoded(self, layout: ForestLayout) -> Tensor:
        """[T, D], or [R, D] where the last layer gives the wanted rows alone."""
        layout.windows.clear()  # of an earlier pass, forward or backward
        try:
            output: Any = self.decoder(
                input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, forest=layout
            )
            if not isinstance(output, ModelOutput) or "last_hidden_state" not in output:
                raise NotOnForest("their decoder gives something else than hidden states")
            for (setting, size), asked in zip(itertools.cycle(self._windows), layout.windows, strict=False):
                if size is not None and asked is None:
                    raise NotOnForest(f"{setting} {size} of config.json does not reach their attention")
        except NotOnForest as error:
            raise cannot_follow(self.model.config.model_type, str(error)) from error
        hidden: Tensor = output["last_hidden_state"][0]
        # The last norm may have widened them, and the head is where most of a small model's arithmetic is.
        device = hidden.device.type
        return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden

    def weighted_nll(self, forest: Forest) -> Tensor:
        """Σ weight · nll over the forest's loss edges, a differentiable scalar."""
        layout = self.layout(forest)
        return weighted_nll(self.loss_hidden(layout), self.head, layout.edges)

    def log_probs(self, layout: ForestLayout, count: int) -> Tensor:
        """Σ weight · log p of each of the `count` sequences that the forest was built from, float64 [count]."""
        rows = self.loss_hidden(layout)
        sequence = torch.from_numpy(layout.edge_sequence).to(self.device)
        return sequence_log_probs(rows, self.head, layout.edges, sequence, count)


def cannot_follow(model_type: str, evidence: str) -> UsageError:
    """What to tell who chose an architecture that computes something else on a forest than on sequences."""
    return UsageError(
        f"{model_type} models can't be trained by this version: their layers do not follow the token forest "
        f"({evidence}). Choose a model whose attention goes through transformers' AttentionInterface, such as Llama, "
        "Qwen, Mistral, Mixtral, Gemma or Phi."
    )


def stated_windows(config: PreTrainedConfig) -> list[tuple[str, int | None]]:
    """By layer the setting that hides distant tokens from it, and its size in tokens; None where nothing is hidden.

    A list of one holds for every layer. What is as wide as the context hides nothing.
    """
    values = config.to_dict()
    context = values.get("max_position_embeddings")
    setting_of = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    windows: list[tuple[str, int | None]] = []
    for kind in values.get("layer_types") or ["sliding_attention"]:
        setting = setting_of.get(kind, "")
        size = values.get(setting) or None
        windows.append((setting, None if size is not None and context is not None and size >= context else size))
    return windows


def plain_model(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The transformers model itself; adapters live inside its layers."""
    if isinstance(model, PreTrainedModel):
        return model
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block the model attends by the implementation of that name."""
    before = model.config._attn_implementation
    if name == FOREST_ATTENTION:
        register_forest_attention()
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Within the block dropout is off; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
