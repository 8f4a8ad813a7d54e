"""Which modules compute what another one does, whatever their class is called.

transformers repeats its building blocks in every model's file under a name of that model's own. A fast form of one
block serves them all, and is exact, where their forward has the very same instructions, and so have the functions
of its file that it calls (rotary embeddings differ under one name). What differs in anything, in transformers' next
release too, keeps its own forward.
"""

from types import CodeType, FunctionType
from typing import Any

from torch import nn


def computes_like(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the forward of `module` has the instructions of `kind`'s, so that only weights and settings differ."""
    return _instructions(type(module).forward) == _instructions(kind.forward)


def _instructions(function: Any, above: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    if not isinstance(function, FunctionType) or function in above:
        return (function,)  # built in, a class: like itself only
    code: CodeType = function.__code__
    known = function.__globals__
    called = [known[name] for name in code.co_names if name in known and callable(known[name])]
    # What wraps the forwards of two models has the same instructions even where they have not.
    called += [wrapped for name, wrapped in vars(function).items() if name == "__wrapped__"]
    # The first constant is the docstring, or None.
    own = code.co_code, code.co_names, code.co_consts[1:]
    return (*own, *(_instructions(each, (*above, function)) for each in called))
