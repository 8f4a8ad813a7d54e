"""From a config to a finished run: what happens before, around and after the loop.

`make_ready` does everything that needs no weights and may refuse the run; `start` and `resume` load the model,
train, and write the report.
"""

import math
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared, prepare
from tunewright.engine.loop import Training, fingerprint
from tunewright.engine.memory import bound_product_caches
from tunewright.engine.plan import Plan, plan_training
from tunewright.engine.processes import Processes
from tunewright.engine.signals import StopRequest, catch_stop_signals
from tunewright.engine.tunings import Tuned, as_base, load_for_training, write_weights
from tunewright.engine.watch import Logged, Watcher
from tunewright.errors import Interrupted, TunewrightError, UsageError
from tunewright.evaluate.answers import ask, fixed_questions
from tunewright.evaluate.plots import plot_run
from tunewright.evaluate.run import evaluate_run
from tunewright.forest.model import plain_model
from tunewright.forest.proof import prove_forest
from tunewright.models.dtype import dtype_of
from tunewright.models.load import eos_ids, load_tokenizer
from tunewright.models.recompute import recompute_layers
from tunewright.models.resolve import ModelFolder, resolve_model
from tunewright.runs.checkpoints import Checkpoint, newest_sound
from tunewright.runs.folder import RunFolder, State
from tunewright.runs.liveness import beating, is_here, stop_it_there
from tunewright.runs.output import check_output, choose_output
from tunewright.runs.provenance import collect


@dataclass(frozen=True, slots=True)
class Ready:
    """A config with everything that is known before its weights are loaded. `config` has every choice made."""

    config: RunConfig
    model: ModelFolder
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared
    plan: Plan


def make_ready(config: RunConfig, base: Path) -> Ready:
    """Resolve, read, prove and plan. Raises UsageError for anything that would stop the run later."""
    bound_product_caches()
    output = choose_output(config)
    check_output(output)
    model = resolve_model(config.model, base)
    tokenizer = load_tokenizer(model.path)
    prepared = prepare(config, tokenizer, eos_ids(model.path, tokenizer), base)
    plan = plan_training(config, model.path, prepared)
    # What was chosen for this machine is written down, so that the run is the same wherever it goes on.
    settled = config.model_copy(deep=True)
    settled.output = str(output)
    settled.model.dtype = "bfloat16" if plan.dtype == "bfloat16" else "float32"
    settled.train.forest_tokens = plan.forest_tokens
    settled.train.recompute = plan.recompute
    return Ready(settled, model, tokenizer, prepared, plan)


def start(ready: Ready, command: str, watcher: Watcher) -> RunFolder:
    """Create the run folder and train. Raises Interrupted, RunError or UsageError; the folder says the same."""
    processes = Processes()
    output = Path(str(ready.config.output))
    processes.wait()  # until every process has seen that the folder is free
    if processes.is_main:
        provenance = collect(ready.prepared.loaded.sha256, ready.model.path, ready.model.revision)
        source = ready.prepared.template.source if ready.prepared.template else None
        stop_ids = ready.prepared.stop_ids
        run = RunFolder.create(
            output, ready.config, command, template_source=source, stop_ids=stop_ids, provenance=provenance
        )
        run.write_plan(ready.plan.to_dict())
    processes.wait()
    run = RunFolder.open(output)
    # Each process probed and planned for itself; what was written down holds for all.
    with _alone(run, processes):
        _train(run, replace(ready, config=run.config), processes, None, watcher)
    return run


def resume(run: RunFolder, watcher: Watcher) -> RunFolder:
    """Go on from the newest checkpoint that verifies. Raises UsageError when there is none or the run is done."""
    bound_product_caches()
    status = run.status()
    if status["state"] == "running":
        if not is_here(status):
            raise UsageError(f"{run.path} {stop_it_there(status)}")
        raise UsageError(f"{run.path} is still running; stop it first with: tunewright stop {run.path}")
    if status["state"] == "done":
        raise UsageError(
            f"{run.path} is done; chat with it (tunewright chat {run.path}), or start a new run with more epochs: "
            f"tunewright train {run.config_path} output=NEW train.epochs=N"
        )
    processes = Processes()
    with _alone(run, processes):
        _resume(run, processes, watcher)
    return run


def _resume(run: RunFolder, processes: Processes, watcher: Watcher) -> None:
    say = watcher.say
    sound = newest_sound(run.checkpoints_path, lambda path, reason: say(f"{path.name} is passed over: {reason}"))
    say(f"going on from {sound.path.name}" if sound else "no checkpoint yet: starting again at step 0")
    config = run.config.model_copy(deep=True)
    if run.template_source is not None:
        config.data.template = str(run.template_path.absolute())
    tokenizer = load_tokenizer(run.model_folder)
    prepared = prepare(config, tokenizer, run.stop_ids, Path.cwd())
    model = ModelFolder(run.model_folder, config.model.name, run.provenance["model"]["revision"])
    ready = Ready(config, model, tokenizer, prepared, plan_training(config, model.path, prepared))
    processes.wait()  # until every process has read the status that training rewrites
    _train(run, ready, processes, sound, watcher)


@contextmanager
def _alone(run: RunFolder, processes: Processes) -> Iterator[None]:
    """Let nobody else train in this folder. The lock is the system's and ends with the process, however it ends."""
    lock = FileLock(run.path / "lock")
    if processes.is_main:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"another process is about to train in {run.path}; watch it with: tunewright show {run.path}"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _train(run: RunFolder, ready: Ready, processes: Processes, checkpoint: Checkpoint | None, watcher: Watcher) -> None:
    log = Logged(watcher, run.log_path) if processes.is_main else None
    watcher = log or watcher
    done = checkpoint.step if checkpoint else 0
    with catch_stop_signals() as stop, _status_kept(run, log), closing(_TensorBoard(run, done)) as board:
        if processes.is_main:
            run.write_status("running", done, ready.plan.steps)
        dtype = dtype_of(ready.config.model.dtype)
        model = load_for_training(ready.model.path, ready.config, dtype, checkpoint.path if checkpoint else None)
        # The run says it, unless it was begun by a version that did not know of it.
        said = ready.config.train.recompute
        recompute_layers(plain_model(model), ready.plan.recompute if said == "auto" else said)
        prove_forest(plain_model(model))
        training = _assemble(run, ready, processes, model, dtype, board, watcher)
        if checkpoint is not None:
            training.restore(checkpoint)
        elif processes.is_main:
            run.rewind(-1)
        if processes.is_main:
            watcher.begin(run, training.step, training.sampler.total_steps)
        training.fit(stop)
        if processes.is_main:
            write_weights(model, run.path)
            training.let_go()
            _report(run, ready, model, training, stop, watcher)


def _assemble(
    run: RunFolder,
    ready: Ready,
    processes: Processes,
    model: Tuned,
    dtype: torch.dtype,
    board: "_TensorBoard",
    watcher: Watcher,
) -> Training:
    config, prepared = ready.config, ready.prepared
    held_out = prepared.validation_examples or prepared.train_examples
    questions = fixed_questions(config.samples.prompts, config.data.system, held_out) if prepared.template else []
    predicted = ready.plan.to_dict()

    def on_sample(step: int) -> None:
        if not processes.is_main or prepared.template is None or not questions:
            return
        # Fresh adapters change nothing, and take as long as all the rest of an answer.
        with nullcontext() if step else as_base(model):
            replies = ask(model, ready.tokenizer, prepared.template, questions, config.samples.max_new_tokens)
        for question, reply in zip(questions, replies, strict=True):
            run.append_sample({"step": step, "question": question.text, "answer": reply.text, "finish": reply.finish})
            watcher.sample(step, question, reply)

    def on_step(record: dict[str, Any]) -> None:
        board.add(record)
        if record["step"] == 1:
            run.write_plan({**predicted, "measured": {k: record[k] for k in ("step_seconds", "peak_memory_bytes")}})
        watcher.step(record)

    return Training(
        config=config,
        run=run,
        model=model,
        train=prepared.train,
        validation=prepared.validation,
        forest_tokens=config.train.forest_tokens or ready.plan.forest_tokens,
        planned_bytes=ready.plan.peak_bytes,
        compute_dtype=dtype,
        data_fingerprint=fingerprint([prepared.train, prepared.validation]),
        processes=processes,
        on_step=on_step,
        on_sample=on_sample,
    )


def _report(
    run: RunFolder, ready: Ready, model: Tuned, training: Training, stop: StopRequest, watcher: Watcher
) -> None:
    """The report at the end; a stop request leaves it out, and the trained weights are already safe."""

    def poll() -> None:
        if stop:
            raise Interrupted(
                f"training is done and saved; the report was left out. Make it with: tunewright eval {run.path}"
            )

    if ready.config.evaluate.at_end:
        evaluate_run(
            run,
            model,
            ready.tokenizer,
            ready.prepared,
            forest_tokens=training.forest_tokens,
            poll=poll,
            say=watcher.say,
        )
    elif metrics := run.metrics():
        plot_run(metrics, run.loss_png)


@contextmanager
def _status_kept(run: RunFolder, log: Logged | None) -> Iterator[None]:
    """Whatever ends the block, status.json and log.txt say so in words; where there is a log, in the main process."""

    def write(state: State, reason: str | None = None) -> None:
        if log is not None:
            before = run.status()
            run.write_status(state, before["step"], before["total_steps"], reason)
            log.write(state if reason is None else f"{state}: {reason}")

    try:
        with beating(run.beat) if log is not None else nullcontext():
            yield
    except Interrupted as error:
        write("interrupted", str(error))
        raise
    except KeyboardInterrupt:
        write("interrupted", "stopped at once by Ctrl-C")
        raise
    except TunewrightError as error:
        write("failed", str(error))
        raise
    except BaseException as error:
        if log is not None:
            log.write(traceback.format_exc())
        write("failed", f"{type(error).__name__}: {error}")
        raise
    write("done")


class _TensorBoard:
    """TensorBoard event files, opened at the first record; what an earlier process wrote after `step` is hidden."""

    def __init__(self, run: RunFolder, step: int) -> None:
        self._folder = run.tensorboard_path
        self._purge = step + 1 if step else 0  # before the first step there is a record, too
        self._writer: Any = None

    def add(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge)
        for key in ("loss", "validation_loss", "learning_rate", "grad_norm", "samples_per_second", "memory_bytes"):
            if key in record and math.isfinite(record[key]):
                name = f"train/{key}" if key != "validation_loss" else "validation/loss"
                self._writer.add_scalar(name, record[key], record["step"])
        # Else it keeps events for two minutes, which a kill would lose for good.
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
