"""Heavy imports without the garbage collector, which else looks through all that they make, a dozen times over."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """For the imports of a verb that runs a model: a tenth less time.

    What is there at the end is set aside for good: modules last as long as the process, and no later collection,
    in the middle of a step, looks at their million objects again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
