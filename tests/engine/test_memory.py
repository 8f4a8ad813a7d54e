"""Memory that may still be taken, and what is kept of it: the machine's, and no more than a container allows."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tunewright.engine.memory import available_memory, bound_product_caches, total_memory
from tunewright.models.dtype import cpu_bfloat16

MB = 10**6


def group(folder: Path, limit: str, used: int, cached: int, version: int) -> None:
    """The files in which the kernel tells about one control group."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{content}\n")
    prefix = "" if version == 2 else "total_"
    pages = f"{prefix}inactive_file {cached // 2}\n{prefix}active_file {cached - cached // 2}\n"
    # Version 1 also counts each group alone, without the groups inside it.
    (folder / "memory.stat").write_text(("" if version == 2 else "inactive_file 1\nactive_file 1\n") + pages)


@pytest.fixture
def process(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.mark.parametrize(("version", "root"), [(2, "groups"), (1, "groups/memory")])
def test_a_limit_counts_wherever_above_the_process_it_stands(
    tmp_path: Path, process: Path, version: int, root: str
) -> None:
    process.write_text("0::/outer/inner\n" if version == 2 else "3:cpu:/\n4:memory:/outer/inner\n0::/\n")
    unlimited = "max" if version == 2 else "9223372036854771712"
    group(tmp_path / root / "outer/inner", unlimited, 50 * MB, 20 * MB, version)
    group(tmp_path / root / "outer", str(100 * MB), 60 * MB, 20 * MB, version)
    assert available_memory(process, tmp_path / "groups") == 60 * MB  # file pages are given back when needed
    assert total_memory(process, tmp_path / "groups") == 100 * MB
    group(tmp_path / root / "outer/inner", str(70 * MB), 50 * MB, 20 * MB, version)
    assert available_memory(process, tmp_path / "groups") == 40 * MB
    assert total_memory(process, tmp_path / "groups") == 70 * MB


@pytest.mark.parametrize(
    ("version", "line", "root"),
    [(2, "0::/", "groups"), (1, "4:memory:/docker/4711", "groups/memory"), (2, "0::/../other", "groups")],
)
def test_a_container_that_sees_only_its_own_part_of_the_tree(
    tmp_path: Path, process: Path, version: int, line: str, root: str
) -> None:
    process.write_text(f"{line}\n")
    group(tmp_path / root, str(100 * MB), 30 * MB, 0, version)
    group(tmp_path / "other", str(MB), 0, 0, version)  # not ours
    assert available_memory(process, tmp_path / "groups") == 70 * MB


def test_a_full_container_has_nothing_left(tmp_path: Path, process: Path) -> None:
    process.write_text("0::/\n")
    group(tmp_path / "groups", str(100 * MB), 130 * MB, 0, 2)
    assert available_memory(process, tmp_path / "groups") == 0


def test_without_limits_it_is_the_machine(tmp_path: Path, process: Path) -> None:
    assert total_memory(process, tmp_path) == psutil.virtual_memory().total  # no such files, as on macOS
    process.write_text("0::/\n")
    group(tmp_path / "groups", "max", 30 * MB, 0, 2)
    assert total_memory(process, tmp_path / "groups") == psutil.virtual_memory().total
    assert 0 < available_memory() <= total_memory()


def test_the_caches_of_products_are_bounded_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    bound_product_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "256"


@pytest.mark.skipif(not cpu_bfloat16(), reason="products are compiled for bfloat16, which this CPU has not")
def test_products_of_ever_new_shapes_do_not_fill_the_memory() -> None:
    """In a process of its own, since the caches look at the environment once."""
    program = """
import torch
from tunewright.engine.memory import bound_product_caches, memory_bytes
bound_product_caches()
weight = torch.ones(64, 64, dtype=torch.bfloat16)
for rows in range(1, 901):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
    if rows == 500:
        half = memory_bytes()
print(memory_bytes() - half)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 20 * 2**20, "unbounded, four hundred shapes take 250 MiB"
