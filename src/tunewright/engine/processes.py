"""One process or many: the few things that training needs of the others, on top of Accelerate.

Gradients are summed explicitly, once a step: the loss is normalised by the weight of the whole step, so
the sum over processes is the gradient, whatever share of the step each process computed, and even if that
share is empty. (DDP would average, and would need the same number of forests everywhere.)
"""

from collections.abc import Iterable

import torch
from accelerate import PartialState
from torch import Tensor


class Processes:
    """The group of processes that `torchrun` or `accelerate launch` started, or this one alone."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index
        self.is_main: bool = self._state.is_main_process

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the processes, in one flat exchange per dtype."""
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            torch.distributed.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over the processes, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self._state.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, tensor: Tensor) -> Tensor:
        """[count, …] on the CPU: the same tensor of every process, in their order."""
        if self.count == 1:
            return tensor[None]
        mine = tensor.to(self._state.device)
        every = [torch.empty_like(mine) for _ in range(self.count)]
        torch.distributed.all_gather(every, mine)
        return torch.stack(every).cpu()

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        self._state.wait_for_everyone()
