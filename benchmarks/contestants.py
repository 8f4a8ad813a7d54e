"""The parts of `sft_vs_trainer.py`, each run in a process of its own: `prepare`, the contestants, and `floor`.

They share a work folder: `config.json` (the work as tunewright's config), `rows.npz` (token ids, weights and the order
of rows, from tunewright's own encoding and sampler) and `adapter/` (the first adapter weights, in PEFT's format).
Imports stand inside the parts, so that none starts later or larger for another's libraries.
"""

import json
import platform
import re
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tunewright.config.schema import RunConfig
    from tunewright.data.examples import EncodedSet

MICRO_BATCH = 4  # the tutorials' per_device_train_batch_size; the rest of a step is gradient accumulation
PACKAGES = ("tunewright", "torch", "transformers", "peft", "accelerate")


@dataclass
class Stopwatch:
    """When the first step began and when each ended: seconds since the launch, and CPU seconds of this process."""

    launched: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """Everything is loaded and the first step starts, or a step is done with its update."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.time() - self.launched)
        self.cpu.append(time.process_time())


def run_part(name: str, work: Path, launched: float) -> dict[str, Any]:
    """The JSON that a part answers with. `launched` is the time.time() just before its process was started."""
    watch = Stopwatch(launched)
    if name == "prepare":
        return prepare_work(work)
    if name == "floor":
        return measure_floor(work)
    losses, details = train_tunewright(work, watch) if name == "tunewright" else train_trainer(name, work, watch)
    import torch

    return {
        "losses": losses,
        "step_seconds": np.diff(watch.wall).tolist(),
        "step_cpu_seconds": np.diff(watch.cpu).tolist(),
        "startup_seconds": watch.wall[0],
        "wall_seconds": watch.wall[-1],
        "peak_memory_bytes": _peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        **details,
    }


def prepare_work(work: Path) -> dict[str, Any]:
    """Fill the work folder. Answers with what is worth knowing about data and machine; `steps` has a number per step.

    Raises UsageError for data or a model that tunewright would refuse.
    """
    from tunewright.config.load import load_config
    from tunewright.data.encode import prepare
    from tunewright.data.sampler import Sampler
    from tunewright.engine.tunings import load_for_training, write_weights
    from tunewright.errors import UsageError
    from tunewright.forest.build import build_forest
    from tunewright.models.dtype import choose_dtype
    from tunewright.models.load import eos_ids, load_tokenizer
    from tunewright.models.resolve import resolve_model
    from tunewright.runs.provenance import installed_version

    settings = json.loads((work / "settings.json").read_text("utf-8"))
    config = load_config(None, base=_as_config(settings, work))
    model = resolve_model(config.model, Path.cwd())
    dtype, _ = choose_dtype(config.model.dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    config.model = config.model.model_validate({"name": str(model.path), "source": "local", "dtype": dtype_name})
    tokenizer = load_tokenizer(model.path)
    prepared = prepare(config, tokenizer, eos_ids(model.path, tokenizer), Path.cwd())
    train = prepared.train
    if not np.isin(train.weights, (0, 1)).all():
        raise UsageError("these rows weigh tokens by other numbers than 0 and 1, which the peers' labels cannot say")
    sampler = Sampler(
        len(train), config.train.batch_size, config.train.epochs, config.train.seed, config.train.max_steps
    )
    order = np.array([sampler.step(step) for step in range(sampler.total_steps)])

    (work / "config.json").write_text(config.model_dump_json(), "utf-8")
    np.savez(work / "rows.npz", ids=train.input_ids, weights=train.weights, offsets=train.offsets, order=order)
    write_weights(load_for_training(model.path, config, dtype, None), work)

    steps = [[train[index] for index in indices] for indices in order]
    forests = [build_forest(step) for step in steps]
    return {
        "examples": len(train),
        "left_out": sum(dropped.count for dropped in prepared.dropped),
        "data_sha256": prepared.loaded.sha256,
        "dtype": dtype_name,
        "machine": _machine(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "steps": {
            "tokens": [sum(len(row) for row in step) for step in steps],
            "distinct_tokens": [len(forest) for forest in forests],
            "supervised_tokens": [len(forest.edge_row) for forest in forests],
            "loss_rows": [len(np.unique(forest.edge_row)) for forest in forests],
        },
    }


def train_tunewright(work: Path, watch: Stopwatch) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by what `tunewright train` runs: reading, encoding, plan and proofs are in its start-up."""
    from tunewright.engine.start import make_ready, start
    from tunewright.engine.watch import Silent
    from tunewright.errors import RunError
    from tunewright.runs.folder import RunFolder

    losses: list[float] = []
    computed: list[int] = []

    class Watcher(Silent):
        def begin(self, run: RunFolder, step: int, total_steps: int) -> None:
            watch.mark()

        def step(self, record: dict[str, Any]) -> None:
            watch.mark()
            losses.append(record["loss"])
            computed.append(record["distinct_tokens"])
            print(f"  step {record['step']}: loss {record['loss']:.4f}", file=sys.stderr, flush=True)

    ready = make_ready(_config(work), Path.cwd())
    rows, _ = _rows(work)
    train = ready.prepared.train
    if not (np.array_equal(train.input_ids, rows.input_ids) and np.array_equal(train.weights, rows.weights)):
        raise RunError("tunewright encoded the rows differently than a moment ago; did the data file change?")
    start(ready, "benchmarks/sft_vs_trainer.py", Watcher())
    return losses, {"forest_tokens": ready.plan.forest_tokens, "step_computed_tokens": computed}


def train_trainer(name: str, work: Path, watch: Stopwatch) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by the tutorials' script; `trainer-nockpt` is the same without gradient checkpointing."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

    class Timing(TrainerCallback):
        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            watch.mark()

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            watch.mark()

    config = _config(work)
    rows, order = _rows(work)
    dataset = [_as_features(rows, int(index)) for index in order.ravel()]
    checkpointing = name == "trainer"

    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.__dict__[config.model.dtype])
    if checkpointing:
        model.enable_input_require_grads()
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=config.lora.target,
        inference_mode=False,
        r=config.lora.rank,
        lora_alpha=int(config.lora.alpha),
        lora_dropout=config.lora.dropout,
    )
    tuned = get_peft_model(model, lora)
    first = load_file(work / "adapter" / "adapter_model.safetensors")
    outcome: Any = set_peft_model_state_dict(tuned, first)
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert not outcome.unexpected_keys, outcome.unexpected_keys
    assert len(first) == len(trained), "every trained tensor starts from tunewright's values"
    arguments = TrainingArguments(
        output_dir=str(work / name),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=config.train.batch_size // MICRO_BATCH,
        gradient_checkpointing=checkpointing,
        max_steps=len(order),
        learning_rate=config.learning_rate,
        # What the tutorials leave at its default and the comparison must fix: the rate's course, and the order of rows.
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    collator = DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True)
    trainer = Trainer(model=tuned, args=arguments, train_dataset=dataset, data_collator=collator, callbacks=[Timing()])
    trainer.train()
    lengths = rows.lengths[order].reshape(len(order), -1, MICRO_BATCH)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], {
        "optimizer": str(arguments.optim),
        "step_computed_tokens": (lengths.max(axis=2).sum(axis=1) * MICRO_BATCH).tolist(),
    }


def measure_floor(work: Path) -> dict[str, Any]:
    """Seconds of the matrix products that a step can't do without, and the rate they ran at.

    These are the frozen layers' over the step's distinct tokens and the head's over its loss rows, each forward and
    for the gradient of its input; adapters, attention and everything else count nothing. Every layer has its own
    weight, as in the model, so that weights come from memory and not from a cache. Best of three sweeps.
    """
    import torch
    from torch import Tensor, nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunewright.forest.build import build_forest

    config = _config(work)
    rows, order = _rows(work)
    warmup = json.loads((work / "settings.json").read_text("utf-8"))["warmup"]
    forests = [build_forest([rows[int(index)] for index in step]) for step in order[warmup:]]
    distinct = round(float(np.mean([len(forest) for forest in forests])))
    loss_rows = round(float(np.mean([len(np.unique(forest.edge_row)) for forest in forests])))

    dtype = torch.__dict__[config.model.dtype]
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.name))
    head = shape.get_output_embeddings()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [
        (layer.weight.shape, distinct) for layer in shape.modules() if type(layer) is nn.Linear and layer is not head
    ]
    layers.append((head.weight.shape, loss_rows))
    weights = [(torch.ones(*size, dtype=dtype, device=device), count) for size, count in layers]
    inputs: dict[tuple[int, int], Tensor] = {
        (count, width): torch.ones(count, width, dtype=dtype, device=device) for size, count in layers for width in size
    }

    def sweep() -> float:
        began = time.perf_counter()
        for weight, count in weights:
            nn.functional.linear(inputs[count, weight.shape[1]], weight)
        for weight, count in reversed(weights):
            inputs[count, weight.shape[0]] @ weight
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.inference_mode():
        seconds = min([sweep() for _ in range(4)][1:])
    flops = sum(4 * count * weight.numel() for weight, count in weights)
    return {"seconds": seconds, "flops_per_second": flops / seconds}


def _as_config(settings: dict[str, Any], work: Path) -> dict[str, Any]:
    steps, batch_size = settings["steps"], settings["batch_size"]
    return {
        "model": {"name": settings["model"], "dtype": settings["dtype"]},
        "data": {
            "train": settings["data"],
            "validation": None,
            "system": settings["system"],
            "max_length": settings["max_length"],
            "drop_bad_rows": True,
        },
        "lora": {"rank": 8, "alpha": 32, "dropout": 0.0, "target": "all-linear"},
        "train": {
            "batch_size": batch_size,
            "max_steps": steps,
            "learning_rate": settings["learning_rate"],
            "schedule": "constant",
            "warmup": 0.0,
            "seed": settings["seed"],
            "save_steps": steps,
        },
        "samples": {"prompts": []},
        "evaluate": {"at_end": False},
        "output": str(work / "run"),
    }


def _config(work: Path) -> "RunConfig":
    from tunewright.config.schema import RunConfig

    return RunConfig.model_validate_json((work / "config.json").read_text("utf-8"))


def _rows(work: Path) -> "tuple[EncodedSet, np.ndarray]":
    """The encoded rows, and which of them make each step, int64 [steps, batch]."""
    from tunewright.data.examples import EncodedSet

    with np.load(work / "rows.npz") as arrays:
        return EncodedSet(arrays["ids"], arrays["weights"], arrays["offsets"]), arrays["order"]


def _as_features(rows: "EncodedSet", index: int) -> dict[str, list[int]]:
    row = rows[index]
    return {
        "input_ids": row.input_ids.tolist(),
        "attention_mask": [1] * len(row),
        "labels": np.where(row.weights != 0, row.input_ids, -100).tolist(),
    }


def _peak_memory_bytes() -> int:
    """The most this process has held: of the GPU where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a started process inherits the peak of the one that started it.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.machine()
