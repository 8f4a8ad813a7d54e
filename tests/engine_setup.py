"""A Training on a tiny model and made-up sequences, for tests of the loop."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.tiny import random_sequences, tiny_model
from tunewright.config.schema import RunConfig
from tunewright.data.examples import Encoded, EncodedSet, Place
from tunewright.engine.loop import Training, fingerprint
from tunewright.engine.processes import Processes
from tunewright.engine.tunings import Tuned
from tunewright.forest.attention import FOREST_ATTENTION, register_forest_attention
from tunewright.models.adapters import add_lora
from tunewright.runs.folder import RunFolder


def tiny_set(seed: int = 0, count: int = 40) -> EncodedSet:
    sequences = [s for s in random_sequences(seed, count, alphabet=20) if s.weights[1:].any()]
    return EncodedSet.build(sequences, [Place("made-up.jsonl", line) for line in range(1, len(sequences) + 1)])


def run_config(tuning: str = "lora", dropout: float = 0.0, **train: Any) -> RunConfig:
    settings = {"batch_size": 8, "epochs": 100, "max_steps": 20, "learning_rate": 1e-2, "save_steps": 7, **train}
    return RunConfig.model_validate(
        {
            "model": "tiny",
            "data": "made-up.jsonl",
            "method": {"tuning": tuning},
            "lora": {"rank": 4, "dropout": dropout},
            "train": settings,
        }
    )


def tiny_tuned(config: RunConfig, dtype: torch.dtype = torch.float32) -> Tuned:
    """A tiny model as `load_for_training` gives it."""
    register_forest_attention()
    model = tiny_model("llama", dtype, FOREST_ATTENTION, fused=True)
    if config.method.tuning == "full":
        return model
    tuned = add_lora(model, config.lora, config.train.seed)
    return tuned.to(dtype) if dtype == torch.float64 else tuned


def make_training(
    folder: Path,
    config: RunConfig,
    model: Tuned,
    forest_tokens: int = 10**6,
    train: EncodedSet | None = None,
    records: list[dict[str, Any]] | None = None,
) -> Training:
    train = tiny_set() if train is None else train
    folder.mkdir(parents=True, exist_ok=True)
    sink = [] if records is None else records
    return Training(
        config=config,
        run=RunFolder(folder),
        model=model,
        train=train,
        validation=tiny_set(1, 10),
        forest_tokens=forest_tokens,
        planned_bytes=2**40,
        compute_dtype=next(model.parameters()).dtype,
        data_fingerprint=fingerprint([train]),
        processes=Processes(),
        on_step=sink.append,
        on_sample=lambda step: None,
    )


def losses(records: Sequence[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


def as_list(items: EncodedSet) -> list[Encoded]:
    return [items[index] for index in range(len(items))]


def in_two_processes(program: str, folder: Path, *arguments: str) -> None:
    """Run `program` with `folder` and the arguments as torchrun starts it, in two processes of one thread each."""
    worker = folder.with_name("worker.py")
    worker.write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here / 'src'}", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, str(worker), str(folder), *arguments], check=True, env=environment, timeout=300)
