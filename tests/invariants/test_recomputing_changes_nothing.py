"""Whatever number of layers is computed again in the backward, and whenever: a run has the same bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from tests.engine_setup import make_training, run_config, tiny_tuned
from tests.invariants.test_law_d_resume import resumed_model, stop_at, without_times
from tests.tiny import tiny_model
from tunewright.config.schema import RunConfig
from tunewright.engine.loop import Training
from tunewright.engine.signals import StopRequest
from tunewright.engine.tunings import Tuned
from tunewright.forest.attention import FOREST_ATTENTION
from tunewright.forest.model import plain_model
from tunewright.models.adapters import add_lora
from tunewright.models.recompute import recompute_layers
from tunewright.runs.checkpoints import checkpoints

Result = tuple[list[dict[str, Any]], Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]


def training(folder: Path, config: RunConfig, model: Tuned, which: Literal["off", "full"] | int) -> Training:
    recompute_layers(plain_model(model), which)
    return make_training(folder, config, model, forest_tokens=30)


def result(run: Training) -> Result:
    """Metrics, and the last checkpoint's moments and random state."""
    newest = checkpoints(run.run.checkpoints_path)[0].path
    files = [load_file(newest / name) for name in ("optimizer.safetensors", "random.safetensors")]
    return without_times(run.run.metrics()), files[0], files[1]


def assert_same(actual: Result, expected: Result) -> None:
    assert actual[0] == expected[0]
    for one, other in zip(actual[1:], expected[1:], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], tensor) for key, tensor in other.items())


def moe(config: RunConfig) -> Tuned:
    return add_lora(tiny_model("mixtral", attention=FOREST_ATTENTION, fused=True), config.lora, config.train.seed)


@pytest.mark.parametrize("kind", ["lora", "dropout", "full", "experts", "bfloat16"])
def test_the_same_curve_moments_and_random_state(tmp_path: Path, kind: str) -> None:
    config = run_config("full" if kind == "full" else "lora", 0.3 if kind == "dropout" else 0.0, max_steps=6)
    results = []
    for which in ("off", 1, "full"):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        model = moe(config) if kind == "experts" else tiny_tuned(config, dtype)
        run = training(tmp_path / str(which), config, model, which)
        run.fit(StopRequest())
        results.append(result(run))
    assert len(results[0][0]) >= 6
    for one in results[1:]:
        assert_same(one, results[0])


def test_a_run_that_recomputes_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Law (d), with dropout; the resumed run may even recompute another number of layers."""
    config = run_config("lora", dropout=0.3, max_steps=6, save_steps=3)
    whole = training(tmp_path / "whole", config, tiny_tuned(config), "off")
    whole.fit(StopRequest())
    stop_at(training(tmp_path / "parts", config, tiny_tuned(config), "full"), 4, forests=1)
    newest = checkpoints(tmp_path / "parts" / "checkpoints")[0]
    assert newest.step == 4
    resumed = training(tmp_path / "parts", config, resumed_model(config, newest), 1)
    resumed.restore(newest)
    resumed.fit(StopRequest())
    assert_same(result(resumed), result(whole))
