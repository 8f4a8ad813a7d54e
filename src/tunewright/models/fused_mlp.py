"""The gated feed-forward block (SwiGLU, arXiv 2002.05202): both projections in one, little kept for the backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from tunewright.models.alike import computes_like
from tunewright.models.fused_lora import together


def fuse_feed_forward(model: nn.Module) -> int:
    """Put `FusedFeedForward` in the place of every block that computes what Llama's does; how many there were."""
    blocks = [
        (name, module)
        for name, module in model.named_modules()
        if computes_like(module, LlamaMLP) and type(module.get_submodule("act_fn")) in (nn.SiLU, SiLUActivation)
    ]
    for name, module in blocks:
        layers = [module.get_submodule(child) for child in ("gate_proj", "up_proj", "down_proj")]
        model.set_submodule(name, FusedFeedForward(*layers).train(module.training))
    return len(blocks)


class FusedFeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)); adapters are put on its layers like on those of the block it replaces."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj = gate
        self.up_proj = up
        self.down_proj = down

    def forward(self, x: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = _GatedSilu.apply
        out: Tensor = self.down_proj(apply(*together([self.gate_proj, self.up_proj], x)))
        return out


class _GatedSilu(torch.autograd.Function):
    """silu(gate) · up, with silu(gate) computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up
