import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tunewright.errors import RunError
from tunewright.models.cache import KEPT_DAYS, MANIFEST, build_once, cache_root, find_fault, forget_old, write_aside


def build_files(aside: Path) -> None:
    (aside / "inner").mkdir()
    (aside / "inner" / "weights").write_bytes(b"x" * 1000)
    (aside / "config").write_text("{}")


def test_builds_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(aside: Path) -> None:
        calls.append(aside)
        build_files(aside)

    folder = build_once(tmp_path / "deep" / "model", build)
    assert build_once(folder, build) == folder
    assert len(calls) == 1
    assert json.loads((folder / MANIFEST).read_text())["files"]["inner/weights"]["bytes"] == 1000
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "model.lock"]


@pytest.mark.parametrize("damage", ["cut", "remove", "manifest", "no manifest"])
def test_a_broken_folder_is_built_again_with_a_notice(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "model", build_files)
    if damage == "cut":
        (folder / "inner" / "weights").write_bytes(b"x" * 10)
    elif damage == "remove":
        (folder / "config").unlink()
    else:
        (folder / MANIFEST).unlink()
        if damage == "manifest":
            (folder / MANIFEST).write_text('{"files": [')
    said: list[str] = []
    build_once(folder, build_files, said.append)
    assert find_fault(folder) is None
    assert len(said) == 1
    assert "building it again" in said[0]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(aside: Path) -> None:
        build_files(aside)
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        build_once(tmp_path / "model", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_unwritable_cache_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="TUNEWRIGHT_CACHE"):
        build_once(tmp_path / "file" / "model", build_files)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written .*free the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "aside"), "cannot be written .*free the disk"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/rows.json"),
            "cannot be made .*/elsewhere/rows.json",
        ),
        (ConnectionError("the line is dead"), "cannot be made .*the line is dead"),
    ],
)
def test_only_the_cache_is_called_unwritable(tmp_path: Path, error: OSError, words: str) -> None:
    def build(aside: Path) -> None:
        if error.filename == "aside":
            error.filename = str(aside / "weights")
        raise error

    with pytest.raises(RunError, match=words) as caught:
        build_once(tmp_path / "model", build)
    assert caught.value.__cause__ is error


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    for name in (".model.1.writing", ".other.99999999.writing", ".busy.77.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * 1000)
    with FileLock(tmp_path / "busy.lock"):
        build_once(tmp_path / "model", build_files)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".busy.77.writing", "model"]


def build_and_count(folder: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    def build(aside: Path) -> None:
        with (folder.parent / "calls").open("a") as file:
            file.write("x")
        build_files(aside)

    start.wait()
    build_once(folder, build)


def test_processes_at_once_build_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    workers = [context.Process(target=build_and_count, args=(tmp_path / "model", start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "calls").read_text() == "x"
    assert find_fault(tmp_path / "model") is None


def test_cache_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNEWRIGHT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tunewright"
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "mine"))
    assert cache_root() == tmp_path / "mine"


def test_small_files_are_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "plan.json"
    write_aside(path, b"first")
    assert path.read_bytes() == b"first"
    replaced: list[bytes] = []
    monkeypatch.setattr(os, "replace", lambda part, whole: replaced.append(Path(part).read_bytes()))
    write_aside(path, b"second")
    assert replaced == [b"second"]
    assert path.read_bytes() == b"first"


def test_what_nobody_opened_for_long_is_forgotten(tmp_path: Path) -> None:
    now = time.time()
    for name, days in (("new", KEPT_DAYS - 1), ("old", KEPT_DAYS + 1)):
        build_once(tmp_path / name, build_files)
        (tmp_path / f"{name}.json").write_text("{}")
        for path in (tmp_path / name / MANIFEST, tmp_path / f"{name}.json", tmp_path / f"{name}.lock"):
            path.touch()
            os.utime(path, (now, now - days * 86400))
    half = tmp_path / ".broken.123.writing"
    half.mkdir()
    os.utime(half, (0, 0))
    forget_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.json", "new.lock"]
