"""Files that must be whole: replaced in one go, safe on the disk before they count, recognised by their hash."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, SafetensorError)  # safetensors wraps what the system says


@contextmanager
def aside(final: Path) -> Iterator[Path]:
    """A free path beside `final`, for a file or a folder; what the block makes there takes the place of `final`.

    A block that fails leaves nothing. A folder replaces only an empty one.
    """
    path = final.with_name(f".{final.name}.{os.getpid()}.writing")
    remove(path)
    try:
        yield path
        if path.is_dir() and final.is_dir():
            final.rmdir()  # not everywhere can a folder be renamed onto another
        os.replace(path, final)
    finally:
        remove(path)


def write_atomic(path: Path, content: bytes, durable: bool = True) -> None:
    """Replace a file in one go; `durable` also waits until the disk has it."""
    with aside(path) as new:
        new.write_bytes(content)
        if durable:
            to_disk(new)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def cause(error: Exception) -> str:
    """One of WRITE_ERRORS in the system's words, such as "No space left on device"."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def why_not_a_new_folder(path: Path) -> str | None:
    """Why no folder can be made at `path`; None where it is free or an empty folder, and can be written."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir():
        return f"{there} is a file"
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        return f"{there} cannot be written to"
    names = sorted(entry.name for entry in path.iterdir()) if there == path else []
    if names:
        return f"{path} is not empty (it holds {', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
    return None
