"""LoRA linears as one autograd function: less saved, fewer passes over the activations, the cheap order of products.

PEFT's own layer widens its input to float32, multiplies, scales, adds and narrows in separate steps, each reading
and writing activations as wide as the layer. Here the adapter works in the type of the layer's input (its weights
stay float32) and is added into the layer's output in place. Whatever is outside the plain case (dropout while
training, DoRA and other variants, merged or disabled adapters, several at once) runs PEFT's forward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Up to so many rows, without gradients on a CPU, an adapter's own products cost less in float32: in bfloat16 most of
# their time goes into setting them up, and narrowing the adapter comes on top.
FEW_ROWS = 32


class FusedLoraLinear(Linear):
    """PEFT's LoRA linear with the fused forward where it applies; same parameters, same files."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        part = None if args or kwargs else self.part()
        if part is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        return _apply(x, [part])[0]

    def part(self) -> "_Part | None":
        """What the fused forward needs, or None where PEFT's own must run."""
        adapter, base = self._plain_adapter(), self.base_layer
        if adapter is None or type(base) is not nn.Linear:
            return None
        down = self.lora_A[adapter].get_parameter("weight")
        up = self.lora_B[adapter].get_parameter("weight")
        return base.weight, base.bias, down, up, self.scaling[adapter]

    def _plain_adapter(self) -> str | None:
        """Name of the one adapter at work, or None where PEFT's forward must run."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        dropout = self.lora_dropout[name]
        return name if isinstance(dropout, nn.Identity) or not self.training else None


def together(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """What each of `layers` makes of the same `x`; fused ones in one function, reading `x` once for all adapters."""
    parts = [layer.part() for layer in layers if isinstance(layer, FusedLoraLinear)]
    fused = [part for part in parts if part is not None]
    return _apply(x, fused) if len(fused) == len(layers) else tuple(layer(x) for layer in layers)


# Weight [out, in] and bias [out] or None, both frozen; down [r, in] and up [out, r] in float32; scale.
_Part = tuple[Tensor, Tensor | None, Tensor, Tensor, float]


def _apply(x: Tensor, parts: Sequence[_Part]) -> tuple[Tensor, ...]:
    narrow = x.dtype != parts[0][2].dtype
    if narrow and x.device.type == "cpu" and x.shape[:-1].numel() <= FEW_ROWS and not torch.is_grad_enabled():
        return _of_few_rows(x, parts)
    weights, biases, downs, ups, scales = zip(*parts, strict=True)
    apply: Callable[..., tuple[Tensor, ...]] = _LoraLinears.apply
    return apply(x, weights, biases, scales, *downs, *ups)


def _of_few_rows(x: Tensor, parts: Sequence[_Part]) -> tuple[Tensor, ...]:
    """The same with the adapters in their own float32, as they answer token by token."""
    rows = x.reshape(-1, x.shape[-1])
    wide = rows.to(parts[0][2].dtype)
    outputs = []
    for weight, bias, down, up, scale in parts:
        out = nn.functional.linear(rows, weight, bias)
        outputs.append(out.add_(wide @ down.T @ up.T, alpha=scale).view(*x.shape[:-1], -1))
    return tuple(outputs)


class _LoraLinears(torch.autograd.Function):
    """y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ for each frozen W [out, in], with A [r, in] and B [out, r] in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: tuple[Tensor, ...],
        biases: tuple[Tensor | None, ...],
        scales: tuple[float, ...],
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        count = len(weights)
        ranks = [down.shape[0] for down in adapters[:count]]
        down = torch.cat(adapters[:count]).to(x.dtype)
        ups = [up.to(x.dtype) for up in adapters[count:]]
        lows = (rows @ down.T).split(ranks, dim=1)
        outputs = [nn.functional.linear(rows, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        for out, low, up, scale in zip(outputs, lows, ups, scales, strict=True):
            out.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(rows, down, *weights, *lows, *ups)
        ctx.scales, ctx.ranks, ctx.adapter_dtype, ctx.shape = scales, ranks, adapters[0].dtype, x.shape
        return tuple(out.view(*x.shape[:-1], -1) for out in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows, down, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        weights, lows, ups = rest[:count], rest[count : 2 * count], rest[2 * count :]
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        grad_lows = [(grad @ up).mul_(scale) for grad, up, scale in zip(flat, ups, ctx.scales, strict=True)]
        grad_low = grad_lows[0] if count == 1 else torch.cat(grad_lows, dim=1)
        grad_ups = [
            (low.T @ grad).T.to(ctx.adapter_dtype).mul_(scale)
            for grad, low, scale in zip(flat, lows, ctx.scales, strict=True)
        ]
        grad_downs = (grad_low.T @ rows).to(ctx.adapter_dtype).split(ctx.ranks)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = flat[0] @ weights[0]
            for grad, weight in zip(flat[1:], weights[1:], strict=True):
                grad_x.addmm_(grad, weight)
            grad_x = grad_x.addmm_(grad_low, down).view(ctx.shape)
        return grad_x, None, None, None, *grad_downs, *grad_ups
