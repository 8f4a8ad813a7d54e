"""The benchmark marks every stage of a real start, in the order of the run, and shows medians of differences."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.folders import tiny_folder

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "startup.py"

CONFIG = """
model: {name: model, dtype: float32}
data: {train: rows.jsonl, validation: 2, max_length: 200}
method: {stage: sft, tuning: lora}
train: {batch_size: 2, epochs: 1}
samples: {max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("startup", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_stage_is_marked_in_order(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_folder(tmp_path / "model")
    rows = [f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "run.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    stages = benchmark.launch("run.yaml")
    names = [name for name, _, _ in stages]
    assert names[:2] == ["Python and config", "import torch"]
    assert names[4:] == [
        "tokenizer",
        "data from the token store, stop proof",
        "plan",
        "run folder, weights and adapters",
        "proof on a forest",
        "optimizer; the loop begins",
        "validation of the untrained model",
        "answers of the untrained model",
        "step 1",
    ]
    walls = [wall for _, wall, _ in stages]
    assert walls == sorted(walls)
    assert walls[0] > 0


def test_the_table_shows_medians_of_each_stage_alone(benchmark: ModuleType) -> None:
    runs = [[("a", 1.0, 1.0), ("b", 1.0 + own, 3.0), ("c", 9.0, 4.0), ("d", 10.0, 5.0)] for own in (1.0, 2.0, 7.0)]
    lines = benchmark.table(runs)
    assert lines[2:4] == ["| a | 1.00 | 1.00 | 1.00 |", "| b | 2.00 | 2.00 | 3.00 |"]
    assert lines[4:] == ["| c | 6.00 |  | 9.00 |", "| d | 1.00 |  | 10.00 |"]
