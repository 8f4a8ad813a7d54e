"""Folders, patterns, splits, compressed files and folders written by the datasets library."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tunewright.config.schema import SourceConfig
from tunewright.data.find import find_named_files
from tunewright.data.read import read_rows
from tunewright.data.splits import choose_files, matches
from tunewright.errors import UsageError

ROW = '{"q": "hi", "a": "ho"}\n'


def make(folder: Path, *names: str, content: str = ROW) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def found(base: Path, path: str, **settings: Any) -> tuple[list[str], list[str]]:
    """Files relative to the base, and what was said."""
    said: list[str] = []
    files = find_named_files(SourceConfig(path=path, **settings), base, "data.train", said.append)
    return [file.path.relative_to(base).as_posix() for file in files], said


def complaint(base: Path, path: str, **settings: Any) -> str:
    with pytest.raises(UsageError) as caught:
        list(read_rows(SourceConfig(path=path, **settings), base, notify=lambda _: None))
    return str(caught.value)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    make(
        tmp_path,
        "set/b.jsonl",
        "set/a.json",
        "set/more/c.jsonl",
        "set/.hidden.json",
        "set/.git/x.json",
        "set/README.md",
    )
    make(tmp_path, "set/dataset_infos.json", "set/__MACOSX/a.json", "set/picture.png")
    assert found(tmp_path, "set") == (["set/a.json", "set/b.jsonl", "set/more/c.jsonl"], [])
    rows = list(read_rows(SourceConfig(path="set/"), tmp_path))
    assert [str(place) for _, place in rows] == ["set/a.json:1", "set/b.jsonl:1", "set/more/c.jsonl:1"]
    assert len(list(read_rows(SourceConfig(path="set", max_samples=2), tmp_path))) == 2


def test_patterns(tmp_path: Path) -> None:
    make(tmp_path, "set/b.jsonl", "set/a.jsonl", "set/deep/er/c.jsonl", "set/x.txt", "set/[1].jsonl")
    assert found(tmp_path, "set/*.jsonl")[0] == ["set/[1].jsonl", "set/a.jsonl", "set/b.jsonl"]
    assert found(tmp_path, "set/**/c.jsonl")[0] == ["set/deep/er/c.jsonl"]
    assert found(tmp_path, "set/[ab].jsonl")[0] == ["set/a.jsonl", "set/b.jsonl"]
    assert found(tmp_path, "set/[1].jsonl")[0] == ["set/[1].jsonl"]
    elsewhere = find_named_files(SourceConfig(path=str(tmp_path / "set/a*")), tmp_path / "elsewhere", "data.train")
    assert [file.path for file in elsewhere] == [tmp_path / "set/a.jsonl"]
    rows = list(read_rows(SourceConfig(path="set/?.jsonl"), tmp_path))
    assert [str(place) for _, place in rows] == ["set/a.jsonl:1", "set/b.jsonl:1"]


def test_splits_of_a_folder_are_told_by_names(tmp_path: Path) -> None:
    make(tmp_path, "set/data/train-00000-of-00002.jsonl", "set/data/train-00001-of-00002.jsonl", "set/dev.jsonl")
    train = [f"set/data/train-0000{i}-of-00002.jsonl" for i in (0, 1)]
    said = ["set: reads 2 files of split train; not read: validation (1 file)"]
    assert found(tmp_path, "set") == (train, said)
    assert found(tmp_path, "set", split="validation")[0] == ["set/dev.jsonl"]
    assert found(tmp_path, "set", split="train+validation") == ([*train, "set/dev.jsonl"], [])
    assert found(tmp_path, "set", folder="data") == (train, [])


def test_a_file_without_a_split_is_for_training_unless_another_is(tmp_path: Path) -> None:
    make(tmp_path, "set/rows.jsonl", "set/test.jsonl")
    assert found(tmp_path, "set") == (
        ["set/rows.jsonl"],
        ["set: reads 1 file of split train; not read: test (1 file)"],
    )
    make(tmp_path, "set/train.jsonl")
    assert found(tmp_path, "set") == (
        ["set/train.jsonl"],
        ["set: reads 1 file of split train; not read: test (1 file), without a split (1 file)"],
    )


def test_a_lone_split_is_read_and_named(tmp_path: Path) -> None:
    make(tmp_path, "set/test.jsonl")
    assert found(tmp_path, "set") == (["set/test.jsonl"], ["set: its only split is test, which is read"])


@pytest.mark.parametrize(
    ("names", "settings", "chosen"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], {}, ["default/train/0000.parquet"]),
        (
            ["a/partial-train_sft/0000.parquet", "b/x/0000.parquet"],
            {"split": "train_sft"},
            ["a/partial-train_sft/0000.parquet"],
        ),
        (
            ["data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"],
            {"split": "train_prefs"},
            ["data/train_prefs-00000-of-00001.parquet"],
        ),
        (["training.csv", "val.csv"], {"split": "valid"}, ["val.csv"]),
        (["zh/train.json", "en/train.json"], {"subset": "en"}, ["en/train.json"]),
        (["zh_train.json", "en_train.json"], {"subset": "zh"}, ["zh_train.json"]),
        (["zh/a.json", "zh/b.csv"], {"folder": "zh/*.csv"}, ["zh/b.csv"]),
        (["zh/a.json", "zh/b.json"], {"folder": "zh/b.json"}, ["zh/b.json"]),
        (["contest.json", "latest.json"], {}, ["contest.json", "latest.json"]),
    ],
)
def test_which_files_are_meant(names: list[str], settings: dict[str, str], chosen: list[str]) -> None:
    assert choose_files(names, None, "me/set", "data.train", lambda _: None, **settings) == chosen


DECLARED = """---
configs:
- config_name: a
  data_dir: first
- config_name: b
  data_files:
    train: [second/x.json, second/y.json]
    test: "second/*z.json"
---
"""
FILES = ["first/train.json", "first/test.json", "second/x.json", "second/y.json", "second/z.json", "third.json"]


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"subset": "a"}, ["first/train.json"]),
        ({"subset": "a", "split": "test"}, ["first/test.json"]),
        ({"subset": "b"}, ["second/x.json", "second/y.json"]),
        ({"subset": "b", "split": "test"}, ["second/z.json"]),
    ],
)
def test_the_head_of_a_readme_declares_subsets(settings: dict[str, str], chosen: list[str]) -> None:
    assert choose_files(FILES, DECLARED, "me/set", "data.train", lambda _: None, **settings) == chosen


@pytest.mark.parametrize(
    "readme", ["# no head", "---\n: : :\n---\n", "---\n- a\n---\n", "---\nconfigs: 3\n---\n", "---\na: 1"]
)
def test_other_readmes_declare_nothing(readme: str) -> None:
    assert choose_files(["x.json"], readme, "me/set", "data.train", lambda _: None) == ["x.json"]


@pytest.mark.parametrize(
    ("names", "readme", "settings", "message"),
    [
        ([], None, {}, "data.train: me/set holds no data file"),
        (["a.png", "b.bin"], None, {}, "data.train: me/set holds no data file, only .bin, .png"),
        (
            FILES, DECLARED, {},
            "data.train: me/set has several subsets, choose one: data.train.subset: a | b",
        ),
        (FILES, DECLARED, {"subset": "c"}, "data.train.subset: me/set has no subset 'c', it has a, b"),
        (
            ["zh/a.json", "en/a.json"], None, {"subset": "zhh"},
            "data.train.subset: me/set has no subset 'zhh'; its folders are en, zh; did you mean 'zh'?",
        ),
        (["a.json"], None, {"subset": "zh"}, "data.train.subset: me/set has no subset 'zh'"),
        (["a.json"], None, {"split": "test"}, "data.train.split: me/set has no split 'test', it has train"),
        (
            ["a.json"], None, {"folder": "zh"},
            "data.train.folder: me/set has no data file in 'zh'; all of its data files lie at its top",
        ),
        (
            ["train_sft-00000-of-00001.json", "train_gen-00000-of-00001.json"], None, {},
            "data.train.split: me/set has no split 'train', it has train_gen, train_sft; did you mean 'train_sft'?",
        ),
        (
            ["a.json", "b.json", "c.csv"], None, {},
            "data.train: me/set holds 2 files like a.json and 1 file like c.csv, which are not read together: "
            "name one kind by a pattern, such as *.json",
        ),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(
    names: list[str], readme: str | None, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_files(names, readme, "me/set", "data.train", lambda _: None, **settings)
    assert str(caught.value) == message


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    make(tmp_path, "set/a.json", "set/b.csv", "other/x.png", "rows.json")
    assert complaint(tmp_path, "set/*.txt") == (
        f"data.train: no file matches set/*.txt (looked from {(tmp_path / 'set').resolve()})"
    )
    assert complaint(tmp_path, "other").startswith("data.train: other holds no data file, only .png")
    assert complaint(tmp_path, "other/*").startswith(
        "data.train: other/*: x.png can't be read, as files ending in .png"
    )
    assert complaint(tmp_path, "rows.json", split="test") == (
        "data.train.split is for folders and data sets on a hub, and rows.json is neither"
    )
    assert complaint(tmp_path, "rows.json", revision="v1") == (
        "data.train.revision is for data sets on a hub; say which: data.train.source: huggingface | modelscope"
    )
    assert complaint(tmp_path, "set/*") == (
        f"data.train: set/* holds 1 file like {tmp_path}/set/a.json and 1 file like {tmp_path}/set/b.csv, "
        "which are not read together: name one kind by a pattern, such as *.json"
    )


def test_faults_name_the_file_in_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "set/a.jsonl")
    make(tmp_path, "set/b.jsonl", content=ROW + "{oops")
    make(tmp_path, "set/c.jsonl", content="")
    assert complaint(tmp_path, "set").startswith("set/b.jsonl, line 2, column 2: malformed JSON")
    make(tmp_path, "none/a.jsonl", "none/b.jsonl", content="\n")
    assert complaint(tmp_path, "none") == "none holds no rows"


def test_folders_that_the_datasets_library_saved(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        table = pa.table({"q": [f"{split} {i}" for i in range(count)]})
        with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
        make(folder, "state.json", content=json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        make(folder, "dataset_info.json", content="{}")
    make(tmp_path, "saved/dataset_dict.json", content='{"splits": ["test", "train"]}')
    rows = list(read_rows(SourceConfig(path="saved"), tmp_path))
    assert rows[0][0] == {"q": "train 0"}
    assert str(rows[2][1]) == "saved/train/data-00000-of-00001.arrow:3"
    assert len(list(read_rows(SourceConfig(path="saved", split="test"), tmp_path))) == 1
    assert len(list(read_rows(SourceConfig(path="saved/train"), tmp_path))) == 3
    assert complaint(tmp_path, "saved", split="dev") == "data.train.split: saved has no split 'dev', it has test, train"
    (tmp_path / "saved/train/data-00000-of-00001.arrow").unlink()
    assert complaint(tmp_path, "saved") == "data.train: saved is not complete, data-00000-of-00001.arrow is missing"


def zstd(content: bytes) -> bytes:
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as stream:
        stream.write(content)
    return bytes(target.getvalue().to_pybytes())


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files(tmp_path: Path, ending: str) -> None:
    pack = gzip.compress if ending == ".gz" else zstd
    expected = [{"q": "hi", "a": "ho"}]
    texts = {"rows.json": f"[{ROW}]", "rows.jsonl": ROW, "ROWS.CSV": "q,a\nhi,ho\n", "rows.tsv": "q\ta\nhi\tho\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}{ending}").write_bytes(pack(text.encode("utf-8-sig")))
        assert [row for row, _ in read_rows(SourceConfig(path=f"{name}{ending}"), tmp_path)] == expected
    (tmp_path / f"twice.jsonl{ending}").write_bytes(pack(ROW.encode()) * 2)
    assert len(list(read_rows(SourceConfig(path=f"twice.jsonl{ending}"), tmp_path))) == 2
    (tmp_path / f"gbk.txt{ending}").write_bytes(pack("你好".encode("gb18030")))
    assert [row for row, _ in read_rows(SourceConfig(path=f"gbk.txt{ending}", encoding="gbk"), tmp_path)] == [
        {"text": "你好"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"", "a.jsonl.gz is empty"),
        ("a.jsonl.zst", b"", "a.jsonl.zst is empty"),
        ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz holds no rows"),
        (
            "a.jsonl.gz", gzip.compress(ROW.encode() * 500)[:-9],
            "a.jsonl.gz is cut off, its compressed data ends too early: fetch it again",
        ),
        (
            "a.jsonl.zst", zstd(ROW.encode() * 500)[:-9],
            "a.jsonl.zst is cut off, its compressed data ends too early: fetch it again",
        ),
        (
            "a.jsonl.gz", ROW.encode(),
            "a.jsonl.gz is no sound gzip file (Not a gzipped file (b'{\"')): fetch or compress it again",
        ),
        (
            "a.jsonl.zst", ROW.encode(),
            "a.jsonl.zst is no sound zstd file (ZSTD decompress failed: Unknown frame descriptor): "
            "fetch or compress it again",
        ),
        (
            "a.jsonl.gz", gzip.compress(ROW.encode())[:-8] + b"\0" * 8,
            "a.jsonl.gz is no sound gzip file (CRC check failed 0x0 != 0x192c561f): fetch or compress it again",
        ),
    ],
)  # fmt: skip
def test_damaged_compressed_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert complaint(tmp_path, name) == message


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("a/b.json", "a/*.json", True),
        ("a/b/c.json", "a/*.json", False),
        ("a/b/c.json", "a/**/*.json", True),
        ("a/c.json", "a/**/*.json", True),
        ("a/c.json", "**", True),
        ("a/c.json", "./a/?.json", True),
        ("a/c1.json", "a/c[0-9].json", True),
        ("a/cx.json", "a/c[!0-9].json", True),
        ("axc.json", "a.c.json", False),
    ],
)
def test_patterns_of_data_sets(name: str, pattern: str, fits: bool) -> None:
    assert matches(name, pattern) is fits


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "jsonl.gz", "parquet", "arrow"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, kind: str) -> None:
    """Python's own memory over 60,000 rows stays under what 6,000 of them would take."""
    import pyarrow.parquet as pq

    count, answer = 60_000, "an answer of some words " * 8
    path = tmp_path / f"rows.{kind}"
    if kind in ("parquet", "arrow"):
        table = pa.table({"q": [f"question {i}" for i in range(count)], "a": [answer] * count})
        if kind == "parquet":
            pq.write_table(table, path)  # one row group
        else:
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table, 1000)
        del table
    else:
        line = {"csv": f"question,{answer}\n", "txt": f"{answer}\n"}.get(
            kind, json.dumps({"q": "x", "a": answer}) + "\n"
        )
        whole = {"csv": "q,a\n" + line * count, "json": "[" + ",".join([line] * count) + "]"}.get(kind, line * count)
        path.write_bytes(gzip.compress(whole.encode()) if kind.endswith("gz") else whole.encode())
        del whole
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(SourceConfig(path=path.name), tmp_path)) == count
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
