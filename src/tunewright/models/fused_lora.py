"""LoRA linears as one autograd function: less saved, fewer passes over the activations, the cheap order of products.

PEFT's own layer widens its input to float32, multiplies, scales, adds and narrows in separate steps, each reading
and writing activations as wide as the layer. Here the adapter works in the type of the layer's input (its weights
stay float32) and is added into the layer's output in place. Whatever is outside the plain case (dropout while
training, DoRA and other variants, merged or disabled adapters, several at once) runs PEFT's forward.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FusedLoraLinear(Linear):
    """PEFT's LoRA linear with the fused forward where it applies; same parameters, same files."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self._plain_adapter()
        base = self.base_layer
        if adapter is None or args or kwargs or type(base) is not nn.Linear:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        down, up, scale = self.lora_A[adapter], self.lora_B[adapter], self.scaling[adapter]
        apply: Callable[..., Tensor] = _LoraLinear.apply
        return apply(x, base.weight, base.bias, down.weight, up.weight, scale)

    def _plain_adapter(self) -> str | None:
        """Name of the one adapter at work, or None where PEFT's forward must run."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        dropout = self.lora_dropout[name]
        return name if isinstance(dropout, nn.Identity) or not self.training else None


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ for a frozen W [out, in], with A [r, in] and B [out, r] in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        narrow_down, narrow_up = down.to(x.dtype), up.to(x.dtype)
        low = rows @ narrow_down.T
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(low, narrow_up.T, alpha=scale)
        ctx.save_for_backward(rows, weight, narrow_down, narrow_up, low)
        ctx.scale, ctx.adapter_dtype, ctx.shape = scale, down.dtype, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ up).mul_(ctx.scale)
        grad_up = (grad.T @ low).to(ctx.adapter_dtype).mul_(ctx.scale)
        grad_down = (grad_low.T @ rows).to(ctx.adapter_dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, down).view(ctx.shape)
        return grad_x, None, None, grad_down, grad_up, None
