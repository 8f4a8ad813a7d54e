"""A made-up run: a tiny model with adapters that change it, data of its own, and a few metrics; nothing trained."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.data.encode import Prepared, prepare
from tunewright.models.adapters import add_lora
from tunewright.models.load import eos_ids, load_model, load_tokenizer
from tunewright.runs.folder import RunFolder
from tunewright.runs.provenance import collect

THINGS = ("ships", "fog", "lamp", "雾", "灯塔")


def metric(step: int, loss: float, validation_loss: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl as the loop writes it."""
    record = {
        "step": step,
        "epoch": step / 10,
        "loss": loss,
        "learning_rate": 1e-4,
        "samples": 4,
        "tokens": 100,
        "step_seconds": 0.5,
        "seconds": step * 0.5,
        "peak_memory_bytes": 2**30 + step,
    }
    return record if validation_loss is None else {**record, "validation_loss": validation_loss}


@dataclass
class MadeUp:
    """A run folder with everything in memory that training would have left there."""

    run: RunFolder
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    prepared: Prepared


def make_run(
    root: Path, name: str = "run", metrics: Sequence[dict[str, Any]] = (), **changes: dict[str, Any]
) -> MadeUp:
    """A finished LoRA run `root/name`; `changes` are sections of the config."""
    folder, data = root / "model", root / "data.json"
    if not folder.exists():
        save_tiny(tiny_tokenizer("chatml"), folder)
        rows = [
            {"instruction": f"What of the {thing}, {i}?", "output": f"The {thing} | {i}"}
            for thing in THINGS
            for i in range(8)
        ]
        data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": {"name": str(folder), "dtype": "float32"},
        "data": {"train": str(data), "validation": 0.25, "system": "You keep the light."},
        "evaluate": {"prompts": 5, "max_new_tokens": 12},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = RunConfig.model_validate(settings)
    tokenizer = load_tokenizer(folder)
    prepared = prepare(config, tokenizer, eos_ids(folder, tokenizer), root)
    run = RunFolder.create(
        root / name,
        config,
        "made up",
        template_source=prepared.template.source if prepared.template else "",
        stop_ids=prepared.stop_ids,
        provenance=collect(prepared.loaded.sha256, folder, None),
    )
    model = add_lora(load_model(folder, torch.float32), config.lora, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(str(run.adapter_path), save_embedding_layers=False)
    for record in metrics:
        run.append_metrics(record)
    run.write_status("done", len(metrics), len(metrics))
    return MadeUp(run, model, tokenizer, prepared)
