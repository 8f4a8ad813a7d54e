"""What a forward pass keeps for its backward, counted without memory: the real pass on tensors that only have shapes.

The tensors pretend to be on the CPU (torch's FakeTensorMode), so that autocast treats them as it treats real ones.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tunewright.data.examples import Encoded
from tunewright.engine.tunings import Tuned
from tunewright.forest.build import build_forest
from tunewright.forest.model import ForestModel


def saved_bytes_per_token(model: Tuned, autocast: torch.dtype | None) -> float:
    """Bytes that the forward keeps for the backward, per distinct token: the slope between two forests.

    `model` lies on the meta device and is left there with other, equally empty parameters.
    """
    # torch knows the shapes of grouped products, in which experts are computed, for bfloat16 only; float32 keeps
    # twice as much, or a little less.
    halved = any(parameter.ndim == 3 and parameter.dtype == torch.float32 for parameter in model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend(model, torch.bfloat16 if halved else None)
        small, large = (_saved_bytes(model, count, None if halved else autocast) for count in (64, 192))
    return (large - small) / 128 * (2 if halved else 1)


def _pretend(model: Tuned, narrow: torch.dtype | None) -> None:
    """Give every parameter and buffer a shape on the CPU, shared where it was; float32 ones in `narrow`."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    dtype = narrow if narrow is not None and tensor.dtype == torch.float32 else tensor.dtype
                    empty = torch.empty(tensor.shape, dtype=dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                table[name] = made[tensor]


def _saved_bytes(model: Tuned, count: int, autocast: torch.dtype | None) -> int:
    """Bytes of all storages that a forest of `count` tokens leaves for the backward; weights are not counted."""
    sequence = Encoded(np.arange(count, dtype=np.int32), np.zeros(count, np.float32))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    forest_model = ForestModel(model, backend="cpu")
    model.train()
    arithmetic = nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast)
    with arithmetic, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forest_model.hidden(forest_model.layout(build_forest([sequence])))
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in held.items() if storage not in weights)
