"""What this process holds of the machine's memory, and giving back what it no longer uses."""

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path

import psutil
import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def memory_bytes() -> int:
    """What this process holds now: memory of the GPU where training uses one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """The most that this process has held."""
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
    """Let glibc return freed memory to the system once, after work that is not repeated soon.

    Steps differ in size, and glibc keeps the gaps that they leave: with nothing leaking, a run was seen to grow by
    2 GiB in a hundred steps that way.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
