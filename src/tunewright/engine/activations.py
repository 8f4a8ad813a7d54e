"""The memory that a step takes beside weights and optimizer, counted without it: the real pass on empty tensors.

The tensors pretend to be on the CPU (torch's FakeTensorMode), so that autocast treats them as it treats real ones,
and a ledger notes when each is made and dropped, forward and backward. What one layer holds is told from what the
others do, so two passes, with no layer and with every layer computed again in the backward, say it for any number.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from tunewright.engine.remembered import remembered
from tunewright.engine.tunings import Tuned, trainable
from tunewright.forest.build import Forest
from tunewright.forest.layout import Backend
from tunewright.forest.model import ForestModel, plain_model
from tunewright.models.fused_last import FusedLastLayer
from tunewright.models.recompute import recompute_layers, switchable_layers

# Of a deep model of equal layers so many are walked through: the first two and the last as they are, and the rest like
# the two between, since layers may differ by turns.
WALKED = 5


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes: `kept` by the forward for the backward, and `forward` and `backward`, the most that each holds at once.

    Neither the output head nor the gradients that stay until the update are in them. Nor are the narrow copies of
    weights that autocast makes, which do not grow with the forest: `narrowed_forward` and `narrowed_backward` are held
    beside the most of either.
    """

    kept: int
    forward: int
    backward: int
    narrowed_forward: int = 0
    narrowed_backward: int = 0


class DecoderMemory:
    """What one pass of `forest` through the decoder of `model` holds where `backend` attends, by how many layers are
    computed again.

    `facts` (JSON) are what decides of the model; with them an answer is looked up where it was counted before.
    `model` lies on the meta device and is of no use afterwards: it may have lost layers, and its parameters only
    pretend to be on a CPU. Raises UsageError, from the first question, for a model that cannot follow a forest.
    """

    def __init__(
        self,
        model: Tuned,
        forest: Forest,
        autocast: torch.dtype | None,
        backend: Backend = "cpu",
        facts: Sequence[Any] | None = None,
    ) -> None:
        self._model = model
        self._facts = None if facts is None else [*facts, backend, str(autocast)]
        self._forest = forest
        self._backend: Backend = backend
        # torch knows the shapes of grouped products, in which experts are computed, for bfloat16 only; float32 holds
        # twice as much, or a little less.
        self._halved = any(parameter.ndim == 3 and parameter.dtype == torch.float32 for parameter in model.parameters())
        self._autocast = None if self._halved else autocast
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        layers = switchable_layers(plain_model(model))
        self.layers = len(layers)
        self._walked = self.layers
        narrow = 0 if autocast is None else autocast.itemsize
        self._narrowed = [narrow * _linear_weights(layer) for layer in layers.values()]
        self._narrowed_beside = narrow * _linear_weights(plain_model(model).get_decoder()) - sum(self._narrowed)
        with self._mode:
            _pretend(model, torch.bfloat16 if self._halved else None)
            for _, parameter in trainable(model):
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
            if self.layers > WALKED + 3 and _shorten(plain_model(model).get_decoder(), layers):
                self._walked = WALKED
        self._passes: dict[bool, _Pass] = {}

    def recomputing(self, count: int) -> StepMemory:
        """With the first `count` of `layers` layers computed again in the backward."""
        off, own = self._pass(False), self._pass(count > 0)
        sources = [(index < count, self._source(index)) for index in range(self.layers)]
        forward = [self._pass(again).forward[source] for again, source in sources]
        backward = [self._pass(again).backward[source] for again, source in sources]
        # Autocast lets go of the narrowed weights that no layer keeps.
        dropped = (own.end.growth - off.end.growth) * count // max(1, self._walked)
        live, most = _over([*forward, own.after, off.end, _Stretch(dropped, 0)], 0)
        _, most_backward = _over([own.turn, *reversed(backward)], live)
        narrowed = self._narrowed_beside + sum(self._narrowed)
        kept_narrowed = self._narrowed_beside + sum(self._narrowed[count:])
        # A layer that is computed again narrows its weights again.
        backward_narrowed = max(kept_narrowed, self._narrowed_beside + max(self._narrowed[:count], default=0))
        if self._halved:  # walked without autocast
            return StepMemory(2 * live, 2 * most, 2 * most_backward, narrowed, backward_narrowed)
        return StepMemory(
            live - kept_narrowed, most - narrowed, most_backward - backward_narrowed, narrowed, backward_narrowed
        )

    def _source(self, index: int) -> int:
        """The walked layer that the layer `index` is like."""
        if self._walked == self.layers or index < 2:
            return index
        return WALKED - 1 if index == self.layers - 1 else 2 + index % 2

    def _pass(self, again: bool) -> "_Pass":
        if again not in self._passes:
            count = partial(self._walk, again)
            known = self._facts is not None
            self._passes[again] = (
                remembered([self._facts, self.layers, again], self._forest, _Pass, count) if known else count()
            )
        return self._passes[again]

    def _walk(self, again: bool) -> "_Pass":
        recompute_layers(plain_model(self._model), "full" if again else "off")
        with self._mode:
            return self._counted()

    def _counted(self) -> "_Pass":
        forest_model = ForestModel(self._model, self._backend)
        self._model.train()
        arithmetic = nullcontext() if self._autocast is None else torch.autocast("cpu", dtype=self._autocast)
        with _Ledger() as ledger:
            with arithmetic, _marked_layers(self._model, ledger):
                layout = forest_model.layout(self._forest)
                rows = forest_model.loss_hidden(layout)
                ledger.mark()
            *forward, after, end = ledger.take()
            rows.backward(torch.empty_like(rows))
            turn, *backward = ledger.take()
        # Layers below the first trained one have no backward.
        nothing = [_Stretch(0, 0)] * (len(forward) - len(backward))
        return _Pass(forward, after, end, turn, nothing + backward[::-1])


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Bytes from one mark to the next: how many more are held at its end, and at most, than at its begin."""

    growth: int
    most: int


@dataclass(frozen=True, slots=True)
class _Pass:
    """`forward` through each layer, `after` the last, to the `end`; the `turn` and its way `backward`, by layer too."""

    forward: list[_Stretch]
    after: _Stretch
    end: _Stretch
    turn: _Stretch
    backward: list[_Stretch]


def _over(stretches: Iterable[_Stretch], live: int) -> tuple[int, int]:
    """Bytes held at the end, and the most on the way, of stretches one after another."""
    most = live
    for stretch in stretches:
        most = max(most, live + stretch.most)
        live += stretch.growth
    return live, most


def _linear_weights(module: nn.Module) -> int:
    """Number of the weights below `module` that autocast narrows."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, (nn.Linear, Conv1D)))


def _shorten(decoder: nn.Module, layers: dict[str, Any]) -> bool:
    """Leave `WALKED` layers where all lie in one list and have parameters of the same shapes; whether they do."""
    lists = {name.rpartition(".")[0] for name in layers}
    shapes = {tuple(parameter.shape for parameter in layer.parameters()) for layer in layers.values()}
    if len(lists) != 1 or len(shapes) != 1:
        return False
    every: list[nn.Module] = list(layers.values())
    walked = every[:WALKED]
    if isinstance(every[-1], FusedLastLayer):  # the one that is unlike the others
        walked[-1] = FusedLastLayer(walked[-1])
    decoder.set_submodule(lists.pop(), nn.ModuleList(walked))
    return True


@contextmanager
def _marked_layers(model: Tuned, ledger: "_Ledger") -> Iterator[None]:
    """Within the block each layer marks where its forward ends, and where the backward of it will begin."""

    def end(layer: nn.Module, inputs: Any, output: Any) -> None:
        ledger.mark()
        hidden = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: ledger.mark())

    hooks = [layer.register_forward_hook(end) for layer in switchable_layers(plain_model(model)).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Ledger(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that are still referred to."""

    supports_higher_order_operators = True  # FlexAttention is one

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self._live = 0
        self._most = 0
        self._marked = 0
        self._stretches: list[_Stretch] = []
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def mark(self) -> None:
        """End a stretch."""
        self._stretches.append(_Stretch(self._live - self._marked, self._most - self._marked))
        self._marked = self._most = self._live

    def take(self) -> list[_Stretch]:
        """End a stretch; all that ended since the last time."""
        self.mark()
        taken, self._stretches = self._stretches, []
        return taken

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
        self._live += storage.nbytes()
        self._most = max(self._most, self._live)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, count: int) -> None:
        self._live -= count


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
