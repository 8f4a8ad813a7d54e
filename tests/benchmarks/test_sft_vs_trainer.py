"""The benchmark compares like with like: in float32 tunewright and transformers' Trainer have the same losses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.folders import tiny_folder
from tests.tokenizers import SENTENCES

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "sft_vs_trainer.py"


def run_benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), "--model", "model", "--dtype", "float32", "--threads", "1", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    tiny_folder(folder / "model", "qwen2", torch.float32)
    # Answers from one word to several sentences: micro-batches then differ in padding and in trained tokens.
    rows = [
        {"instruction": f"{SENTENCES[i % 7]} {i}?", "output": " ".join(SENTENCES[: i % 5]) or "Yes."} for i in range(30)
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    # 5 steps of 8 pass the end of the 30 rows, and the high rate makes wrong gradients show in the next loss.
    work = ("--data", "rows.json", "--system", "You keep a lighthouse.", "--max-length", "512", "--batch-size", "8")
    length = ("--steps", "5", "--warmup", "1", "--learning-rate", "1e-2", "--target-loss", "99")
    done = run_benchmark(folder, *work, *length, "--output", "out/results.json")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "results.md").read_text("utf-8").strip() == done.stdout.strip()
    text = (folder / "out" / "results.json").read_text("utf-8")
    assert str(folder) not in text
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.slow
def test_the_curves_agree(results: dict[str, Any]) -> None:
    ours, peer, plain = (results["contestants"][name]["losses"] for name in ("tunewright", "trainer", "trainer-nockpt"))
    assert ours == pytest.approx(peer, rel=5e-6)
    assert plain == pytest.approx(peer, rel=5e-6)
    assert len(ours) == 5
    assert max(ours) - min(ours) > 0.05, "the losses move by far more than they may differ"


@pytest.mark.slow
def test_the_numbers_fit_together(results: dict[str, Any]) -> None:
    step = results["per_step"]
    assert step["loss_rows"] <= step["supervised_tokens"] < step["tokens"]
    assert step["distinct_tokens"] < step["tokens"], "the system prompt is shared"
    for run in results["contestants"].values():
        assert len(run["step_seconds"]) == 5
        assert run["startup_seconds"] + sum(run["step_seconds"]) == pytest.approx(run["wall_seconds"])
        assert run["samples_per_second_overall"] == pytest.approx(8 * 4 / sum(run["step_seconds"][1:]))
        assert run["target_seconds"] == pytest.approx(run["startup_seconds"] + sum(run["step_seconds"][:4]))
        assert run["step_over_floor"] > 1
        assert run["peak_memory_bytes"] > 2**26
    assert results["contestants"]["tunewright"]["computed_tokens"] == step["distinct_tokens"]
    assert results["contestants"]["trainer"]["computed_tokens"] > step["tokens"], "rows are padded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size", "6"), "a multiple of it"),
        (("--steps", "2"), "at least one step"),
        (("--steps", "3", "--target-loss", "2"), "the mean of 4 steps"),
        (("--data", "nowhere.json"), "nowhere.json"),
    ],
)
def test_unusable_options_end_it_at_once(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    tiny_folder(tmp_path / "model", "qwen2", torch.float32)
    done = run_benchmark(tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_is_reached_when_four_steps_are_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    from sft_vs_trainer import seconds_to_loss

    run = {"startup_seconds": 5.0, "step_seconds": [1.0] * 7, "losses": [4.0, 1.0, 4.0, 4.0, 3.0, 3.0, 2.0]}
    assert seconds_to_loss(run, 3.3) == 5 + 4  # 13 / 4
    assert seconds_to_loss(run, 3.0) == 5 + 5  # 12 / 4
    assert seconds_to_loss(run, 2.9) is None
    assert seconds_to_loss(run, None) is None
