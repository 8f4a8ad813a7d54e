"""The plan: predicted memory and time of a run, made from config and data before any weight is loaded.

Weights, adapters and optimizer states are counted on a model without memory (torch's meta device), and so is what the
largest step holds on its way forward and back (`activations.py`); `fit.py` then chooses what is computed at once, and
what is computed again. Time is the matrix products' floor at a rate probed on this machine, times what a step was seen
to cost beyond it.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared
from tunewright.data.examples import Encoded, EncodedSet
from tunewright.data.sampler import Sampler
from tunewright.engine.activations import DecoderMemory
from tunewright.engine.fit import Choice, Fit, Flops
from tunewright.engine.memory import available_memory
from tunewright.engine.tunings import (
    Tuned,
    require_forest,
    train_language_model,
    trainable,
    training_device,
    weights_dtype,
)
from tunewright.errors import UsageError
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.forest.build import build_forest, distinct_tokens
from tunewright.forest.head import usual_chunk_bytes
from tunewright.forest.layout import best_backend
from tunewright.forest.model import ForestModel, plain_model
from tunewright.models.adapters import add_lora
from tunewright.models.dtype import choose_dtype
from tunewright.models.fused import Fused, fuse_blocks
from tunewright.units import duration, gib

# Resident bytes seen on Linux beside all that is counted: Python, torch, transformers and their threads take 0.7 GiB,
# compiled kernels and the gaps that the allocator keeps between steps of different sizes about as much again.
PROCESS_BYTES = 1300 * 2**20
# Of a GPU's memory: the context is there before one asks what is free, but kernels are loaded when first used, and the
# products have a workspace. Nothing of it is in what torch says it allocated.
CUDA_BYTES = 512 * 2**20
# Share of the free memory that a run may plan to use.
USABLE = 0.85
# A step costs this many times its matrix products' floor (benchmarks/results has the measurement).
STEP_OVER_FLOOR = 2.0
# To cut or drop this share of the examples is less than to train in another way.
FEW_CUT = 0.01
# Steps looked at for the number of distinct tokens: so many of the largest, and so many over the whole run.
LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes and seconds are predictions; `forest_tokens` is how many distinct tokens are computed at once.

    `recomputed_layers` of the decoder's `layers` are computed again in the backward, which takes `recompute_seconds` of
    the `step_seconds`.
    """

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
    layers: int
    recomputed_layers: int
    recompute_reason: str
    recompute_seconds: float
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

    @property
    def recompute(self) -> Literal["off", "full"] | int:
        """`train.recompute` as it was chosen."""
        if self.recomputed_layers in (0, self.layers):
            return "full" if self.recomputed_layers else "off"
        return self.recomputed_layers

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "peak_bytes": self.peak_bytes}

    def lines(self) -> list[str]:
        """The plan in words."""
        shared = self.tokens_per_step / self.distinct_tokens_per_step
        plain = f"no faster form in this architecture, run as they are: {', '.join(self.plain_parts)}"
        return [
            f"{_count(self.parameters)} parameters, {_count(self.trainable_parameters)} trained, "
            f"on {self.device} in {self.dtype} ({self.dtype_reason})",
            f"{self.steps} steps; a step has {self.tokens_per_step:,.0f} tokens, {self.distinct_tokens_per_step:,.0f} "
            f"of them distinct (each is computed once: {shared:.1f}× less work), "
            f"in {_forests(self.forests_per_step, self.forest_tokens)}",
            f"memory about {gib(self.peak_bytes)} of {gib(self.available_bytes)} free: weights "
            f"{gib(self.weights_bytes)}, adapters and optimizer {gib(self.training_state_bytes)}, activations "
            f"{gib(self.activation_bytes)}, the rest {gib(self.temporary_bytes + self.process_bytes)}",
            self._recompute_line(),
            f"time about {duration(self.total_seconds)} ({self.step_seconds:.1f} s a step; the matrix products alone "
            f"{self.step_flops / self.flops_per_second:.1f} s at {self.flops_per_second / 1e9:,.0f} GFLOP/s), plus "
            "validation, samples and the report",
            *([plain] if self.plain_parts else []),
        ]

    def _recompute_line(self) -> str:
        if not self.recomputed_layers:
            return f"no layer is computed again in the backward: {self.recompute_reason}"
        return (
            f"{self.recomputed_layers} of {self.layers} layers are computed again in the backward, "
            f"{self.recompute_seconds:.1f} s a step: {self.recompute_reason}"
        )


@dataclass(frozen=True, slots=True)
class _Counted:
    """A run's sizes before anything is chosen: numbers of parameters, bytes, and what fits."""

    parameters: int
    trained: int
    weights_bytes: int
    state_bytes: int
    process_bytes: int
    missing: list[str]
    fit: Fit


def plan_training(config: RunConfig, folder: Path, prepared: Prepared) -> Plan:
    """Predict memory and time of training `prepared` on the model in `folder`.

    Raises UsageError when it does not fit, naming what would, and for examples longer than the model's context.
    """
    register_forest_attention()
    dtype, reason = choose_dtype(config.model.dtype)
    settings = config.train
    available = available_bytes()
    counted = _count_bytes(config, folder, dtype, prepared, USABLE * available)
    fit = counted.fit
    _require_layers(settings.recompute, fit.memory.layers)
    choice = fit.quickest(settings.recompute, settings.forest_tokens)
    if choice is None:
        raise _does_not_fit(config, folder, dtype, prepared, fit, available)

    sampler = Sampler.over(prepared.train, settings)
    at_once = fit.at_once(choice.tokens)
    peak, kept = fit.peak(at_once, choice.recomputed), fit.activations(at_once, choice.recomputed)
    rate = probe_rate(dtype)
    step_seconds = STEP_OVER_FLOOR * choice.flops / rate
    return Plan(
        device=_device_name(),
        dtype=str(dtype).removeprefix("torch."),
        dtype_reason=reason,
        parameters=counted.parameters,
        trainable_parameters=counted.trained,
        steps=sampler.total_steps,
        tokens_per_step=float(sampler.step_totals(prepared.train.lengths).mean()),
        distinct_tokens_per_step=choice.rows,
        forest_tokens=choice.tokens,
        forests_per_step=choice.forests,
        layers=fit.memory.layers,
        recomputed_layers=choice.recomputed,
        recompute_reason=_why(config, fit, choice),
        recompute_seconds=STEP_OVER_FLOOR * choice.again_flops / rate,
        weights_bytes=counted.weights_bytes,
        training_state_bytes=counted.state_bytes,
        activation_bytes=kept,
        temporary_bytes=peak - fit.fixed - kept,
        process_bytes=counted.process_bytes,
        available_bytes=available,
        step_flops=choice.flops,
        flops_per_second=rate,
        step_seconds=step_seconds,
        total_seconds=step_seconds * sampler.total_steps,
        plain_parts=counted.missing,
    )


def _count_bytes(config: RunConfig, folder: Path, dtype: torch.dtype, prepared: Prepared, budget: float) -> _Counted:
    model, fused = _without_memory(config, folder, dtype)
    sampler = Sampler.over(prepared.train, config.train)
    lengths = prepared.train.lengths
    longest = int(lengths.max())
    _require_context(longest, plain_model(model).config.get_text_config().max_position_embeddings)
    spread = np.unique(np.linspace(0, sampler.total_steps - 1, LOOKED_AT).astype(int))
    steps = [[prepared.train[index] for index in sampler.step(int(step))] for step in spread]
    largest = _largest_step(prepared.train, sampler, sampler.step_totals(lengths))

    parameters, trained = _sizes(model)
    weights = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    # Trained weights come with a gradient and AdamW's two moments, all of their own type.
    state = sum(4 * parameter.nbytes for _, parameter in trainable(model))
    autocast = dtype if dtype != weights_dtype(config.method.tuning, dtype) else None
    device = training_device()
    process = CUDA_BYTES if device.type == "cuda" else PROCESS_BYTES
    facts = [(folder / "config.json").read_text(), config.method.tuning, config.lora.model_dump(), str(dtype)]
    # The last use of `model`.
    memory = DecoderMemory(model, build_forest(largest), autocast, best_backend(device), facts)
    fit = Fit(
        fixed=process + weights + state,
        head=_head_bytes(model, autocast),
        flops=_flops(model, float(np.mean([_loss_rows(step) for step in steps]))),
        memory=memory,
        most=distinct_tokens(largest),
        longest=longest,
        budget=budget,
        steps=steps,
    )
    return _Counted(parameters, trained, weights, state, process, fused.missing, fit)


def _why(config: RunConfig, fit: Fit, choice: Choice) -> str:
    """Why so many layers are computed again, in words."""
    settings = config.train
    if settings.recompute != "auto":
        return f"train.recompute is {settings.recompute}"
    if not choice.recomputed:
        fits = "all that they keep fits" if choice.tokens >= fit.most else "smaller forests cost less"
        return fits if fit.memory.layers else "this architecture has no such layers"
    without = fit.choice(0, settings.forest_tokens)
    if fit.at_once(without.tokens) > without.fitting:
        return f"without, not even {fit.at_once(without.tokens):,} tokens at once would fit"
    more = without.cost / choice.cost - 1
    return f"without, only {without.tokens:,} tokens at once would fit, and a step take {more:.0%} longer"


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
    if config.method.tuning == "lora":
        return add_lora(model, config.lora, config.train.seed), fused
    train_language_model(model)
    return model, fused


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
    """Logits of a chunk, their narrow form and what a softcap needs, the head's weight narrowed by autocast, and where
    it is trained its gradient, made in the forward, and what a chunk adds to that."""
    head = ForestModel(model).head
    compute = head.weight.dtype if autocast is None else autocast
    narrowed = 0 if autocast is None else autocast.itemsize
    gradient = 4 + compute.itemsize if head.weight.requires_grad else 0
    chunks = 2 if head.softcap is None else 3
    return chunks * usual_chunk_bytes(len(head.weight)) + (narrowed + gradient) * head.weight.numel()


def _flops(model: Tuned, loss_rows: float) -> Flops:
    plain = plain_model(model)
    head = plain.get_output_embeddings().weight.numel()
    body = sum(layer.weight.numel() for layer in plain.get_decoder().modules() if isinstance(layer, nn.Linear))
    return Flops(6 if plain is model else 4, body, head, loss_rows)


def _loss_rows(step: list[Encoded]) -> int:
    return len(np.unique(build_forest(step).edge_row))


def _require_context(longest: int, context: int) -> None:
    if longest > context:
        raise UsageError(
            f"the longest example has {longest} tokens, and this model was made for at most {context}; set "
            f"data.max_length to {context} or less"
        )


def _require_layers(recompute: str | int, layers: int) -> None:
    if recompute not in ("auto", "off") and not layers:
        raise UsageError(
            f"train.recompute is {recompute}, and this architecture's layers cannot be computed again in the backward; "
            "set it to auto or off"
        )
    if isinstance(recompute, int) and recompute > layers:
        raise UsageError(f"train.recompute is {recompute}, and this model has {layers} layers; set it to full")


def _does_not_fit(
    config: RunConfig, folder: Path, dtype: torch.dtype, prepared: Prepared, fit: Fit, available: int
) -> UsageError:
    settings = config.train
    asked = fit.choice(
        fit.memory.layers if settings.recompute == "auto" else fit.count(settings.recompute), settings.forest_tokens
    )
    tokens = fit.at_once(asked.tokens)
    what = "one example of" if tokens == fit.longest else "a forest of"
    fix = _slower(config, fit) or _smaller(config, folder, dtype, prepared, fit)
    return UsageError(
        f"this run does not fit: {what} {tokens} tokens needs about {gib(fit.peak(tokens, asked.recomputed))}, and "
        f"{gib(USABLE * available)} may be used of the {gib(available)} that are free. The cheapest way out: {fix}."
    )


def _slower(config: RunConfig, fit: Fit) -> str | None:
    """The quickest way out that leaves the result as it is."""
    settings = config.train
    forests = fit.quickest(settings.recompute, None)
    ways = [
        (forests, f"set train.forest_tokens to {forests.fitting if forests else 0} or less"),
        (fit.quickest("auto", settings.forest_tokens), "set train.recompute to auto"),
    ]
    found = [(choice.cost, words) for choice, words in ways if choice is not None]
    if found:
        return min(found)[1]
    both = fit.quickest("auto", None)
    return f"set train.recompute to auto and train.forest_tokens to {both.fitting} or less" if both else None


def _smaller(config: RunConfig, folder: Path, dtype: torch.dtype, prepared: Prepared, fit: Fit) -> str:
    """The way out that changes least of what is learnt, where no setting of the plan's own helps."""
    most = max(fit.fitting(count) for count in range(fit.memory.layers + 1)) // 64 * 64
    longer = int((prepared.train.lengths > most).sum())
    shorten = (
        f"set data.max_length to {most} or less, which is less than {longer:,} of {len(prepared.train):,} examples have"
    )
    too = "" if config.train.recompute == "auto" else ", and train.recompute to auto"
    if most >= 64 and longer <= FEW_CUT * len(prepared.train):
        return shorten + too
    if config.method.tuning == "full":
        lora = config.model_copy(deep=True)
        lora.method.tuning = "lora"
        if _count_bytes(lora, folder, dtype, prepared, fit.budget).fit.quickest("auto", None):
            return f"set method.tuning to lora{too}"
    return shorten + too if most >= 64 else "choose a smaller model, or a machine with more memory"


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"


def _forests(count: float, tokens: int) -> str:
    return "one forest" if count <= 1 else f"forests of up to {tokens:,} tokens"


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
