"""LLaMA-Factory's dataset_info.json means what it means there; what that program passes over is refused in words."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers import tiny_tokenizer
from tunewright.config.schema import ColumnsConfig, DataConfig, RunConfig, SourceConfig, TagsConfig
from tunewright.data.encode import prepare
from tunewright.data.examples import Dialog, Message
from tunewright.data.registry import expand_registry
from tunewright.errors import UsageError


@pytest.fixture(autouse=True)
def _no_hub_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)


def expand(folder: Path, entry: Any, **data: Any) -> SourceConfig:
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry, "other": {}}, ensure_ascii=False))
    settings = {"registry": "dataset_info.json", "use": ["mine"], **data}
    return expand_registry(DataConfig(**settings), folder)[0]


def refusal(folder: Path, entry: Any, **data: Any) -> str:
    with pytest.raises(UsageError) as caught:
        expand(folder, entry, **data)
    return str(caught.value)


def source(**settings: Any) -> SourceConfig:
    return SourceConfig(**{"path": "rows.json", "format": "alpaca", "guess": False, **settings})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, source()),
        ({"formatting": "alpaca", "columns": {"prompt": "q", "response": "a"}},
         source(columns=ColumnsConfig(prompt="q", response="a"))),
        ({"columns": {"prompt": "p", "query": "q", "response": "r", "history": "h", "system": "s", "tools": "t"}},
         source(columns=ColumnsConfig(prompt="p", query="q", response="r", history="h", system="s", tools="t"))),
        ({"columns": {"prompt": "q", "response": None, "system": ""}}, source(columns=ColumnsConfig(prompt="q"))),
        ({"formatting": "sharegpt"}, source(format="sharegpt", columns=ColumnsConfig(messages="conversations"))),
        ({"formatting": "openai", "columns": {"messages": "talk"}},
         source(format="openai", columns=ColumnsConfig(messages="talk"))),
        ({"formatting": "sharegpt", "columns": {"messages": "m"}, "tags": {"role_tag": "r", "user_tag": "甲"}},
         source(format="sharegpt", columns=ColumnsConfig(messages="m"), tags=TagsConfig(role_tag="r", user_tag="甲"))),
        ({"ranking": True, "columns": {"prompt": "q", "response": "a", "chosen": "c", "rejected": "r"}},
         source(kind="preference", columns=ColumnsConfig(prompt="q", chosen="c", rejected="r"))),
        ({"ranking": True}, source(kind="preference")),
        ({"ranking": False, "columns": {"prompt": "q", "response": "a", "chosen": "c", "rejected": "r"}},
         source(columns=ColumnsConfig(prompt="q", response="a"))),
        ({"columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}},
         source(columns=ColumnsConfig(prompt="q", response="a", label="ok"))),
        ({"num_samples": 7, "split": "train", "subset": "en", "note": "of my own"}, source(num_samples=7)),
    ],
)  # fmt: skip
def test_entries(tmp_path: Path, entry: dict[str, Any], expected: SourceConfig) -> None:
    assert expand(tmp_path, {"file_name": "rows.json", **entry}) == expected


def test_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"hf_hub_url": "hf/set", "ms_hub_url": "ms/set", "script_url": "x", "file_name": "y", "subset": "en",
            "split": "validation", "folder": "python", "revision": "v1"}  # fmt: skip
    keys = {"subset": "en", "split": "validation", "folder": "python", "revision": "v1"}
    hf, ms = source(path="hf/set", source="huggingface", **keys), source(path="ms/set", source="modelscope", **keys)
    assert expand(tmp_path, both) == hf
    assert expand(tmp_path, both, hub="modelscope") == ms
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert expand(tmp_path, both) == ms
    assert expand(tmp_path, both, hub="huggingface") == hf
    assert expand(tmp_path, {"hf_hub_url": "hf/set"}) == source(path="hf/set", source="huggingface")
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "0")
    assert expand(tmp_path, {"ms_hub_url": "ms/set"}) == source(path="ms/set", source="modelscope")


def test_online_names_are_hub_ids(tmp_path: Path) -> None:
    data = DataConfig(registry="ONLINE", use=["a/b"])
    assert expand_registry(data, tmp_path) == [SourceConfig(path="a/b", source="huggingface")]


def test_registry_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache of huggingface_hub, as it lies there after a download; files are those of that data set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    kept = tmp_path / "datasets--org--sets"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").mkdir(parents=True)
    entries = {"mine": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}}}
    (kept / "snapshots" / "abc" / "dataset_info.json").write_text(json.dumps(entries))
    found = expand_registry(DataConfig(registry="REMOTE:org/sets", use=["mine"]), tmp_path)
    columns = ColumnsConfig(prompt="q", response="a")
    assert found == [source(path="org/sets", source="huggingface", folder="a.json", columns=columns)]
    (kept / "snapshots" / "abc" / "a.json").write_text("[]")
    for digest in (hashlib.sha1(b"[]").hexdigest(), "0" * 40):
        checked = {"mine": {**entries["mine"], "file_sha1": digest}}
        (kept / "snapshots" / "abc" / "dataset_info.json").write_text(json.dumps(checked))
        if digest != "0" * 40:
            assert expand_registry(DataConfig(registry="REMOTE:org/sets", use=["mine"]), tmp_path) == found
    with pytest.raises(UsageError, match="^REMOTE:org/sets: mine: the SHA-1 of a.json is "):
        expand_registry(DataConfig(registry="REMOTE:org/sets", use=["mine"]), tmp_path)
    with pytest.raises(
        UsageError, match="data.registry: no dataset_info.json was found in org/other on Hugging Face: "
    ):
        expand_registry(DataConfig(registry="REMOTE:org/other", use=["mine"]), tmp_path)


def test_order_and_folders(tmp_path: Path) -> None:
    """Sources of their own come first; files lie beside the registry, which may be named by its folder."""
    (tmp_path / "sets").mkdir()
    entries = {"b": {"file_name": "b.json"}, "a": {"file_name": "sub/a.json"}}
    (tmp_path / "sets" / "dataset_info.json").write_text("\ufeff" + json.dumps(entries), encoding="utf-8")
    for registry in ("sets", "sets/dataset_info.json"):
        found = expand_registry(DataConfig(train="own.json", registry=registry, use=["a", "b"]), tmp_path)
        assert [item.path for item in found] == ["own.json", "sets/sub/a.json", "sets/b.json"]
    found = expand_registry(DataConfig(registry=str(tmp_path / "sets"), use=["b"]), Path("elsewhere"))
    assert found[0].path == str(tmp_path / "sets" / "b.json")


def test_hash_is_checked(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    digest = hashlib.sha1(b"[]").hexdigest()
    assert expand(tmp_path, {"file_name": "rows.json", "file_sha1": digest.upper()}) == source()
    assert expand(tmp_path, {"file_name": "rows.json", "file_sha1": ""}) == source()
    assert refusal(tmp_path, {"file_name": "rows.json", "file_sha1": "0" * 40}) == (
        f"dataset_info.json: mine: the SHA-1 of rows.json is {digest}, not file_sha1: {'0' * 40}; "
        "the file has changed: get it again, or remove that key"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "is not a mapping"),
        ({}, "says nowhere where its rows are: give file_name"),
        ({"file_name": 7}, "file_name must be text, not 7"),
        ({"om_hub_url": "a/b"}, "is on the openMind hub, which can't be read from here: download it, give file_name"),
        ({"script_url": "x"}, "runs code of its own (script_url), which is never done here: save its rows as JSONL"),
        ({"cloud_file_name": "s3://x"}, "lies in a cloud store (cloud_file_name): download it and give file_name"),
        ({"file_name": "x", "colums": {}}, "unknown key 'colums'; did you mean 'columns'?"),
        ({"file_name": "x", "format": "sharegpt"}, "unknown key 'format'; did you mean 'formatting'?"),
        ({"file_name": "x", "columns": {"promt": "q"}}, "unknown key columns.promt; did you mean 'prompt'?"),
        ({"file_name": "x", "columns": ["q"]}, "columns is not a mapping of names to names"),
        ({"file_name": "x", "columns": {"prompt": 1}}, "columns is not a mapping of names to names"),
        ({"file_name": "x", "tags": {"role": "from"}}, "unknown key tags.role; did you mean 'role_tag'?"),
        ({"file_name": "x", "columns": {"images": "i"}}, "has images, but only text can be learnt"),
        ({"file_name": "x", "formatting": "chatml"}, "formatting 'chatml' is none of alpaca, sharegpt, openai"),
        ({"file_name": "x", "num_samples": 0}, "num_samples must be a whole number above 0, not 0"),
        ({"file_name": "x", "num_samples": True}, "num_samples must be a whole number above 0, not True"),
        ({"file_name": "x", "split": "test"}, "a file has no split 'test', remove that key"),
    ],
)  # fmt: skip
def test_entries_that_cannot_be_used(tmp_path: Path, entry: Any, message: str) -> None:
    said = refusal(tmp_path, entry).removeprefix("dataset_info.json: mine")
    assert said.removeprefix(":").strip() == message


@pytest.mark.parametrize(
    ("content", "data", "message"),
    [
        (None, {"use": ["a"]}, "data.registry: dataset_info.json does not exist"),
        ("{", {"use": ["a"]},
         "data.registry: dataset_info.json:1:2 is not JSON: Expecting property name enclosed in double quotes"),
        ("[]", {"use": ["a"]}, "data.registry: dataset_info.json is not a mapping of names to data sets"),
        ("[" * 100_000, {"use": ["a"]}, "data.registry: dataset_info.json is nested too deeply"),
        (b"\xff{}", {"use": ["a"]}, "data.registry: dataset_info.json is not UTF-8 (byte 0)"),
        ('{"huanhuan": {}}', {"use": ["huanhua"]},
         "data.use: dataset_info.json has no data set 'huanhua'; did you mean 'huanhuan'?"),
        ('{"huanhuan": {}}', {"use": ["x"]}, "data.use: dataset_info.json has no data set 'x'; it has huanhuan"),
        ('{"a": {}, "b": {}}', {}, "data.use: name the sets to train on; dataset_info.json has a, b"),
        (None, {"registry": "ONLINE"}, "data.use: name the data sets on a hub to train on, as org/name"),
        ("{}", {"registry": None, "train": "x.json", "use": ["a"]},
         "data.use names sets of a registry: give its file, data.registry: path/dataset_info.json"),
    ],
)  # fmt: skip
def test_registries_that_cannot_be_used(
    tmp_path: Path, content: str | bytes | None, data: dict[str, Any], message: str
) -> None:
    if content is not None:
        written = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "dataset_info.json").write_bytes(written)
    with pytest.raises(UsageError) as caught:
        expand_registry(DataConfig(**{"registry": "dataset_info.json", **data}), tmp_path)
    assert str(caught.value) == message


def test_sets_are_trained_on(tmp_path: Path) -> None:
    """From the registry to examples: columns that are not listed are not read, labels and rankings are understood."""
    entries = {
        "plain": {"file_name": "plain.json", "columns": {"prompt": "instruction", "response": "output"}},
        "ranked": {"file_name": "ranked.json", "ranking": True, "formatting": "sharegpt",
                   "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
        "labelled": {"file_name": "labelled.json", "formatting": "sharegpt",
                     "columns": {"messages": "messages", "kto_tag": "label"},
                     "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                              "assistant_tag": "assistant"}},
    }  # fmt: skip
    turn = {"from": "human", "value": "q2"}
    files = {
        "dataset_info.json": entries,
        "plain.json": [{"instruction": "q1", "input": "unread", "output": "a1", "system": "unread"}],
        "ranked.json": [{"conversations": [turn], "chosen": {"from": "gpt", "value": "a2"},
                         "rejected": {"from": "gpt", "value": "b2"}}],
        "labelled.json": [
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q3"},
                          {"role": "assistant", "content": word}], "label": word == "good"}
            for word in ("good", "bad")
        ],
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    data = DataConfig(registry="dataset_info.json", use=list(entries), validation=None, drop_bad_rows=True)
    run = RunConfig(model={"name": "tiny"}, data=data)
    loaded = prepare(run, tiny_tokenizer(), [], tmp_path)
    assert [example.messages for example in loaded.train_examples if isinstance(example, Dialog)] == [
        (Message("user", "q1"), Message("assistant", "a1")),
        (Message("user", "q2"), Message("assistant", "a2")),
        (Message("system", "s"), Message("user", "q3"), Message("assistant", "good")),
    ]
    assert [(dropped.reason, dropped.count) for dropped in loaded.dropped] == [("its answer is labelled bad", 1)]
