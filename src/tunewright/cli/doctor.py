"""`tunewright doctor [--online] [--json]`: look at this machine and installation, and say what is missing."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunewright.cli.output import print_json, print_table
from tunewright.units import gib

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `ok`, `note` (works, could be better) or `fail` (training cannot work)."""

    name: str
    level: Literal["ok", "note", "fail"]
    text: str


def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also try to reach the model hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at this machine and installation, and say what is missing."""
    findings = list(examine(online))
    failed = [finding.name for finding in findings if finding.level == "fail"]
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        marks = {"ok": "ok", "note": "note", "fail": "FAIL"}
        print_table(["", "what", "found"], [[marks[f.level], f.name, f.text] for f in findings])
        print()
        print(f"Not ready: {', '.join(failed)} must be put right." if failed else "Ready: this machine can train.")
    raise typer.Exit(1 if failed else 0)


def examine(online: bool) -> Iterator[Finding]:
    """Everything `doctor` looks at; packages are imported only once they are known to be there."""
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "fail", f"{version} at {sys.executable}")
    packages = list(packages_found())
    yield from packages
    if not any(finding.level == "fail" for finding in packages):
        yield from torch_found()
        yield memory_found()
    yield disk_found("disk", Path.cwd(), 2 * GIB, "a run and its checkpoints")
    yield cache_found()
    if online:
        yield hub_found()


def packages_found() -> Iterator[Finding]:
    """Installed versions against the lower bounds of pyproject.toml."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    from tunewright.runs.provenance import installed_version

    needed = [Requirement(line) for line in requires("tunewright") or []]
    good = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed_version(requirement.name)
        if found is None:
            yield Finding(requirement.name, "fail", f"not installed; pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, "fail", f"{found} is too old; pip install '{requirement}'")
        else:
            good.append(f"{requirement.name} {found}")
    yield Finding("packages", "ok", ", ".join(good))


def torch_found() -> Iterator[Finding]:
    """GPU, cores and the float type that `dtype: auto` takes here."""
    import torch

    from tunewright.models.dtype import choose_dtype

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding(f"gpu {index}", "ok", f"{device.name}, {gib(device.total_memory)}")
    if not torch.cuda.is_available():
        apple = torch.backends.mps.is_available()
        yield Finding(
            "gpu", "ok" if apple else "note", "Apple GPU" if apple else "none that torch can use: CPU training"
        )
    cores, threads = usable_cores(), torch.get_num_threads()
    few = threads < cores
    hint = f"; torch uses only {threads}, see OMP_NUM_THREADS" if few else ""
    yield Finding("cores", "note" if few else "ok", f"{cores}{hint}")
    yield Finding("dtype", "ok", choose_dtype("auto")[1])


def usable_cores() -> int:
    """Cores this process may use; the physical count is not what torch gets in a container."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory_found() -> Finding:
    """Free memory, within the container's limit where it has one."""
    from tunewright.engine.memory import available_memory, total_memory

    free, total = available_memory(), total_memory()
    little = free < 2 * GIB
    hint = "; the built-in model needs about 2 GiB, `tunewright check` says what yours needs" if little else ""
    return Finding("memory", "note" if little else "ok", f"{gib(free)} free of {gib(total)}{hint}")


def disk_found(name: str, folder: Path, enough: int, purpose: str) -> Finding:
    """Free space on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    hint = "" if free >= enough else f"; {purpose} may need {gib(enough)}"
    return Finding(name, "note" if hint else "ok", f"{gib(free)} free in {folder}{hint}")


def cache_found() -> Finding:
    """The folder that keeps models between runs: there or possible, writable, with room."""
    from tunewright.models.cache import cache_root

    cache = cache_root()
    there = cache
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("cache", "fail", f"{cache} cannot be written; set TUNEWRIGHT_CACHE to another folder")
    found = disk_found("cache", there, GIB, "the built-in model")
    return Finding("cache", found.level, found.text.replace(str(there), str(cache), 1))


def hub_found() -> Finding:
    """Whether the model hub answers within five seconds."""
    from urllib.request import Request, urlopen

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: only local and cached models work")
    try:
        with urlopen(Request(ENDPOINT, method="HEAD"), timeout=5):
            return Finding("hub", "ok", f"{ENDPOINT} answers")
    except OSError as error:  # every failure of urllib is one
        return Finding("hub", "note", f"{ENDPOINT} does not answer ({error}); local and cached models still work")
