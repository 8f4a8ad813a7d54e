"""What the plan counted of a step's memory, kept in the user's cache.

To walk through a step on empty tensors takes a second or two, and the answer depends on nothing but the model's
config, how it is tuned, and the largest step. `check`, the `train` after it, and every run that changes only what
memory does not depend on, ask for the same.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tunewright.forest.build import Forest
from tunewright.models.cache import cache_root, forget_old, write_aside

_Counted = TypeVar("_Counted")


def remembered(facts: list[Any], forest: Forest, kind: type[_Counted], count: Callable[[], _Counted]) -> _Counted:
    """What `count()` says of `forest`, a dataclass of this `kind`, looked up where it was counted before.

    `facts` (JSON) are all else that decides it: model, tuning, types. A cache that cannot be read or written is as
    good as none.
    """
    digest = hashlib.sha256(json.dumps([facts, _code()], sort_keys=True).encode())
    for array in asdict(forest).values():
        digest.update(array.tobytes())
    stored = TypeAdapter(kind)
    path = cache_root() / "plans" / f"{digest.hexdigest()[:32]}.json"
    with suppress(OSError, ValidationError):
        found = stored.validate_json(path.read_bytes())
        os.utime(path)
        return found
    counted = count()
    with suppress(OSError):
        write_aside(path, stored.dump_json(counted))
        forget_old(path.parent)
    return counted


@cache
def _code() -> str:
    """The code that counts: this package's, and the versions of what it calls."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder in ("engine", "forest", "models"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    for name in ("torch", "transformers", "peft"):
        digest.update(version(name).encode())
    return digest.hexdigest()
