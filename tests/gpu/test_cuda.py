"""A CUDA device computes what the CPU computes, and whole runs work on it; skipped where there is none (`make gpu`).

python -m pytest -m gpu
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engine_setup import losses, make_training, run_config, tiny_tuned
from tests.tiny import random_sequences, tiny_config, tiny_model
from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.api import chat
from tunewright.config.schema import RunConfig
from tunewright.engine.activations import DecoderMemory
from tunewright.engine.signals import StopRequest
from tunewright.engine.start import make_ready, resume, start
from tunewright.engine.tunings import Tuned, weights_dtype
from tunewright.engine.watch import Silent
from tunewright.errors import Interrupted
from tunewright.forest.attention import FOREST_ATTENTION, reference_attention, register_forest_attention
from tunewright.forest.build import Forest, build_forest
from tunewright.forest.flex import flexible_attention
from tunewright.forest.layout import Backend, ForestLayout, best_backend
from tunewright.forest.model import ForestModel
from tunewright.models.adapters import add_lora
from tunewright.models.fused import fuse_blocks
from tunewright.runs.folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FAMILIES = ["llama", "qwen3", "mistral-window", "gemma2", "gemma3"]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Every test compiles what a run would; together they would pass the limit of kernels for one function."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def some_forest(seed: int) -> Forest:
    """Of several blocks of rows, seen in part and in full."""
    return build_forest(random_sequences(seed, count=40, longest=300, alphabet=50))


def loss_and_gradients(
    family: str, device: str, backend: Backend | None, dtype: torch.dtype = torch.float32
) -> tuple[float, dict[str, Tensor]]:
    register_forest_attention()
    model = tiny_model(family, dtype, FOREST_ATTENTION, fused=True).to(device)
    loss = ForestModel(model, backend).weighted_nll(some_forest(0))
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def test_flex_is_what_attends_here() -> None:
    assert best_backend(CUDA) == "flex"


@pytest.mark.parametrize("backend", ["reference", "flex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_cpu(family: str, backend: Backend) -> None:
    expected_loss, expected = loss_and_gradients(family, "cpu", "reference")
    loss, gradients = loss_and_gradients(family, "cuda", backend)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale), name


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_in_bfloat16_is_no_further_off_than_the_dense_mask(family: str) -> None:
    _, exact = loss_and_gradients(family, "cpu", "reference")
    errors = []
    for backend in ("flex", "reference"):
        _, found = loss_and_gradients(family, "cuda", backend, torch.bfloat16)
        off = sum(float((found[name].float() - gradient).square().sum()) for name, gradient in exact.items())
        errors.append((off / sum(float(gradient.square().sum()) for gradient in exact.values())) ** 0.5)
    assert 0 < errors[0] < 1.2 * errors[1] < 0.5


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("softcap", "with_sinks"), [(None, False), (5.0, False), (None, True)])
def test_compiled_attention_equals_the_reference(window: int | None, softcap: float | None, with_sinks: bool) -> None:
    """With heads as wide as real models have them, and for two lengths, the second of which compiles for all others."""
    for seed in (1, 2):
        layout = ForestLayout(some_forest(seed), CUDA, "flex")
        shapes = [(heads, len(layout.forest), 64) for heads in (8, 2, 2)]
        leaves = [torch.randn(shape, device=CUDA, requires_grad=True) for shape in shapes]
        sinks = torch.linspace(-1, 2, 8, device=CUDA).requires_grad_() if with_sinks else None
        outs = [
            flexible_attention(*leaves, layout.block_mask(window), 0.125, softcap, sinks),
            reference_attention(*leaves, layout, 0.125, window, softcap, sinks),
        ]
        every = leaves if sinks is None else [*leaves, sinks]
        upstream = torch.randn_like(outs[1])
        found, expected = ([out, *torch.autograd.grad(out, every, upstream)] for out in outs)
        for actual, exact in zip(found, expected, strict=True):
            assert float((actual - exact).norm() / exact.norm()) < 1e-4


def test_a_step_waits_for_the_device_in_no_layer() -> None:
    """From the forest to the launch of the backward nothing is read back."""
    register_forest_attention()
    plain = tiny_model("llama", torch.bfloat16, FOREST_ATTENTION, fused=True).to(CUDA)
    plain.get_input_embeddings().requires_grad_(False)  # as in LoRA; counting its rows' gradients reads back
    model = ForestModel(plain)
    model.weighted_nll(some_forest(0)).backward()  # compiles
    model.weighted_nll(some_forest(1)).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.weighted_nll(some_forest(1)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_planned_memory_is_what_a_step_takes(tuning: str) -> None:
    register_forest_attention()
    settings = tiny_config("llama", hidden_size=512, intermediate_size=1536, head_dim=128, num_hidden_layers=12)
    config = run_config(tuning)

    def model(device: str) -> Tuned:
        with torch.device(device):
            plain = AutoModelForCausalLM.from_config(
                settings, dtype=weights_dtype(tuning, torch.bfloat16), attn_implementation=FOREST_ATTENTION
            )
        fuse_blocks(plain)
        return plain if tuning == "full" else add_lora(plain, config.lora, 0)

    forest = build_forest(random_sequences(0, count=60, longest=900, alphabet=50))
    autocast = torch.bfloat16 if tuning == "full" else None
    planned = DecoderMemory(model("meta"), forest, autocast, "flex").recomputing(0)
    forest_model = ForestModel(model("cuda"))
    arithmetic = nullcontext() if autocast is None else torch.autocast("cuda", autocast)
    for _ in range(2):  # the first time compiles, and makes what lasts
        forest_model.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with arithmetic:
            layout = forest_model.layout(forest)
            rows = forest_model.loss_hidden(layout)
        torch.cuda.synchronize()
        kept, forward = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
        rows.backward(torch.ones_like(rows))
        torch.cuda.synchronize()
        del rows, layout
    assert planned.kept + planned.narrowed_backward == pytest.approx(kept, rel=0.08)
    assert planned.forward + planned.narrowed_forward == pytest.approx(forward, rel=0.08)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_loss_curve_is_that_of_the_cpu(tmp_path: Path, tuning: str) -> None:
    config = run_config(tuning, max_steps=20)
    curves = []
    for device in ("cpu", "cuda"):
        records: list[dict[str, float]] = []
        make_training(tmp_path / device, config, tiny_tuned(config).to(device), records=records).fit(StopRequest())
        curves.append(losses(records))
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert len(curves[0]) == 20
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
    plan = json.loads((whole.path / "plan.json").read_bytes())
    assert 0 < torch.cuda.max_memory_allocated() <= plan["peak_bytes"]
    report = json.loads(whole.report_json.read_bytes())
    assert report["tuned"]["validation_loss"] < report["base"]["validation_loss"]
    with pytest.raises(Interrupted):
        start(make_ready(config("parts"), tmp_path), "a test", StopsAfter(5))
    parts = resume(RunFolder.open(tmp_path / "parts"), Silent())
    assert losses(parts.metrics()) == pytest.approx(losses(whole.metrics()), rel=1e-3 if dtype == "float32" else 2e-2)
    assert chat(parts).ask("What is boat 3?").finish in ("stop", "length")
