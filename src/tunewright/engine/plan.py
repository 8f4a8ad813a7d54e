"""The plan: predicted memory and time of a run, made from config and data before any weight is loaded.

Weights, adapters and optimizer states are counted on a model without memory (torch's meta device), and so is what the
largest step holds on its way forward and back (`activations.py`). Time is
the matrix products' floor at a rate probed on this machine, times what a step was seen to cost beyond it.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared
from tunewright.data.examples import Encoded, EncodedSet
from tunewright.data.sampler import Sampler
from tunewright.engine.activations import StepMemory, step_memory
from tunewright.engine.memory import available_memory
from tunewright.engine.remembered import remembered
from tunewright.engine.tunings import Tuned, require_forest, trainable, weights_dtype
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest, distinct_tokens
from tunewright.forest.head import CHUNK_BYTES
from tunewright.forest.model import plain_model
from tunewright.models.adapters import add_lora
from tunewright.models.dtype import choose_dtype
from tunewright.models.fused import Fused, fuse_blocks
from tunewright.units import duration, gib

# Resident bytes seen on Linux beside all that is counted: Python, torch, transformers and their threads take 0.7 GiB,
# compiled kernels and the gaps that the allocator keeps between steps of different sizes about as much again.
PROCESS_BYTES = 1300 * 2**20
# Share of the free memory that a run may plan to use.
USABLE = 0.85
# A step costs this many times its matrix products' floor (benchmarks/results has the measurement).
STEP_OVER_FLOOR = 2.0
# Steps looked at for the number of distinct tokens: so many of the largest, and so many over the whole run.
LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes and seconds are predictions; `forest_tokens` is how many distinct tokens are computed at once."""

    device: str
    dtype: str
    dtype_reason: str
    parameters: int
    trainable_parameters: int
    steps: int
    tokens_per_step: float
    distinct_tokens_per_step: float
    forest_tokens: int
    forests_per_step: float
    weights_bytes: int
    training_state_bytes: int
    activation_bytes: int
    temporary_bytes: int
    process_bytes: int
    available_bytes: int
    step_flops: float
    flops_per_second: float
    step_seconds: float
    total_seconds: float
    plain_parts: list[str]

    @property
    def peak_bytes(self) -> int:
        """The most memory that the run is expected to hold."""
        return (
            self.process_bytes
            + self.weights_bytes
            + self.training_state_bytes
            + self.activation_bytes
            + self.temporary_bytes
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peak_bytes": self.peak_bytes}

    def lines(self) -> list[str]:
        """The plan in words."""
        shared = self.tokens_per_step / self.distinct_tokens_per_step
        plain = f"{' and '.join(self.plain_parts)} have no faster form in this architecture and run as they are"
        return [
            f"{_count(self.parameters)} parameters, {_count(self.trainable_parameters)} trained, "
            f"on {self.device} in {self.dtype} ({self.dtype_reason})",
            f"{self.steps} steps; a step has {self.tokens_per_step:,.0f} tokens, {self.distinct_tokens_per_step:,.0f} "
            f"of them distinct (each is computed once: {shared:.1f}× less work), "
            f"in {_forests(self.forests_per_step, self.forest_tokens)}",
            f"memory about {gib(self.peak_bytes)} of {gib(self.available_bytes)} free: weights "
            f"{gib(self.weights_bytes)}, adapters and optimizer {gib(self.training_state_bytes)}, activations "
            f"{gib(self.activation_bytes)}, the rest {gib(self.temporary_bytes + self.process_bytes)}",
            f"time about {duration(self.total_seconds)} ({self.step_seconds:.1f} s a step; the matrix products alone "
            f"{self.step_flops / self.flops_per_second:.1f} s at {self.flops_per_second / 1e9:,.0f} GFLOP/s), plus "
            "validation, samples and the report",
            *([plain] if self.plain_parts else []),
        ]


@dataclass(frozen=True, slots=True)
class _Need:
    """Bytes that a run takes, by the number of distinct tokens computed at once.

    `fixed` are process, weights, gradients and optimizer, `head` the output head's, `step` those of `tokens` tokens.
    """

    fixed: int
    head: int
    step: StepMemory
    tokens: int

    def activations(self, tokens: int) -> int:
        return self.step.kept * tokens // self.tokens

    def peak(self, tokens: int) -> int:
        forward, backward = (count * tokens // self.tokens for count in (self.step.forward, self.step.backward))
        return self.fixed + max(self.head + forward, backward)

    def fitting(self, available: float) -> int:
        """The most tokens whose peak is within `available`; less than one where nothing fits."""
        left = available - self.fixed
        return int(self.tokens * min((left - self.head) / self.step.forward, left / self.step.backward))


def plan_training(config: RunConfig, folder: Path, prepared: Prepared) -> Plan:
    """Predict memory and time of training `prepared` on the model in `folder`.

    Raises UsageError when it does not fit, naming what would, and for examples longer than the model's context.
    """
    register_forest_attention()
    dtype, reason = choose_dtype(config.model.dtype)
    model, fused = _without_memory(config, folder, dtype)
    settings = config.train
    sampler = Sampler.over(prepared.train, settings)
    lengths = prepared.train.lengths
    totals = sampler.step_totals(lengths)
    spread = np.unique(np.linspace(0, sampler.total_steps - 1, LOOKED_AT).astype(int))
    steps = [[prepared.train[index] for index in sampler.step(int(step))] for step in spread]
    distinct = [distinct_tokens(step) for step in steps]
    largest = _largest_step(prepared.train, sampler, totals)
    most = distinct_tokens(largest)

    parameters, trained = _sizes(model)
    weights = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    # Trained weights come with a gradient and AdamW's two moments, all of their own type.
    state = sum(4 * parameter.nbytes for _, parameter in trainable(model))
    autocast = dtype if dtype != weights_dtype(config.method.tuning, dtype) else None
    head = _head_bytes(model, autocast)
    flops = _step_flops(model, float(np.mean(distinct)), float(np.mean([_loss_rows(step) for step in steps])))
    context: int = plain_model(model).config.get_text_config().max_position_embeddings
    forest = build_forest(largest)
    facts = [(folder / "config.json").read_text(), config.method.tuning, config.lora.model_dump(), str(dtype)]
    memory = remembered(facts, forest, lambda: step_memory(model, forest, autocast))  # the last use of `model`
    need = _Need(PROCESS_BYTES + weights + state, head, memory, most)
    available = available_bytes()
    longest = int(lengths.max())
    _require_context(longest, context)
    fitting = need.fitting(USABLE * available)
    forest_tokens = max(longest, settings.forest_tokens or min(fitting, int(most * 1.25) + longest))
    at_once = min(forest_tokens, max(most, longest))
    if at_once > fitting:
        _refuse(config, need.peak(at_once), at_once, longest, fitting, available)

    rate = probe_rate(dtype)
    step_seconds = STEP_OVER_FLOOR * flops / rate
    return Plan(
        device=_device_name(),
        dtype=str(dtype).removeprefix("torch."),
        dtype_reason=reason,
        parameters=parameters,
        trainable_parameters=trained,
        steps=sampler.total_steps,
        tokens_per_step=float(totals.mean()),
        distinct_tokens_per_step=float(np.mean(distinct)),
        forest_tokens=forest_tokens,
        forests_per_step=max(1.0, float(np.mean(distinct)) / forest_tokens),
        weights_bytes=weights,
        training_state_bytes=state,
        activation_bytes=need.activations(at_once),
        temporary_bytes=need.peak(at_once) - need.fixed - need.activations(at_once),
        process_bytes=PROCESS_BYTES,
        available_bytes=available,
        step_flops=flops,
        flops_per_second=rate,
        step_seconds=step_seconds,
        total_seconds=step_seconds * sampler.total_steps,
        plain_parts=fused.missing,
    )


def available_bytes() -> int:
    """Memory free for this process: of the GPU if there is one, else its share of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    # What torchrun and accelerate launch call the number of processes on this machine.
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return available_memory() // sharing


def probe_rate(dtype: torch.dtype) -> float:
    """FLOP/s of matrix products shaped like a small model's, in `dtype`; the best of a few tries."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, inner, outer = (8192, 4096, 4096) if device == "cuda" else (2048, 768, 2048)
    a, b = torch.ones(rows, inner, dtype=dtype, device=device), torch.ones(inner, outer, dtype=dtype, device=device)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        float((a @ b)[0, 0])
        seconds.append(time.perf_counter() - began)
    return 2 * rows * inner * outer / min(seconds)


def _without_memory(config: RunConfig, folder: Path, dtype: torch.dtype) -> tuple[Tuned, Fused]:
    """The model to be trained, with shapes and types but no storage, and what of it got a faster form."""
    settings = require_forest(folder)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            settings, dtype=weights_dtype(config.method.tuning, dtype), attn_implementation=FOREST_ATTENTION
        )
    model.tie_weights()
    fused = fuse_blocks(model)
    return (model if config.method.tuning == "full" else add_lora(model, config.lora, config.train.seed)), fused


def _sizes(model: Tuned) -> tuple[int, int]:
    """Number of the base model's parameters, and of the trained ones."""
    trained = sum(parameter.numel() for _, parameter in trainable(model))
    everything = sum(parameter.numel() for parameter in model.parameters())
    return (everything if model is plain_model(model) else everything - trained), trained


def _largest_step(train: EncodedSet, sampler: Sampler, totals: np.ndarray) -> list[Encoded]:
    """The step with the most distinct tokens among those with the most tokens."""
    longest = np.argsort(totals, kind="stable")[-LOOKED_AT:]
    steps = [[train[index] for index in sampler.step(int(step))] for step in longest]
    return max(steps, key=distinct_tokens)


def _head_bytes(model: Tuned, autocast: torch.dtype | None) -> int:
    """Logits of a chunk twice and their narrow form, the head's gradient where it is trained, and narrowed weights."""
    head = plain_model(model).get_output_embeddings().weight
    gradient = head.numel() * 4 if head.requires_grad else 0  # made in the forward
    linears = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return 3 * CHUNK_BYTES + gradient + (0 if autocast is None else autocast.itemsize * linears)


def _step_flops(model: Tuned, tokens: float, loss_rows: float) -> float:
    """FLOPs of a step's matrix products: forward and input gradients, and weight gradients where weights train."""
    plain = plain_model(model)
    head = plain.get_output_embeddings().weight.numel()
    body = sum(layer.weight.numel() for layer in plain.modules() if isinstance(layer, nn.Linear)) - head
    factor = 6 if plain is model else 4
    return float(factor * (body * tokens + head * loss_rows))


def _loss_rows(step: list[Encoded]) -> int:
    return len(np.unique(build_forest(step).edge_row))


def _require_context(longest: int, context: int) -> None:
    if longest > context:
        raise UsageError(
            f"the longest example has {longest} tokens, and this model was made for at most {context}; set "
            f"data.max_length to {context} or less"
        )


def _refuse(config: RunConfig, need: int, tokens: int, longest: int, fitting: int, available: int) -> NoReturn:
    if fitting >= longest:
        fix = f"set train.forest_tokens to {fitting} or less"
    elif fitting >= 64:
        fix = f"set data.max_length to {fitting // 64 * 64} or less"
    elif config.method.tuning == "full":
        fix = "set method.tuning to lora"
    else:
        fix = "choose a smaller model, or a machine with more memory"
    what = "one example of" if tokens == longest else "a forest of"
    raise UsageError(
        f"this run does not fit: {what} {tokens} tokens needs about {gib(need)}, and "
        f"{gib(USABLE * available)} may be used of the {gib(available)} that are free. The cheapest way out: {fix}."
    )


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"


def _forests(count: float, tokens: int) -> str:
    return "one forest" if count <= 1 else f"forests of up to {tokens:,} tokens"


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
