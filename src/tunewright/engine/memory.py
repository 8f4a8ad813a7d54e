"""What this process holds of the machine's memory and may still take, and giving back what it no longer uses."""

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

# Where Linux says which control groups a process is in, and what they are allowed.
_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

# How many compiled matrix products oneDNN, and torch's own cache in front of it, keep; each has 1,024 as it comes.
_PRODUCTS_KEPT = 256
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def memory_bytes() -> int:
    """What this process holds now: memory of the GPU where training uses one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """The most that this process has held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would also count what the parent held before it started this program.
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(process: Path = _PROCESS, groups: Path = _GROUPS) -> int:
    """Bytes that this process may still take: what is free on the machine, and within every container limit on it."""
    free = [limit - used for limit, used in _group_limits(process, groups)]
    return max(0, min([int(psutil.virtual_memory().available), *free]))


def total_memory(process: Path = _PROCESS, groups: Path = _GROUPS) -> int:
    """Bytes of the machine, or of the container where its limit is lower."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _group_limits(process, groups))])


def bound_product_caches() -> None:
    """Let torch forget products of shapes it has not met for long; before the first bfloat16 product on the CPU.

    Steps differ in size, so most of their products are of new shapes, and each compiled one holds small blocks all over
    the heap. With the caches as they come, a run grew from 2.5 to 4.5 GiB in two hundred steps, and a third of its time
    went into glibc's search for room between these blocks. The environment is where both caches look, once.
    """
    for name in _PRODUCT_CACHES:
        os.environ.setdefault(name, str(_PRODUCTS_KEPT))


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, from now on.

    By default it returns large blocks to the system at once, and each step then waits for fresh zeroed pages for all
    its activations: up to a second on two cores. Other systems' allocators keep it anyway.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 * 2**20)


def give_back_free_memory() -> None:
    """Let glibc return freed memory to the system once.

    Blocks of other sizes than a step's leave gaps that no step fills. What is given back must be fetched anew, which
    costs about a second, so this is for when it matters.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _group_limits(process: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """(limit, use) in bytes of every control group (version 1 or 2) above this process that has a memory limit.

    File pages do not count as used: the kernel takes them back before it kills. A container that sees only its own
    part of the tree finds its limit at the mount's root, whatever path the kernel names, so all parents are tried.
    """
    for line in process.read_text().splitlines() if process.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, limit_name, used_name, prefix = groups, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, limit_name, used_name = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for part in (inner, *inner.parents):
            folder = root / part
            if ".." in part.parts or not (folder / limit_name).is_file():
                continue
            limit = (folder / limit_name).read_text().strip()
            if limit.isdecimal():  # else "max"
                used = int((folder / used_name).read_text())
                yield int(limit), used - _file_pages(folder / "memory.stat", prefix)


def _file_pages(stat: Path, prefix: str) -> int:
    found = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat.read_text(), re.MULTILINE)
    return sum(map(int, found))
