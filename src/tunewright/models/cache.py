"""Folders in the user's cache that are built once: written aside, manifest last, then renamed; and small files there.

`TUNEWRIGHT_CACHE` moves the cache; otherwise it is `$XDG_CACHE_HOME/tunewright` or `~/.cache/tunewright`.
"""

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tunewright.errors import RunError
from tunewright.files import WRITE_ERRORS, aside, cause, remove, sha256_of, to_disk

MANIFEST = "tunewright-files.json"
KEPT_DAYS = 30  # what nobody opened for so long is deleted when something else is built beside it
Notify = Callable[[str], None]


def to_stderr(text: str) -> None:
    """The default way to tell the user something: standard output stays free for results."""
    print(text, file=sys.stderr, flush=True)


def cache_root() -> Path:
    """Folder of everything tunewright keeps between runs; not created here."""
    if os.environ.get("TUNEWRIGHT_CACHE"):
        return Path(os.environ["TUNEWRIGHT_CACHE"]).expanduser().resolve()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base.resolve() / "tunewright"


def build_once(folder: Path, build: Callable[[Path], None], notify: Notify = to_stderr) -> Path:
    """`folder`, built by `build(aside)` unless it is there and complete.

    A finished folder is recognised by the sizes in its manifest (milliseconds, no hashing). A folder that does not
    match is built again with a notice. A lock file makes a second process wait for the first and use its result.
    What killed builds left beside it is removed. Raises RunError when the cache cannot be written, and what `build`
    raises.
    """
    from filelock import FileLock

    try:
        if find_fault(folder) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(folder.parent)
        with FileLock(folder.with_name(folder.name + ".lock")):
            fault = find_fault(folder)
            if fault is None:
                return folder
            if folder.exists():
                notify(f"{folder}: {fault}; building it again")
            _build(folder, build)
    except WRITE_ERRORS as error:
        if not _is_about(folder.parent, error):
            raise RunError(f"{folder}: cannot be made ({error}); mend that and run the command again") from error
        raise RunError(
            f"{folder}: cannot be written ({cause(error)}); free the disk, or set TUNEWRIGHT_CACHE to another folder"
        ) from error
    return folder


def find_fault(folder: Path) -> str | None:
    """What is wrong with a built folder, in words; None when its files are all there in full length."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return "the file list is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "the file list is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def write_aside(path: Path, content: bytes) -> None:
    """Write a small file of the cache so that it is never seen in part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)


def forget_old(root: Path) -> None:
    """Delete what nobody opened for long in a folder of the cache, and what interrupted builds left behind."""
    oldest = time.time() - KEPT_DAYS * 86400
    for path in root.iterdir():
        with suppress(OSError):  # another process may delete it at the same time
            used = path / MANIFEST if (path / MANIFEST).exists() else path
            if used.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    with aside(folder) as new:
        new.mkdir()
        build(new)
        files = sorted(path for path in new.rglob("*") if path.is_file())
        entries = {
            path.relative_to(new).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        }
        (new / MANIFEST).write_text(json.dumps({"files": entries}, indent=1))
        for path in (*files, new / MANIFEST):
            to_disk(path)
        remove(folder)


def _remove_left_overs(parent: Path) -> None:
    """Remove what killed processes were building; who still builds holds the lock."""
    from filelock import FileLock, Timeout

    for left in parent.glob(".*.writing"):  # as `files.aside` calls them
        name = left.name.removeprefix(".").rsplit(".", 2)[0]
        with suppress(Timeout), FileLock(left.with_name(f"{name}.lock")).acquire(timeout=0):
            remove(left)


def _is_about(cache: Path, error: Exception) -> bool:
    """Whether the cache is at fault: its disk is full, or a file or folder of it cannot be written."""
    if not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True  # other errors of writing are safetensors', which writes nowhere else
    names = [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str)]
    return any(name.is_relative_to(cache) or cache.is_relative_to(name) for name in names)
