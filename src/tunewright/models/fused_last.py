"""The last layer of a decoder, computed for the rows alone that something is read from.

After the last attention no row reads another, so its output projection, the feed-forward block and the final norm need
only those rows: in training the ones that a loss edge reads.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from tunewright.models.alike import computes_like
from tunewright.models.fused_attention import FusedAttention

# Decoders whose layers are called one after the other and followed by a norm, row by row.
_DECODERS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)


def fuse_last_layer(decoder: nn.Module) -> int:
    """Put `FusedLastLayer` at the end of `decoder` where it computes what one of `_DECODERS` does; 1 where it did.

    Its attention must be a `FusedAttention` already.
    """
    if not any(computes_like(decoder, kind) for kind in _DECODERS):
        return 0
    layers = decoder.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    last = layers[-1]
    if not computes_like(last, LlamaDecoderLayer) or not isinstance(last.get_submodule("self_attn"), FusedAttention):
        return 0
    layers[-1] = FusedLastLayer(last)
    return 1


class FusedLastLayer(GradientCheckpointingLayer):
    """A decoder layer with all that `plain` has; on a forest that says so it gives [1, R, D] for its wanted rows."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        vars(self).update(vars(plain))
        self.plain_forward: Callable[..., Tensor] = type(plain).forward

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        forest = kwargs.get("forest")
        if forest is None or forest.wanted_rows is None:
            return self.plain_forward(self, hidden_states, *args, **kwargs)
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), *args, rows=forest.wanted_rows, **kwargs)
        hidden = hidden_states.index_select(1, forest.wanted_rows) + attended
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out
