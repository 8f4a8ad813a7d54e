"""The benchmark compares the same tokens, sees short peaks of memory, and runs where the peer is not installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.tokenizers import SENTENCES, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.encode import prepare

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "data_throughput.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_throughput", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARK.parent))  # as it is where the benchmark is run
        spec.loader.exec_module(module)
    return module


def test_the_peer_has_the_same_tokens(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"instruction": text, "input": SENTENCES[i - 1] if i % 2 else "", "output": f"{text}\n"}
        for i, text in enumerate(SENTENCES[:6])
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    system = benchmark.PROMPT.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
    data = {"train": "rows.json", "validation": None, "system": system, "max_length": benchmark.MAX_LENGTH}
    tokenizer = tiny_tokenizer("chatml")
    ours = prepare(RunConfig.model_validate({"model": "tiny", "data": data}), tokenizer, [], tmp_path).train
    theirs = [benchmark.tutorial_function(tokenizer)(row) for row in rows]
    assert [ours[i].input_ids.tolist() for i in range(6)] == [row["input_ids"] for row in theirs]
    assert [(ours[i].weights > 0).tolist() for i in range(6)] == [[id >= 0 for id in row["labels"]] for row in theirs]
    assert all(len(row["attention_mask"]) == len(row["labels"]) for row in theirs)


def test_a_short_peak_of_a_child_is_seen(benchmark: ModuleType) -> None:
    held = "import time; time.sleep(1); x = bytearray(b'1') * 300_000_000; time.sleep(0.15); del x; time.sleep(0.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}], check=True)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        peak = benchmark.watch_memory(process)
    assert process.returncode == 0
    assert 300_000_000 < peak < 400_000_000


def test_the_results_say_where_they_are_from(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Date, command, machine, cores and versions, in both files, and no folder of this machine."""

    def measured(name: str, python: str, model: Path, data: Path, environment: dict[str, str]) -> dict[str, object]:
        numbers = {"seconds": 2.0, "tokens": 50, "rows": 10, "rows_per_second": 5.0, "peak_bytes": 10**8}
        installed = {"tokenizers": "0.23.3", **({"datasets": "5.2.0"} if "map" in name else {})}
        return {"name": name, **numbers, "versions": installed}

    monkeypatch.setattr(benchmark, "measure", measured)
    monkeypatch.setattr(benchmark, "write_rows", lambda path, rows, model: path)
    words = [
        "--rows",
        "10",
        "20",
        "--peer-rows",
        "10",
        "--output",
        "/secret/results.json",
        "--peer-python",
        "/secret/py",
    ]
    monkeypatch.setattr("sys.argv", ["data_throughput.py", *words])
    results = benchmark.compare(benchmark.parse_options())
    command = "python benchmarks/data_throughput.py --rows 10 20 --peer-rows 10"
    assert results["command"] == command
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", results["created"])
    assert results["cores"] == len(os.sched_getaffinity(0))
    assert results["machine"]
    assert results["versions"]["datasets.map"] == {"tokenizers": "0.23.3", "datasets": "5.2.0"}
    assert "secret" not in json.dumps(results)
    text = benchmark.to_markdown(results)
    assert text.startswith(f"# Rows to tokens, {results['created']}\n\n- command: `{command}`\n- machine: ")
    assert "- versions: tokenizers 0.23.3 (tunewright, tunewright check)\n" in text
    assert "- versions: tokenizers 0.23.3, datasets 5.2.0 (datasets.map, datasets.map num_proc)\n" in text


@pytest.mark.slow
def test_it_runs_without_the_peer(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--rows", "2000", "--peer-rows", "0", "--output", "results.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    (ours,), (check,) = results["tunewright"], results["check"]
    assert results["same_rows"] == []
    assert ours["rows"] == check["rows"] == 2000
    assert ours["tokens"] == check["tokens"] > 2000 * 50
    assert min(ours["seconds"], ours["reopened"], check["seconds"]) > 0
    assert min(ours["peak_bytes"], check["peak_bytes"]) > 50_000_000
    assert (tmp_path / "results.md").read_text("utf-8").strip() == done.stdout.strip()
    assert "| tunewright check, rows | seconds | rows/s | peak memory |" in done.stdout
    assert "the same rows" not in done.stdout
