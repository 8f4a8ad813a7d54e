"""RMSNorm (arXiv 1910.07467) as one autograd function that keeps its input and one number per row.

Written out in single operations, as transformers does, a norm reads and writes its rows a dozen times and keeps three
copies of them for the backward: at LoRA's price of a step that is time and memory out of all proportion.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tunewright.models.alike import computes_like


def fuse_norms(model: nn.Module) -> int:
    """Put `FusedRMSNorm` in the place of every norm that computes just what Llama's does; how many there were.

    Over a hundred classes of transformers do, each under a name of its own: they are told by their forward having the
    same instructions. Weights, and so the names in files, stay the same.
    """
    norms = [(name, module) for name, module in model.named_modules() if computes_like(module, LlamaRMSNorm)]
    for name, module in norms:
        fused = FusedRMSNorm(module.get_parameter("weight"), vars(module)["variance_epsilon"])
        model.set_submodule(name, fused.train(module.training))
    return len(norms)


class FusedRMSNorm(nn.Module):
    """weight · x / √(mean(x²) + ε) over the last dimension, with float32 inside as in transformers."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = _RMSNorm.apply
        return apply(x, self.weight, self.epsilon)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.epsilon}"


class _RMSNorm(torch.autograd.Function):
    """x [..., D] and weight [D]; the result has the type that their product has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = (length.square() / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out: Tensor = weight * x.to(wide, copy=True).mul_(inverse).to(x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        wide_x = x.to(inverse.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            rows = (wide_x * inverse).mul_(grad).reshape(-1, x.shape[-1])
            grad_weight = rows.sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        # With g the gradient by x · inverse, times inverse: dx = g - x · inverse² · mean(g · x).
        grad_x = grad.to(inverse.dtype, copy=True).mul_(weight).mul_(inverse)
        mean = torch.einsum("...d,...d->...", grad_x, wide_x).div_(x.shape[-1]).unsqueeze(-1)
        grad_x.addcmul_(wide_x, mean.mul_(inverse.square()), value=-1)
        return grad_x.to(x.dtype), grad_weight, None
