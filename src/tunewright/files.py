"""Files that must be whole: replaced in one go, safe on the disk before they count, recognised by their hash."""

import hashlib
import os
from pathlib import Path


def write_atomic(path: Path, content: bytes, durable: bool = True) -> None:
    """Write aside in the same folder, then rename; `durable` also waits until the disk has it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
        if durable:
            to_disk(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until the disk has a file or a folder's entries: a rename must not survive a power cut that they did not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
