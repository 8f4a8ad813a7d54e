"""The one training loop, whatever the objective and the tuning.

It reads top-down: next step's examples → forests → forward, backward → finite? → clip → update → metrics →
maybe checkpoint, evaluate, sample → poll for stop. Everything it changes is either in the model, the optimizer, the
random state, the step number or the step's metrics, and a checkpoint holds these five; so a resumed run repeats the
lost steps bit for bit, and an evaluation that was cut short.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from tunewright.config.schema import RunConfig
from tunewright.data.examples import EncodedSet
from tunewright.data.sampler import Sampler
from tunewright.engine.checkpoint import (
    keep_newest,
    load_random_state,
    random_state,
    restore_optimizer,
    restore_random_state,
    save_checkpoint,
)
from tunewright.engine.memory import give_back_free_memory, keep_freed_memory, memory_bytes, peak_memory_bytes
from tunewright.engine.processes import Processes
from tunewright.engine.schedule import learning_rate_factor
from tunewright.engine.signals import StopRequest
from tunewright.engine.tunings import Tuned, trainable, write_weights
from tunewright.errors import Interrupted, RunError
from tunewright.forest.build import Forest, build_forest, group_by_budget, split_over_processes
from tunewright.forest.model import ForestModel
from tunewright.forest.score import score
from tunewright.objectives import OBJECTIVES
from tunewright.runs.checkpoints import Checkpoint, newest_sound
from tunewright.runs.folder import RunFolder

# Steps between two looks at whether the process holds more than was planned: to give memory back costs about a
# second, which the next step waits for its pages.
TRIM_EVERY = 8


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step computed, over all processes. `loss` is the weighted mean nll in nats."""

    loss: float
    grad_norm: float
    samples: int
    tokens: int
    distinct_tokens: int
    supervised_tokens: int


@dataclass(frozen=True, slots=True)
class _Work:
    """The 0-based `step` as this process computes it: counts over all processes, and its own share's forests."""

    step: int
    weight: float
    samples: int
    tokens: int
    supervised_tokens: int
    forests: list[Forest]


@dataclass
class Training:
    """All parts of one training.

    `step` counts finished steps; `seconds` is time spent in them, over resumes. `record` is the line of metrics.jsonl
    for the latest of them (0: the untrained model), `published` whether it stands there.
    """

    config: RunConfig
    run: RunFolder
    model: Tuned
    train: EncodedSet
    validation: EncodedSet
    forest_tokens: int
    planned_bytes: int
    compute_dtype: torch.dtype
    data_fingerprint: str
    processes: Processes
    on_step: Callable[[dict[str, Any]], None]
    on_sample: Callable[[int], None]
    step: int = 0
    seconds: float = 0.0
    record: dict[str, Any] = field(default_factory=lambda: {"step": 0, "epoch": 0.0, "seconds": 0.0})
    published: bool = False
    forest_model: ForestModel = field(init=False)
    sampler: Sampler = field(init=False)
    parameters: list[tuple[str, Tensor]] = field(init=False)
    optimizer: AdamW = field(init=False)
    _upcoming: _Work | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        settings = self.config.train
        self.forest_model = ForestModel(self.model)
        self.sampler = Sampler.over(self.train, settings)
        self.parameters = trainable(self.model)
        self.optimizer = AdamW(
            [parameter for _, parameter in self.parameters],
            lr=self.config.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def fit(self, stop: StopRequest) -> None:
        """Train to the last step. Raises Interrupted after writing a checkpoint, RunError on a non-finite step."""
        keep_freed_memory()
        total = self.sampler.total_steps
        if self.step == 0:
            torch.manual_seed(self.config.train.seed)
        if not self.published:
            self._finish_step(stop)
        while self.step < total:
            began = time.perf_counter()
            before = random_state()
            result = self.compute_gradients(self.step, stop)
            if result is None:
                restore_random_state(before)
                raise self._leave(stop)
            self._require_finite(result)
            rate = self._update()
            self.step += 1
            if self.step % TRIM_EVERY == 0 and memory_bytes() > self.planned_bytes:
                give_back_free_memory()
            self.seconds += time.perf_counter() - began
            self.record, self.published = self._record(result, rate, time.perf_counter() - began), False
            # Before the evaluation, which may take long: a kill in the midst of it costs no step.
            if self.step % self.config.train.save_steps == 0 or self.step == total:
                self.save()
            self._finish_step(stop)
            if self.step < total and self.processes.any(bool(stop)):
                raise self._leave(stop)

    def compute_gradients(self, step: int, stop: StopRequest | None = None) -> StepResult | None:
        """Gradients of the 0-based `step` in every `.grad`, or None when a stop request came in between.

        The loss is Σ weight·nll / Σ weight over the step on all processes, so neither the forests nor the
        processes that compute it change the result.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        work = self._upcoming if self._upcoming is not None and self._upcoming.step == step else self._prepare(step)
        objective = OBJECTIVES[self.config.method.stage]
        # Added up where they are computed: to read one there would wait for it.
        total = torch.zeros((), dtype=torch.float64, device=self.forest_model.device)
        for forest in work.forests:
            # Giving a step up half-way is safe alone; with others it must be agreed on, after the step.
            if stop and self.processes.count == 1:
                return None
            with self._arithmetic():
                loss = objective(self.forest_model, forest)
            (loss / work.weight).backward()
            total += loss.detach()
        # A GPU still computes what it was given; that time makes the next step's forests. They depend on nothing that
        # training changes, so a resumed run makes the same.
        self._upcoming = self._prepare(step + 1) if step + 1 < self.sampler.total_steps else None
        self.processes.sum_gradients(parameter for _, parameter in self.parameters)
        nll, rows = self.processes.sum([total.item(), float(sum(map(len, work.forests)))])
        norm = torch.nn.utils.get_total_norm([p.grad for _, p in self.parameters if p.grad is not None])
        return StepResult(
            loss=nll / work.weight,
            grad_norm=float(norm),
            samples=work.samples,
            tokens=work.tokens,
            distinct_tokens=int(rows),
            supervised_tokens=work.supervised_tokens,
        )

    def _prepare(self, step: int) -> _Work:
        """Read the examples of a step and merge this process's share of them. Draws nothing from the random state."""
        sequences = [self.train[index] for index in self.sampler.step(step)]
        mine = sequences
        if self.processes.count > 1:
            mine = [sequences[i] for i in split_over_processes(sequences, self.processes.count)[self.processes.index]]
        return _Work(
            step=step,
            weight=sum(float(sequence.weights[1:].sum(dtype="float64")) for sequence in sequences),
            samples=len(sequences),
            tokens=sum(len(sequence) for sequence in sequences),
            supervised_tokens=sum(int((sequence.weights[1:] != 0).sum()) for sequence in sequences),
            forests=[build_forest([mine[i] for i in group]) for group in group_by_budget(mine, self.forest_tokens)],
        )

    def let_go(self) -> None:
        """Drop gradients and optimizer when training is done: what follows needs their room."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def save(self) -> None:
        """Write a checkpoint of the finished steps, then drop the oldest beyond `keep_checkpoints`."""
        self.processes.wait()
        random = {name: self.processes.gather(state) for name, state in random_state().items()}
        if self.processes.is_main:
            folder = self.run.checkpoints_path
            save_checkpoint(
                folder,
                self.step,
                lambda path: write_weights(self.model, path),
                self.parameters,
                self.optimizer,
                random,
                {"seconds": self.seconds, "data_fingerprint": self.data_fingerprint, "record": self.record},
            )
            keep_newest(folder, self.config.train.keep_checkpoints)
        self.processes.wait()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint whose weights the model already has."""
        state = checkpoint.state()
        if state["data_fingerprint"] != self.data_fingerprint:
            raise RunError(
                f"the training data of {self.run.path} has changed since {checkpoint.path.name} was written, so the "
                "run can't go on as it began. Put the data back as it was, or start a new run."
            )
        self.step, self.seconds = checkpoint.step, state["seconds"]
        restore_optimizer(checkpoint.path, self.parameters, self.optimizer)
        restore_random_state(load_random_state(checkpoint.path, self.processes.index))
        self.record = state["record"]
        self.published = any(line["step"] == self.step for line in self.run.metrics())
        self.processes.wait()  # until every process has read the lines that are rewritten now
        if self.processes.is_main:
            # An evaluation that was cut short is made again.
            self.run.rewind(self.step if self.published else self.step - 1)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast where float32 weights are trained with bfloat16 arithmetic."""
        weights = self.parameters[0][1].dtype
        if self.config.method.tuning == "full" and self.compute_dtype != weights:
            return torch.autocast(self.forest_model.device.type, dtype=self.compute_dtype)
        return nullcontext()

    def _require_finite(self, result: StepResult) -> None:
        """Refuse to let a NaN or infinity reach the weights; every process sees the same numbers."""
        numbers = torch.tensor([result.loss, result.grad_norm], dtype=torch.float64)
        if torch.isfinite(numbers).all():
            return
        places = sorted({str(self.train.places[index]) for index in self.sampler.step(self.step)})
        raise RunError(
            f"step {self.step + 1}: the loss is {result.loss:g} and the gradient norm {result.grad_norm:g}, so "
            f"training stopped before the update; {self._what_is_safe()}. Lower train.learning_rate, or set "
            f"model.dtype to float32. The step's examples: {', '.join(places[:8])}{' …' if len(places) > 8 else ''}"
        )

    def _what_is_safe(self) -> str:
        sound = newest_sound(self.run.checkpoints_path)
        return f"the newest sound checkpoint is {sound.path}" if sound else "no checkpoint was written yet"

    def _update(self) -> float:
        settings = self.config.train
        factor = learning_rate_factor(self.step, self.sampler.total_steps, settings.warmup, settings.schedule)
        rate = self.config.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self.parameters], settings.max_grad_norm)
        self.optimizer.step()
        return rate

    def _record(self, result: StepResult, rate: float, seconds: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.sampler.epoch_of(self.step),
            "loss": result.loss,
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "samples": result.samples,
            "tokens": result.tokens,
            "distinct_tokens": result.distinct_tokens,
            "supervised_tokens": result.supervised_tokens,
            "step_seconds": seconds,
            "seconds": self.seconds,
            "samples_per_second": result.samples / seconds,
            "tokens_per_second": result.tokens / seconds,
            "memory_bytes": memory_bytes(),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def _finish_step(self, stop: StopRequest) -> None:
        """Evaluate and sample where it is time to, and publish the step's record; of the untrained model, too.

        Raises Interrupted when a stop request comes in between; the record then stays unpublished.
        """
        total = self.sampler.total_steps
        if self.processes.is_main:
            self.run.write_status("running", self.step, total)
        if self.step % self.config.evaluate_steps == 0 or self.step == total:
            self.record |= self._validate(stop)
            self.on_sample(self.step)
            if self.step:
                give_back_free_memory()
        self.published = True
        measured = "loss" in self.record or "validation_loss" in self.record
        if measured and self.processes.is_main:
            self.run.append_metrics(self.record)
            self.on_step(self.record)

    def _validate(self, stop: StopRequest) -> dict[str, float]:
        if not len(self.validation):
            return {}

        def poll() -> None:
            # Every process scores the same forests, so all of them leave at the same one.
            if self.processes.any(bool(stop)):
                raise self._leave(stop)

        sequences = [self.validation[index] for index in range(len(self.validation))]
        with self._arithmetic():
            return {"validation_loss": score(self.model, sequences, self.forest_tokens, poll).mean}

    def _leave(self, stop: StopRequest) -> Interrupted:
        """Make sure that the finished steps are in a checkpoint; what to raise then."""
        sound = newest_sound(self.run.checkpoints_path)
        if sound is None or sound.step != self.step:
            self.save()
        name = stop.signal_name or "another process"
        return Interrupted(
            f"stopped by {name} after step {self.step} of {self.sampler.total_steps}; "
            f"go on with: tunewright resume {self.run.path}"
        )


def fingerprint(sets: Sequence[EncodedSet]) -> str:
    """Hash of everything the loop reads of the data."""
    import hashlib

    return hashlib.sha256("".join(one.digest for one in sets).encode()).hexdigest()
