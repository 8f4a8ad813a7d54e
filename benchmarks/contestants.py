"""The parts of `sft_vs_trainer.py` that are tunewright's, each in a process of its own.

    python benchmarks/contestants.py {prepare,tunewright,tunewright-precomputed,floor} FOLDER TIME

`prepare` fills the work FOLDER for all contestants: `config.json` (the work as tunewright's config), `rows.npz` (token
ids, weights and the order of rows, from tunewright's own encoding and sampler; of pairs the better and the worse answer
in turn) and `adapter/` (the first adapter weights, in PEFT's format). TIME is the time.time() just before the launch.
Imports stand inside the parts, so that none starts later or larger for another's libraries.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pairs import encode_pairs, train_pairs
from stopwatch import Stopwatch
from surroundings import processor, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewright.config.schema import RunConfig
    from tunewright.data.examples import EncodedSet, FlatSet

PACKAGES = ("tunewright", "torch", "transformers", "peft", "accelerate")


def main() -> int:
    from tunewright.errors import TunewrightError

    name, folder, launched = sys.argv[1:]
    work, watch = Path(folder), Stopwatch(float(launched))
    try:
        contestant, *variants = name.split("-")
        if contestant == "tunewright":
            answer = watch.answer(*train_tunewright(work, watch, "precomputed" in variants))
        else:
            answer = {"prepare": prepare_work, "floor": measure_floor}[name](work)
    except TunewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(answer))
    return 0


def prepare_work(work: Path) -> dict[str, Any]:
    """Fill the work folder. Answers with what is worth knowing about data and machine; `steps` has a number per step.

    Raises UsageError for data or a model that tunewright would refuse.
    """
    from tunewright.config.load import load_config
    from tunewright.engine.tunings import load_for_training, write_weights
    from tunewright.forest.build import build_forest
    from tunewright.models.dtype import choose_dtype
    from tunewright.models.load import eos_ids, load_tokenizer
    from tunewright.models.resolve import resolve_model

    settings = _settings(work)
    config = load_config(None, base=_as_config(settings, work))
    model = resolve_model(config.model, Path.cwd())
    dtype, _ = choose_dtype(config.model.dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    config.model = config.model.model_validate({"name": str(model.path), "source": "local", "dtype": dtype_name})
    tokenizer = load_tokenizer(model.path)
    stop_ids = eos_ids(model.path, tokenizer)
    if settings["objective"] == "dpo":
        pairs = encode_pairs(config, tokenizer, stop_ids)
        train, order = pairs.sequences, pairs.order(config)
        facts = {"examples": len(pairs), "left_out": pairs.left_out, "data_sha256": pairs.sha256}
    else:
        train, order, facts = _encode_dialogs(config, tokenizer, stop_ids)

    (work / "config.json").write_text(config.model_dump_json(), "utf-8")
    np.savez(work / "rows.npz", ids=train.input_ids, weights=train.weights, offsets=train.offsets, order=order)
    write_weights(load_for_training(model.path, config, dtype, None), work)

    steps = [[train[index] for index in indices] for indices in order]
    forests = [build_forest(step) for step in steps]
    return {
        **facts,
        "dtype": dtype_name,
        "machine": _machine(),
        "steps": {
            "tokens": [sum(len(row) for row in step) for step in steps],
            "distinct_tokens": [len(forest) for forest in forests],
            "supervised_tokens": [len(forest.edge_row) for forest in forests],
            "loss_rows": [len(np.unique(forest.edge_row)) for forest in forests],
        },
    }


def _encode_dialogs(
    config: "RunConfig", tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int]
) -> "tuple[FlatSet, np.ndarray, dict[str, Any]]":
    """The rows as `tunewright train` takes them, which of them make each step, and what became of the file."""
    from tunewright.data.encode import prepare
    from tunewright.data.sampler import Sampler
    from tunewright.errors import UsageError

    prepared = prepare(config, tokenizer, stop_ids, Path.cwd())
    train = _in_memory(prepared.train)
    if not np.isin(train.weights, (0, 1)).all():
        raise UsageError("these rows weigh tokens by other numbers than 0 and 1, which the peers' labels cannot say")
    sampler = Sampler.over(prepared.train, config.train)
    order = np.array([sampler.step(step) for step in range(sampler.total_steps)])
    left_out = sum(dropped.count for dropped in prepared.dropped)
    return train, order, {"examples": len(train), "left_out": left_out, "data_sha256": prepared.loaded.sha256}


def train_tunewright(work: Path, watch: Stopwatch, precomputed: bool) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, with the versions of what ran; `precomputed` is for pairs."""
    settings = _settings(work)
    if settings["objective"] == "dpo":
        losses, details = train_pairs(_config(work), *_rows(work), settings["forest_tokens"], precomputed, watch)
    else:
        losses, details = _train_dialogs(work, watch)
    return losses, {**details, "versions": versions(PACKAGES)}


def _train_dialogs(work: Path, watch: Stopwatch) -> tuple[list[float], dict[str, Any]]:
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
    train = _in_memory(ready.prepared.train)
    if not (np.array_equal(train.input_ids, rows.input_ids) and np.array_equal(train.weights, rows.weights)):
        raise RunError("tunewright encoded the rows differently than a moment ago; did the data file change?")
    start(ready, "benchmarks/sft_vs_trainer.py", Watcher())
    return losses, {"forest_tokens": ready.plan.forest_tokens, "step_computed_tokens": computed}


def measure_floor(work: Path) -> dict[str, Any]:
    """Seconds of the matrix products that a step can't do without, and the rate they ran at.

    These are the frozen layers' over the step's distinct tokens and the head's over its loss rows, each forward and
    for the gradient of its input; on pairs forward once more for the reference. Adapters, attention and everything else
    count nothing. Every layer has its own weight, as in the model, so that weights come from memory and not from a
    cache. Best of three sweeps.
    """
    import torch
    from torch import Tensor, nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunewright.forest.build import build_forest

    config, settings = _config(work), _settings(work)
    rows, order = _rows(work)
    forwards = 2 if settings["objective"] == "dpo" else 1
    forests = [build_forest([rows[int(index)] for index in step]) for step in order[settings["warmup"] :]]
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
        for weight, count in weights * forwards:
            nn.functional.linear(inputs[count, weight.shape[1]], weight)
        for weight, count in reversed(weights):
            inputs[count, weight.shape[0]] @ weight
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.inference_mode():
        seconds = min([sweep() for _ in range(4)][1:])
    flops = sum((2 * forwards + 2) * count * weight.numel() for weight, count in weights)
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


def _settings(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "settings.json").read_text("utf-8"))
    return found


def _config(work: Path) -> "RunConfig":
    from tunewright.config.schema import RunConfig

    return RunConfig.model_validate_json((work / "config.json").read_text("utf-8"))


def _rows(work: Path) -> "tuple[FlatSet, np.ndarray]":
    """The encoded rows, and which of them make each step, int64 [steps, batch]."""
    from tunewright.data.examples import FlatSet

    with np.load(work / "rows.npz") as arrays:
        return FlatSet(arrays["ids"], arrays["weights"], arrays["offsets"]), arrays["order"]


def _in_memory(stored: "EncodedSet") -> "FlatSet":
    from tunewright.data.examples import EncodedSet

    return EncodedSet.build((stored[index] for index in range(len(stored))), ())


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor()


if __name__ == "__main__":
    sys.exit(main())
