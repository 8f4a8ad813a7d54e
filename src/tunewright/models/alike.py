"""Which modules compute what another one does, whatever their class is called.

transformers repeats its building blocks in every model's file under a name of that model's own. A fast form of one
block serves them all, and is exact, where their forward has the very same instructions. What differs in anything, in
transformers' next release too, keeps its own forward.
"""

from types import CodeType, FunctionType
from typing import Any

from torch import nn


def computes_like(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the forward of `module` has the instructions of `kind`'s, so that only weights and settings differ."""
    return _instructions(type(module)) == _instructions(kind)


def _instructions(kind: type[nn.Module]) -> tuple[Any, ...]:
    forward = kind.forward
    if not isinstance(forward, FunctionType):
        return (kind,)  # wrapped or built in: like itself only
    code: CodeType = forward.__code__
    # The first constant is the docstring, or None.
    return code.co_code, code.co_names, code.co_consts[1:]
