"""Where a run came from: versions, platform, data hash and base model, kept in its config.yaml."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunewright import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


def collect(data_sha256: str, model_folder: Path, model_revision: str | None) -> dict[str, Any]:
    """What `RunFolder.create` writes under `provenance`; `data_sha256` is the hash of the data files' contents."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "working_folder": os.getcwd(),
        "data_sha256": data_sha256,
        "model": {"folder": str(model_folder.absolute()), "revision": model_revision},
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"tunewright": __version__} | {name: installed_version(name) for name in PACKAGES},
    }


def installed_version(package: str) -> str | None:
    """Version of an installed package, None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
