"""When, on what and with which versions a benchmark ran; shared by all, so it imports nothing of any contestant."""

import os
import platform
import re
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def today() -> str:
    """The date, as 2026-11-22."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def processor() -> str:
    """The processor's name, as its maker calls it where the system says so."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.machine()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of the packages that is installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
