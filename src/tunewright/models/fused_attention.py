"""Attention layers on a forest: adapters of queries, keys and values in one function, rotary embeddings in another.

transformers turns queries and keys (RoPE, arXiv 2104.09864) with their halves copied into a new order, three more
copies, and heads first. Here both are turned as the projections leave them, half by half. Without a forest, in chat
and plain batches, the layer's own forward runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from tunewright.models.alike import computes_like
from tunewright.models.fused_lora import together

_KINDS = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)


def fuse_attention(model: nn.Module) -> int:
    """Put `FusedAttention` in the place of every layer that computes what one of `_KINDS` does; how many there were."""
    layers = [
        (name, module, kind) for name, module in model.named_modules() for kind in _KINDS if computes_like(module, kind)
    ]
    for name, module, kind in layers:
        model.set_submodule(name, FusedAttention(module, kind))
    return len(layers)


class FusedAttention(nn.Module):
    """A layer that computes what `kind` does, with all that `plain` has: weights, settings and mode."""

    config: Any
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module  # both norms only in Qwen3's
    k_norm: nn.Module

    def __init__(self, plain: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        vars(self).update(vars(plain))
        self.plain_forward: Callable[..., tuple[Tensor, Tensor | None]] = type(plain).forward
        self.normed = kind is Qwen3Attention
        self.window: dict[str, int | None] = {}
        if kind is MistralAttention:
            self.window["sliding_window"] = self.config.to_dict().get("sliding_window")
        elif kind is not LlamaAttention:
            self.window["sliding_window"] = vars(plain)["sliding_window"]

    def forward(
        self, hidden_states: Tensor, *args: Any, rows: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states [1, T, D] → [1, T, D], or [1, R, D] where only `rows` [R] are asked for; no weights."""
        if args or kwargs.get("forest") is None or kwargs.pop("past_key_values", None) is not None:
            assert rows is None
            return self.plain_forward(self, hidden_states, *args, **kwargs)
        query, key, value = (
            each.unflatten(-1, (-1, self.head_dim))
            for each in together([self.q_proj, self.k_proj, self.v_proj], hidden_states)
        )
        if self.normed:
            query, key = self.q_norm(query), self.k_norm(key)
        turn: Callable[..., tuple[Tensor, Tensor]] = _Rotary.apply
        cos, sin = kwargs.pop("position_embeddings")
        query, key = turn(query, key, cos[:, :, None], sin[:, :, None])
        attended, weights = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](
            self,
            *(each.transpose(1, 2) for each in (query, key, value)),
            kwargs.pop("attention_mask", None),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **self.window,
            **kwargs,
        )
        attended = attended.flatten(2)
        return self.o_proj(attended if rows is None else attended.index_select(1, rows)), weights


class _Rotary(torch.autograd.Function):
    """query [..., H, d] and key [..., K, d] turned by the angles of cos and sin [..., 1, d], in their common type."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.dtypes = query.dtype, key.dtype
        low, high = sin.chunk(2, dim=-1)
        return _turned(query, cos, -low, high), _turned(key, cos, -low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_query: Tensor, grad_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        low, high = sin.chunk(2, dim=-1)
        turned = (_turned(grad, cos, high, -low) for grad in (grad_query, grad_key))
        query, key = (grad.to(dtype) for grad, dtype in zip(turned, ctx.dtypes, strict=True))
        return query, key, None, None


def _turned(x: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor) -> Tensor:
    """x · cos, and of each half times its factor what the other half gets."""
    out = x * cos
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.addcmul_(second, to_first)
    out_second.addcmul_(first, to_second)
    return out
