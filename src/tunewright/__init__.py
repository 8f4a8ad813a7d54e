"""tunewright: fine-tune open language models on your own data, on the machine you have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewright.api import chat, load_config, train

__version__ = "0.1.0"
__all__ = ["__version__", "chat", "load_config", "train"]


def __getattr__(name: str) -> Any:
    # The API is imported when it is used: `tunewright --help` must not wait for torch.
    if name in ("chat", "load_config", "train"):
        return vars(import_module("tunewright.api"))[name]
    raise AttributeError(f"module 'tunewright' has no attribute {name!r}")
