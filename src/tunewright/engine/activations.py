"""The memory that a step takes beside weights and optimizer, counted without it: the real pass on empty tensors.

The tensors pretend to be on the CPU (torch's FakeTensorMode), so that autocast treats them as it treats real ones,
and a ledger notes when each is made and dropped, forward and backward.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunewright.engine.tunings import Tuned, trainable
from tunewright.forest.build import Forest
from tunewright.forest.layout import Backend
from tunewright.forest.model import ForestModel, plain_model

# Of a deep model this many equal layers are walked through, and the rest follow from them.
FEW, MORE = 2, 4


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes: `kept` by the forward for the backward, and `forward` and `backward`, the most that each holds at once.

    Neither the output head nor the gradients that stay until the update are in them.
    """

    kept: int
    forward: int
    backward: int


def step_memory(model: Tuned, forest: Forest, autocast: torch.dtype | None, backend: Backend = "cpu") -> StepMemory:
    """What one pass of `forest` through the decoder holds where `backend` attends.

    `model` lies on the meta device and is of no use afterwards: it may have lost layers, and its parameters only
    pretend to be on a CPU.
    """
    # torch knows the shapes of grouped products, in which experts are computed, for bfloat16 only; float32 holds
    # twice as much, or a little less.
    halved = any(parameter.ndim == 3 and parameter.dtype == torch.float32 for parameter in model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend(model, torch.bfloat16 if halved else None)
        for _, parameter in trainable(model):
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        arithmetic = None if halved else autocast
        layers = _equal_layers(model)
        if len(layers) <= 2 * MORE:
            memory = _walk(model, forest, arithmetic, backend)
        else:
            more, few = (_walk(_shortened(model, layers[:n]), forest, arithmetic, backend) for n in (MORE, FEW))
            memory = _extrapolated(few, more, len(layers))
    factor = 2 if halved else 1
    return StepMemory(factor * memory.kept, factor * memory.forward, factor * memory.backward)


def _walk(model: Tuned, forest: Forest, autocast: torch.dtype | None, backend: Backend) -> StepMemory:
    forest_model = ForestModel(model, backend)
    model.train()
    arithmetic = nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast)
    with _Ledger() as ledger:
        with arithmetic:
            layout = forest_model.layout(forest)
            rows = forest_model.hidden(layout)[layout.loss_rows]
        kept, forward = ledger.live, ledger.peak
        ledger.peak = ledger.live
        rows.backward(torch.empty_like(rows))
        return StepMemory(kept, forward, ledger.peak)


def _equal_layers(model: Tuned) -> list[nn.Module]:
    """The decoder's layers where they lie in a list and all have parameters of the same shapes; else none."""
    layers = dict(plain_model(model).get_decoder().named_children()).get("layers")
    if not isinstance(layers, nn.ModuleList):
        return []
    shapes = {tuple(parameter.shape for parameter in layer.parameters()) for layer in layers}
    return list(layers) if len(shapes) == 1 else []


def _shortened(model: Tuned, layers: list[nn.Module]) -> Tuned:
    plain_model(model).get_decoder().set_submodule("layers", nn.ModuleList(layers))
    return model


def _extrapolated(few: StepMemory, more: StepMemory, layers: int) -> StepMemory:
    def line(low: int, high: int) -> int:
        return low + (high - low) * (layers - FEW) // (MORE - FEW)

    return StepMemory(line(few.kept, more.kept), line(few.forward, more.forward), line(few.backward, more.backward))


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that are still referred to."""

    supports_higher_order_operators = True  # FlexAttention is one

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in before:
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, count: int) -> None:
        self.live -= count


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
