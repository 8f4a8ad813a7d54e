"""The hubs' own libraries against a hub on this machine: data sets are downloaded, read, and read again offline."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.models.fake_hub import COMMIT, FakeHub, serve

READ = """
import json, sys
from pathlib import Path
from tunewright.config.schema import SourceConfig
from tunewright.data.read import read_rows
from tunewright.errors import TunewrightError
results = []
for source in json.loads(sys.argv[1]):
    said = []
    try:
        rows = list(read_rows(SourceConfig(**source), Path("."), notify=said.append))
        found = {"rows": [row for row, _ in rows], "places": [str(place) for _, place in rows], "said": said}
    except TunewrightError as error:
        found = {"error": str(error), "code": error.exit_code}
    results.append(found)
print(json.dumps(results))
"""
HAS_MODELSCOPE = importlib.util.find_spec("modelscope_hub") is not None
HUBS = ["huggingface", pytest.param("modelscope", marks=pytest.mark.skipif(not HAS_MODELSCOPE, reason="no modelscope"))]
README = """---
license: apache-2.0
configs:
- config_name: zh
  default: true
  data_files:
  - split: train
    path: zh/a*.jsonl
  - split: test
    path: zh/held out.jsonl
- config_name: en
  data_files: en/*.jsonl
---
# A set
"""


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("hub")
    for split, rows in (("train", 3), ("test", 1)):
        path = folder / "parquet" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"q": [f"{split} {i}" for i in range(rows)]}), path)
    write(folder / "declared" / "README.md", README)
    write(folder / "declared" / "zh" / "a.jsonl", '{"q": "你好"}\n')
    write(folder / "declared" / "zh" / "held out.jsonl", '{"q": "再见"}\n')
    write(folder / "declared" / "en" / "a.jsonl", '{"q": "hello"}\n')
    write(folder / "script" / "script.py", "raise SystemExit('this must never run')\n")
    write(folder / "script" / "README.md", "# A set\n")
    repos = {f"me/{path.name}": path for path in folder.iterdir()}
    with serve(FakeHub(repos, {"me/gated": (403, "GatedRepo"), "me/private": (401, "RepoNotFound")})) as running:
        yield running


def read_all(
    url: str, home: Path, sources: list[dict[str, Any]], variables: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """What another process reads: the libraries look at the environment when they are imported."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith(("HF_", "MODELSCOPE_"))
    }
    given = {
        "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "MODELSCOPE_ENDPOINT": url, "MODELSCOPE_CACHE": str(home / "ms"), "MODELSCOPE_HOME": str(home / "ms-home"),
        "TUNEWRIGHT_CACHE": str(home / "cache"), "HOME": str(home),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(sources)],
        env={**kept, **given, **(variables or {})},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def read(url: str, home: Path, variables: dict[str, str] | None = None, **source: Any) -> dict[str, Any]:
    return read_all(url, home, [source], variables)[0]


@pytest.mark.parametrize("source", HUBS)
def test_a_split_is_downloaded_once_and_read_offline(hub: FakeHub, tmp_path: Path, source: str) -> None:
    hub.requests.clear()
    first = read(hub.url, tmp_path, path="me/parquet", source=source)
    assert first["rows"] == [{"q": f"train {i}"} for i in range(3)]
    assert first["places"] == [f"me/parquet/data/train-00000-of-00001.parquet:{i}" for i in (1, 2, 3)]
    assert first["said"] == ["me/parquet: reads 1 file of split train; not read: test (1 file)"]
    assert not [line for line in hub.requests if "test-00000" in line]


def test_without_the_hub_the_copy_in_the_cache_is_used(hub: FakeHub, tmp_path: Path) -> None:
    source = {"path": "me/declared", "source": "huggingface"}
    first = read(hub.url, tmp_path, **source)
    offline, other = read_all(hub.url, tmp_path, [source, {**source, "subset": "en"}], {"HF_HUB_OFFLINE": "1"})
    assert offline["rows"] == first["rows"] == [{"q": "你好"}]
    assert offline["said"] == ["me/declared: HF_HUB_OFFLINE is set; using the copy in the cache"]
    assert other["error"].startswith("me/declared: HF_HUB_OFFLINE is set and there is no complete copy in the cache")
    away = read("http://127.0.0.1:9", tmp_path, **source)  # the list of files is kept for each address of a hub
    assert away["error"].startswith("me/declared: the download from http://127.0.0.1:9 failed")
    assert away["code"] == 1


@pytest.mark.parametrize("source", HUBS)
def test_subset_split_and_folder(hub: FakeHub, tmp_path: Path, source: str) -> None:
    expected: list[tuple[dict[str, str], str]] = [
        ({}, "你好"),
        ({"split": "test"}, "再见"),
        ({"subset": "en"}, "hello"),
        ({"folder": "en"}, "hello"),
        ({"folder": "zh/held*"}, "再见"),
    ]
    sources = [{"path": "me/declared", "source": source, **settings} for settings, _ in expected]
    found = [result["rows"] for result in read_all(hub.url, tmp_path, sources)]
    assert found == [[{"q": text}] for _, text in expected]


REFUSED: list[tuple[dict[str, str], str]] = [
    (
        {"path": "me/gated"},
        "data.train: me/gated: the data set is gated; accept its terms on {url}/datasets/me/gated, "
        "then run `hf auth login` or set HF_TOKEN",
    ),
    (
        {"path": "me/none"},
        "data.train: me/none: not found on {url}; check the spelling "
        "(a private data set needs `hf auth login` or HF_TOKEN)",
    ),
    (
        {"path": "me/private"},
        "data.train: me/private: not found on {url}; check the spelling "
        "(a private data set needs `hf auth login` or HF_TOKEN)",
    ),
    (
        {"path": "me/parquet", "revision": "v9"},
        "data.train: me/parquet at v9: there is no such branch, tag or commit; "
        "see {url}/datasets/me/parquet/tree/main, or leave data.train.revision out",
    ),
    (
        {"path": "me/script"},
        "data.train: me/script holds a loading script instead of data files, and no foreign code is run: "
        "see whether data.train.revision: refs/convert/parquet has it as data",
    ),
    (
        {"path": "me/parquet", "split": "tests"},
        "data.train.split: me/parquet has no split 'tests', it has test, train; did you mean 'test'?",
    ),
    (
        {"path": "me/parquet", "split": "train[:10%]"},
        "data.train.split: 'train[:10%]': slices are not read; name the split, and limit it by max_samples",
    ),
    (
        {"path": "me/declared", "subset": "fr"},
        "data.train.subset: me/declared has no subset 'fr', it has zh, en",
    ),
    (
        {"path": "me/declared", "folder": "fr"},
        "data.train.folder: me/declared has no data file in 'fr'; it has en, zh",
    ),
    ({"path": "alpaca"}, "data.train: 'alpaca' is no valid id of a data set on a hub; the form is owner/name"),
]


def test_refusals_say_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    sources = [{"source": "huggingface", **settings} for settings, _ in REFUSED]
    results = read_all(hub.url, tmp_path, sources)
    assert [result["error"] for result in results] == [message.format(url=hub.url) for _, message in REFUSED]
    assert {result["code"] for result in results} == {2}


def test_a_commit_can_be_named(hub: FakeHub, tmp_path: Path) -> None:
    assert len(read(hub.url, tmp_path, path="me/parquet", source="huggingface", revision=COMMIT)["rows"]) == 3


@pytest.mark.skipif(not HAS_MODELSCOPE, reason="no modelscope")
def test_modelscope_refuses_what_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    result = read(hub.url, tmp_path, path="me/none", source="modelscope")
    assert result["error"].startswith(f"data.train: me/none: not found on {hub.url}")
    assert result["code"] == 2
