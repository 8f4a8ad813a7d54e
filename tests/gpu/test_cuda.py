"""A CUDA device computes what the CPU computes, and whole runs work on it; skipped where there is none (`make gpu`).

python -m pytest -m gpu
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine_setup import losses, make_training, run_config, tiny_tuned
from tests.tiny import random_sequences, tiny_model
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.api import chat
from tunewright.config.schema import RunConfig
from tunewright.engine.signals import StopRequest
from tunewright.engine.start import make_ready, resume, start
from tunewright.engine.watch import Silent
from tunewright.errors import Interrupted
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest
from tunewright.forest.layout import Backend
from tunewright.forest.model import ForestModel
from tunewright.runs.folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FAMILIES = ["llama", "qwen3", "mistral-window", "gemma2"]


def loss_and_gradients(family: str, device: str, backend: Backend | None) -> tuple[float, dict[str, Tensor]]:
    register_forest_attention()
    model = tiny_model(family, torch.float32, FOREST_ATTENTION).to(device)
    loss = ForestModel(model, backend).weighted_nll(build_forest(random_sequences(0)))
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_cpu(family: str, backend: Backend | None) -> None:
    """The oracle, and whatever is taken on this device when nothing is said."""
    expected_loss, expected = loss_and_gradients(family, "cpu", "reference")
    loss, gradients = loss_and_gradients(family, "cuda", backend)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale), name


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_loss_curve_is_that_of_the_cpu(tmp_path: Path, tuning: str) -> None:
    config = run_config(tuning, max_steps=8)
    curves = []
    for device in ("cpu", "cuda"):
        records: list[dict[str, float]] = []
        make_training(tmp_path / device, config, tiny_tuned(config).to(device), records=records).fit(StopRequest())
        curves.append(losses(records))
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert len(curves[0]) == 8
    assert curves[0][-1] < curves[0][0]


class StopsAfter(Silent):
    """Asks for a stop once a step is done."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, record: dict[str, float]) -> None:
        if record["step"] == self._step:
            raise Interrupted("enough")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_and_one_that_goes_on(tmp_path: Path, dtype: str) -> None:
    """Plan, training, samples, checkpoints, report and chat; what was interrupted ends where the whole run does."""
    save_tiny(tiny_tokenizer("chatml"), tmp_path / "model")
    rows = [{"instruction": f"What is boat {n}?", "output": f"The Heron {n}."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def config(name: str) -> RunConfig:
        return RunConfig.model_validate(
            {
                "model": {"name": str(tmp_path / "model"), "dtype": dtype},
                "data": {"train": str(tmp_path / "rows.jsonl"), "validation": 3},
                "train": {"batch_size": 4, "max_steps": 6, "save_steps": 2, "learning_rate": 0.01},
                "samples": {"max_new_tokens": 3},
                "evaluate": {"prompts": 2, "max_new_tokens": 3},
                "output": str(tmp_path / name),
            }
        )

    torch.cuda.reset_peak_memory_stats()
    whole = start(make_ready(config("whole"), tmp_path), "a test", Silent())
    assert torch.cuda.max_memory_allocated() > 0
    report = json.loads(whole.report_json.read_bytes())
    assert report["tuned"]["validation_loss"] < report["base"]["validation_loss"]
    with pytest.raises(Interrupted):
        start(make_ready(config("parts"), tmp_path), "a test", StopsAfter(5))
    parts = resume(RunFolder.open(tmp_path / "parts"), Silent())
    assert losses(parts.metrics()) == pytest.approx(losses(whole.metrics()), rel=1e-3 if dtype == "float32" else 2e-2)
    assert chat(parts).ask("What is boat 3?").finish in ("stop", "length")
