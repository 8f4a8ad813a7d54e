"""The GPU benchmark runs to its tables on any machine, with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "cuda.py"


@pytest.mark.slow
def test_both_works_are_compared(tmp_path: Path) -> None:
    short = ["--shape", "tiny", "--steps", "3", "--warmup", "1", "--batch-size", "4"]
    command = [sys.executable, str(BENCHMARK), *short, "--contestants", "tunewright", "trainer"]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for work in ("short", "long"):
        results = json.loads((tmp_path / f"cuda-tiny-{work}.json").read_text("utf-8"))
        ours, peer = (results["contestants"][name]["losses"] for name in ("tunewright", "trainer"))
        assert len(ours) == 3
        assert ours == pytest.approx(peer, rel=2e-3)
        assert results["per_step"]["distinct_tokens"] < results["per_step"]["tokens"]
        assert (tmp_path / f"cuda-tiny-{work}.md").is_file()
