"""Law (c): same seed, any forest size and process count: the same loss curve, and that of a plain loop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine_setup import in_two_processes, losses, make_training, run_config, tiny_set, tiny_tuned
from tests.tiny import tiny_model
from tunewright.engine.schedule import learning_rate_factor
from tunewright.engine.signals import StopRequest

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def trained(folder: Path, tuning: str, dtype: torch.dtype, forest_tokens: int) -> list[dict[str, float]]:
    config = run_config(tuning)
    records: list[dict[str, float]] = []
    make_training(folder, config, tiny_tuned(config, dtype), forest_tokens, records=records).fit(StopRequest())
    return records


def curve(folder: Path, tuning: str, dtype: torch.dtype, forest_tokens: int) -> list[float]:
    return losses(trained(folder, tuning, dtype, forest_tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_forest_size_does_not_change_the_curve(tmp_path: Path, tuning: str, dtype: torch.dtype) -> None:
    whole = curve(tmp_path / "whole", tuning, dtype, 10**6)
    assert len(whole) == 20
    assert whole[-1] < whole[0]
    for forest_tokens in (1, 40):
        parts = curve(tmp_path / str(forest_tokens), tuning, dtype, forest_tokens)
        assert parts == pytest.approx(whole, rel=TOLERANCE[dtype])


def test_what_was_made_ahead_is_used_for_its_own_step_alone(tmp_path: Path) -> None:
    config = run_config()
    fresh = [make_training(tmp_path, config, tiny_tuned(config)).compute_gradients(step) for step in (3, 4, 9)]
    training = make_training(tmp_path, config, tiny_tuned(config))
    third, fourth, tenth = fresh
    assert [training.compute_gradients(step) for step in (3, 4, 3, 9, 4)] == [third, fourth, third, tenth, fourth]
    assert len({result.loss for result in fresh if result is not None}) == 3


def test_the_curve_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """One sequence at a time through the model's own forward, torch's cross-entropy and its own AdamW."""
    config = run_config("full")
    forest_curve = curve(tmp_path / "forest", "full", torch.float64, 10**6)
    model, data = tiny_model("llama", torch.float64, "sdpa"), tiny_set()
    sampler = make_training(tmp_path / "order", config, model).sampler
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0)
    plain_curve = []
    for step in range(sampler.total_steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * learning_rate_factor(step, 20, config.train.warmup, "cosine")
        total = torch.zeros((), dtype=torch.float64)
        weight = 0.0
        for index in sampler.step(step):
            ids = torch.from_numpy(data[index].input_ids.astype(np.int64))
            weights = torch.from_numpy(data[index].weights[1:]).double()
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            total, weight = total + (nll * weights).sum(), weight + float(weights.sum())
        optimizer.zero_grad()
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain_curve.append(float(total) / weight)
    # sdpa sums in another order, and 20 AdamW steps amplify the last bits.
    assert forest_curve == pytest.approx(plain_curve, rel=1e-6)


WORKER = """
import json, sys
from pathlib import Path
import torch
from tests.engine_setup import losses, make_training, run_config, tiny_tuned
from tunewright.engine.signals import StopRequest
config = run_config(sys.argv[2])
records, rows = [], 0
training = make_training(Path(sys.argv[1]), config, tiny_tuned(config, torch.float64), 40, records=records)
weighted_nll = training.forest_model.weighted_nll

def counted(forest):
    global rows
    rows += len(forest)
    return weighted_nll(forest)

training.forest_model.weighted_nll = counted
training.fit(StopRequest())
found = {"processes": training.processes.count, "rows": rows, "losses": losses(records)}
Path(sys.argv[1], f"process-{training.processes.index}.json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_two_processes_equal_one(tmp_path: Path, tuning: str) -> None:
    in_two_processes(WORKER, tmp_path / "two", tuning)
    first, second = (json.loads((tmp_path / "two" / f"process-{index}.json").read_text()) for index in range(2))
    alone = trained(tmp_path / "one", tuning, torch.float64, 40)
    assert first["losses"] == pytest.approx(losses(alone), rel=1e-9)
    # Each did a part of the work: two that trained alone would have the same curve too.
    rows = sum(record.get("distinct_tokens", 0) for record in alone)
    assert first["processes"] == second["processes"] == 2
    assert rows <= first["rows"] + second["rows"]
    assert max(first["rows"], second["rows"]) < 0.75 * rows
