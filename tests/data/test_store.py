"""The token store: what comes out is what went in, built once, whole or not at all, however many processes fill it."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizers import CHATML as CHATML_SOURCE
from tests.tokenizers import tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data import load, store, workers
from tunewright.data.account import SourceAccount
from tunewright.data.encode import Prepared, prepare
from tunewright.data.examples import Dialog, Encoded, EncodedSet, Place
from tunewright.data.load import find_sources, hash_files, read_sources
from tunewright.data.pack import Chunk, Job, Pack
from tunewright.data.store import Store, StoredSet, open_store, stores_root
from tunewright.data.workers import pack_all
from tunewright.errors import RunError

CHATML = tiny_tokenizer("chatml")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, count: int = 30, name: str = "rows.jsonl") -> None:
    rows = [{"instruction": f"What is {i % 25}?", "output": "It is " + "very " * (i % 7) + "big"} for i in range(count)]
    rows.insert(count // 2, {"instruction": "?", "output": ""})
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def config(seed: int = 42, stage: str = "sft", **data: Any) -> RunConfig:
    plain = {"model": "tiny", "data": {"train": "rows.jsonl", **data}, "train": {"seed": seed}}
    return RunConfig.model_validate({**plain, "method": {"stage": stage}})


def prepared(folder: Path, tokenizer: Any = CHATML, **settings: Any) -> Prepared:
    return prepare(config(**settings), tokenizer, [], folder)


def stores() -> list[str]:
    return sorted(path.name for path in stores_root().iterdir() if path.is_dir() and path.name != "hashes")


def contents(side: EncodedSet) -> list[tuple[list[int], list[float], Place]]:
    return [(side[i].input_ids.tolist(), side[i].weights.tolist(), side.places[i]) for i in range(len(side))]


def job(**data: Any) -> Job:
    return Job(config(**data).data, "sft", CHATML, CHATML_SOURCE, (1,), 1)


def test_a_second_start_opens_what_the_first_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    first = prepared(tmp_path)
    assert len(stores()) == 1
    monkeypatch.setattr(store, "_write", None)  # nothing can be built any more
    second = prepared(tmp_path)
    for one, other in ((first.train, second.train), (first.validation, second.validation)):
        assert contents(one) == contents(other)
        assert one.digest == other.digest
    assert list(first.train_examples) == list(second.train_examples)
    assert (first.loaded, first.dropped, first.stop_proof) == (second.loaded, second.dropped, second.stop_proof)


def test_reopening_takes_no_time(tmp_path: Path) -> None:
    write(tmp_path, 3000)
    prepared(tmp_path)
    began = time.process_time()
    prepared(tmp_path)
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 7}, True),
        ({"validation": 3}, True),
        ({"drop_bad_rows": True}, True),
        ({"system": "Be kind."}, False),
        ({"max_length": 99}, False),
        ({"train": [{"path": "rows.jsonl", "max_samples": 20}]}, False),
        ({"validation": "held-out.jsonl"}, False),
        ({"template": "other.jinja"}, False),
        ({"tokenizer": tiny_tokenizer("llama3")}, False),
    ],
)
def test_what_decides_the_tokens_names_the_store(tmp_path: Path, change: dict[str, Any], same: bool) -> None:
    write(tmp_path)
    write(tmp_path, 11, "held-out.jsonl")
    (tmp_path / "other.jinja").write_text(CHATML_SOURCE.replace("<|im_end|>", " <|im_end|>"), encoding="utf-8")
    prepared(tmp_path)
    prepared(tmp_path, **change)
    assert len(stores()) == (1 if same else 2)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path)
    before = prepared(tmp_path)
    write(tmp_path, 31)
    after = prepared(tmp_path)
    assert len(after.train) == len(before.train) + 1
    assert before.loaded.sha256 != after.loaded.sha256
    assert len(stores()) == 2


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path)

    def interrupted() -> Iterator[SourceAccount | Chunk]:
        yield from read_sources(find_sources(config().data, tmp_path), "sft")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store("a", interrupted(), job())
    assert stores() == []
    whole = open_store("a", read_sources(find_sources(config().data, tmp_path), "sft"), job())
    assert whole.account.rows == 31
    assert stores() == ["a"]


def test_a_damaged_store_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    expected = contents(prepared(tmp_path).train)
    tokens = stores_root() / stores()[0] / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    assert contents(prepared(tmp_path).train) == expected
    assert "tokens.bin has" in capsys.readouterr().err


def test_two_may_build_the_same_at_once(tmp_path: Path) -> None:
    write(tmp_path, 300)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: prepared(tmp_path), range(2)))
    assert contents(both[0].train) == contents(both[1].train)
    assert len(stores()) == 1


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    write(tmp_path, 30)
    long = {"instruction": "Go on", "output": "more " * 500}
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(long))
    whole = prepared(tmp_path, validation=4, max_length=200)
    assert whole.loaded.rows == 32
    assert {item.reason: (item.count, [place.line for place in item.first]) for item in whole.dropped} == {
        "no answer": (1, [16]),
        "longer than data.max_length = 200": (1, [32]),
    }
    assert (len(whole.train), len(whole.validation)) == (26, 4)
    lines = sorted(place.line for side in (whole.train, whole.validation) for place in side.places)
    assert lines == [line for line in range(1, 32) if line != 16]
    for side, examples in ((whole.train, whole.train_examples), (whole.validation, whole.validation_examples)):
        assert [example.place for example in examples] == list(side.places)
        assert all(isinstance(example, Dialog) for example in examples[:2])
        assert examples[-1] == list(examples)[-1]


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 50)
    expected = prepared(tmp_path)
    for rows, volume in ((7, 1 << 20), (1000, 100)):
        monkeypatch.setattr(load, "CHUNK_ROWS", rows)
        monkeypatch.setattr(load, "CHUNK_VOLUME", volume)
        monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / f"cache-{rows}"))
        again = prepared(tmp_path)
        assert contents(again.train) == contents(expected.train)
        assert again.train.digest == expected.train.digest
        assert again.loaded == expected.loaded


weights = st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(weights, min_size=1, max_size=6))
def test_weights_come_back_as_they_went(tmp_path: Path, sequences: list[list[float]]) -> None:
    from tunewright.data.pack import RUN, SEQUENCE, _runs

    items = [Encoded(np.arange(len(one), dtype=np.int32), np.array(one, np.float32)) for one in sequences]
    flat = EncodedSet.build(items, [])
    runs, runs_end = _runs(flat)
    table = np.zeros(len(items), SEQUENCE)
    table["tokens_end"], table["runs_end"] = flat.offsets[1:], runs_end
    table["trained"] = [np.count_nonzero(one.weights) for one in items]
    write_store(tmp_path, flat.input_ids, runs.astype(RUN), table)
    side = StoredSet(Store(tmp_path), np.arange(len(items)))
    for item, one in zip(items, (side[i] for i in range(len(side))), strict=True):
        assert (one.input_ids.tolist(), one.weights.tolist()) == (item.input_ids.tolist(), item.weights.tolist())
        assert (one.input_ids.dtype, one.weights.dtype) == (np.int32, np.float32)
    assert side.lengths.tolist() == flat.lengths.tolist()
    assert side.supervised_tokens == flat.supervised_tokens


def write_store(folder: Path, tokens: np.ndarray, runs: np.ndarray, sequences: np.ndarray) -> None:
    for name, array in (("tokens", tokens), ("runs", runs), ("sequences", sequences)):
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    (folder / "examples.bin").write_bytes(b"")
    (folder / "examples.jsonl").write_bytes(b"")
    (folder / "account.json").write_text("{}")


def test_what_is_held_out_is_kept_for_much_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    expected = contents(prepared(tmp_path, validation=0.2).validation)
    monkeypatch.setattr(store, "REMEMBERED", 10)
    assert contents(prepared(tmp_path, validation=0.2).validation) == expected
    monkeypatch.setattr(store, "hold_out", None)
    assert contents(prepared(tmp_path, validation=0.2).validation) == expected


def test_numbers_of_examples_held_out_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also large ones: all digits count."""
    monkeypatch.setattr(store, "REMEMBERED", 10)
    monkeypatch.setattr(store, "hold_out", lambda hashes, size, seed: np.array([int(size) % 10]))
    write(tmp_path)
    prepared(tmp_path)
    opened = Store(stores_root() / stores()[0])
    assert [opened.held_out(size, 1).tolist() for size in (1234567, 1234568, 1234567)] == [[7], [8], [7]]


def test_hashes_are_made_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "much"
    path.write_text("abcdef")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    expected = hash_files([path])
    monkeypatch.setattr(load, "MUCH", 3)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "file" / "cache"))
    assert hash_files([path]) == expected


def test_hashes_of_much_data_are_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MUCH", 3)
    path = tmp_path / "much"
    path.write_text("abcdef")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    first = hash_files([path])
    (memo,) = (stores_root() / "hashes").iterdir()
    assert memo.read_text() == first == hash_files([path])
    path.write_text("ghijkl")
    assert hash_files([path]) != first
    assert len(list((stores_root() / "hashes").iterdir())) == 1  # too fresh to be relied on


def test_stores_nobody_opens_are_forgotten(tmp_path: Path) -> None:
    write(tmp_path)
    prepared(tmp_path)
    (old,) = stores()
    os.utime(stores_root() / old / store.MANIFEST, (1, 1))
    prepared(tmp_path, system="Be kind.")
    assert len(stores()) == 1
    assert stores() != [old]


@pytest.fixture
def chunks(tmp_path: Path) -> list[Chunk]:
    write(tmp_path, 60)
    items = read_sources(find_sources(config().data, tmp_path), "sft")
    (whole,) = [item for item in items if isinstance(item, Chunk)]
    parts = [slice(begin, begin + 10) for begin in range(0, 61, 10)]
    return [Chunk(0, whole.layout, whole.file, whole.lines[part], whole.rows[part]) for part in parts]


@pytest.fixture
def packs(chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    """The packs of all chunks; every chunk but the first comes when the worker has started or has failed to."""
    started = threading.Event()
    start = workers._start

    def watched(*given: Any) -> bool:
        try:
            return start(*given)
        finally:
            started.set()

    def later() -> Iterator[Chunk]:
        yield chunks[0]
        assert started.wait(120)
        time.sleep(0.1)  # until its future tells it
        yield from chunks[1:]

    monkeypatch.setattr(workers, "_start", watched)
    return pack_all(later(), job(), workers=2, alone=0)


def test_workers_give_what_one_process_gives(
    chunks: list[Chunk], packs: Iterator[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: list[Chunk] = []
    pack_in_one = workers._pack_in_one
    monkeypatch.setattr(
        workers, "_pack_in_one", lambda idle, chunk, job: handed_over.append(chunk) or pack_in_one(idle, chunk, job)
    )
    alone = list(pack_all(chunks, job(), workers=1))
    shared = list(packs)
    assert 0 < len(handed_over) < len(chunks)
    for one, other in zip(alone, shared, strict=True):
        assert (one.text, one.bad, one.notes, one.ends) == (other.text, other.bad, other.notes, other.ends)
        for name in ("ids", "runs", "sequences", "examples"):
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_workers_run_nothing_of_the_folder_they_are_started_in(
    chunks: list[Chunk], packs: Iterator[Pack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("from pathlib import Path\n\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert len(list(packs)) == len(chunks)
    assert not (tmp_path / "ran").exists()


def test_a_row_nested_deeper_than_can_be_sent_is_prepared_here(chunks: list[Chunk], packs: Iterator[Pack]) -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    for chunk in chunks:
        chunk.rows[0]["note"] = deep
    shared = list(packs)
    assert [len(pack.examples) for pack in shared] == [len(pack.examples) for pack in pack_all(chunks, job(), 1)]


@pytest.mark.parametrize("when", ["as it starts", "amid its first pack"])
def test_an_answer_that_breaks_off_is_an_error_in_words(
    when: str, packs: Iterator[Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker is killed while it writes."""
    ready = "sys.stdout.buffer.write(pickle.dumps(None)); sys.stdout.flush(); pickle.load(sys.stdin.buffer)"
    half = (
        f"import pickle, sys; pickle.load(sys.stdin.buffer); {ready if when == 'amid its first pack' else ''}\n"
        "sys.stdout.buffer.write(pickle.dumps(['x' * 99])[:50])"
    )
    popen = workers.subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda _, **k: popen([sys.executable, "-c", half], **k))
    with pytest.raises(RunError, match="a process that prepares data ended with code 0"):
        list(packs)


def test_a_worker_that_dies_is_an_error_in_words(packs: Iterator[Pack], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = workers.subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    next(packs)  # made here, before the worker is ready

    def kill_and_go_on() -> None:
        for process in started:
            process.send_signal(signal.SIGKILL)
        list(packs)

    with pytest.raises(RunError, match="was killed, most likely for want of memory"):
        kill_and_go_on()
    assert all(process.poll() is not None for process in started)
