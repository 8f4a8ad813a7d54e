"""The peers of `sft_vs_trainer.py`, each training the same rows in a process of its own.

    python benchmarks/peers.py NAME FOLDER TIME

NAME is trainer (the tutorials' script: transformers Trainer and PEFT), trl or llamafactory; with `-nockpt` behind it
the same without gradient checkpointing, which all three have on as they come. On pairs `-precomputed` has the
reference model's log-probabilities computed before the first step instead of in each. FOLDER is the work that
`contestants.py` prepared, TIME the time.time() just before the launch. This file knows nothing of tunewright, so it
runs in an environment that has only the peer (`environments.py`).
"""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stopwatch import Stopwatch
from surroundings import versions

if TYPE_CHECKING:
    from transformers import TrainerCallback

BETA = 0.1  # of DPO, for all; TRL's and LLaMA-Factory's own default
MICRO_BATCH = 4  # the tutorials' per_device_train_batch_size; the rest of a step is gradient accumulation
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "llamafactory")
Features = dict[str, list[int]]


def main() -> int:
    name, folder, launched = sys.argv[1:]
    peer, *variants = name.split("-")
    work, watch = Path(folder), Stopwatch(float(launched))
    losses, details = PEERS[_objective(work)][peer](work, watch, variants)
    print(json.dumps(watch.answer(losses, {**details, "versions": versions(PACKAGES)})))
    return 0


def train_trainer(work: Path, watch: Stopwatch, variants: list[str]) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by the tutorials' script."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    config, rows = _config(work), _rows(work)
    tokenizer = AutoTokenizer.from_pretrained(config["model"]["name"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.__dict__[config["model"]["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(config["model"]["name"], dtype=dtype)
    checkpointing = "nockpt" not in variants
    if checkpointing:
        model.enable_input_require_grads()
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, inference_mode=False, **_lora(config))
    tuned = get_peft_model(model, lora)
    _load_first_adapter(tuned, work)
    # The rest is what the tutorials leave at its default, but for the course of the rate and the order of rows.
    arguments = TrainingArguments(**_arguments(config, work), gradient_checkpointing=checkpointing)
    trainer = Trainer(
        model=tuned,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
        callbacks=[_timing(watch)],
    )
    trainer.train()
    return _losses(trainer), _padded(rows, config, multiple=1) | {"optimizer": str(arguments.optim)}


def train_trl(work: Path, watch: Stopwatch, variants: list[str]) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by TRL's SFTTrainer as it comes: head over trained tokens only, in chunks."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config, rows = _config(work), _rows(work)
    masked = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}
        for row in rows
    ]
    arguments = SFTConfig(**_trl_arguments(config, work, variants), completion_only_loss=True)
    data = Dataset.from_list(masked)
    trainer = SFTTrainer(args=arguments, train_dataset=data, **_trl_parts(config, watch))
    return _run_trl(trainer, work, rows, config)


def _run_trl(
    trainer: Any, work: Path, rows: list[Features], config: dict[str, Any]
) -> tuple[list[float], dict[str, Any]]:
    _load_first_adapter(trainer.model, work)
    trainer.train()
    return _losses(trainer), _padded(rows, config, multiple=1) | {"optimizer": str(trainer.args.optim)}


def train_trl_pairs(work: Path, watch: Stopwatch, variants: list[str]) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by TRL's DPOTrainer as it comes: the reference is the model with its adapter off."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset  # unlike SFTTrainer it would look for text

    config, rows = _config(work), _rows(work)
    pairs = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        prompt = chosen["labels"].count(-100)
        ids = {"prompt_ids": chosen["input_ids"][:prompt], "chosen_ids": chosen["input_ids"][prompt:]}
        pairs.append({**ids, "rejected_ids": rejected["input_ids"][prompt:]})
    arguments = DPOConfig(
        **_trl_arguments(config, work, variants), beta=BETA, precompute_ref_log_probs="precomputed" in variants
    )
    data = Dataset.from_list(pairs)
    trainer = Tokenised(args=arguments, train_dataset=data, **_trl_parts(config, watch))
    return _run_trl(trainer, work, rows, config)


def train_llamafactory(work: Path, watch: Stopwatch, variants: list[str]) -> tuple[list[float], dict[str, Any]]:
    """Loss of each step, by `llamafactory-cli train`'s own entry, from rows it finds tokenised."""
    return _run_llamafactory(work, watch, variants, "sft", _rows(work))


def train_llamafactory_pairs(work: Path, watch: Stopwatch, variants: list[str]) -> tuple[list[float], dict[str, Any]]:
    """The same by its stage dpo: sigmoid loss, the reference is the model with its adapter off."""
    media = {"images": None, "videos": None, "audios": None}  # it looks for them in each pair
    rows = _rows(work)
    pairs = [
        {f"{side}_{key}": ids for side, row in (("chosen", better), ("rejected", worse)) for key, ids in row.items()}
        for better, worse in zip(rows[::2], rows[1::2], strict=True)
    ]
    return _run_llamafactory(work, watch, variants, "dpo", [{**pair, **media} for pair in pairs], pref_beta=BETA)


def _run_llamafactory(
    work: Path, watch: Stopwatch, variants: list[str], stage: str, rows: list[dict[str, Any]], **more: Any
) -> tuple[list[float], dict[str, Any]]:
    # It imports torchaudio, of which text needs nothing, and of which there is none for this torch.
    sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    config = _config(work)
    tokenised = work / "llamafactory-rows"
    if not tokenised.exists():
        DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tokenised))
    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: dict[str, float] | None = None,
            **_: Any,
        ) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    arguments = {
        **_arguments(config, work),
        "model_name_or_path": config["model"]["name"],
        "adapter_name_or_path": str(work / "adapter"),  # it goes on from there, so all start from the same values
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": config["lora"]["rank"],
        "lora_alpha": int(config["lora"]["alpha"]),
        "lora_target": "all",
        "template": "empty",  # the rows are tokenised; it wants these names all the same
        "dataset": "tokenised",
        "tokenized_path": str(tokenised),
        "disable_shuffling": True,
        "disable_gradient_checkpointing": "nockpt" in variants,
        "bf16": config["model"]["dtype"] == "bfloat16",
        "overwrite_output_dir": True,
        **more,
    }
    del arguments["train_sampling_strategy"]  # of a newer transformers than it takes; disable_shuffling does the same
    run_exp(args=arguments, callbacks=[_timing(watch), Losses()])
    return losses, _padded(_rows(work), config, multiple=8)


PEERS = {
    "sft": {"trainer": train_trainer, "trl": train_trl, "llamafactory": train_llamafactory},
    "dpo": {"trl": train_trl_pairs, "llamafactory": train_llamafactory_pairs},
}


def _arguments(config: dict[str, Any], work: Path) -> dict[str, Any]:
    """Settings that are equal for all peers, by the names of transformers' TrainingArguments."""
    import torch

    return {
        "use_cpu": not torch.cuda.is_available(),  # without it they refuse bfloat16 where there is no GPU
        "output_dir": str(work / "peer"),
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": config["train"]["batch_size"] // MICRO_BATCH,
        "max_steps": config["train"]["max_steps"],
        "learning_rate": config["train"]["learning_rate"],
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def _trl_arguments(config: dict[str, Any], work: Path, variants: list[str]) -> dict[str, Any]:
    """Settings of TRL's trainers, which would otherwise cut rows and choose bfloat16."""
    return {
        **_arguments(config, work),
        "gradient_checkpointing": "nockpt" not in variants,
        "bf16": config["model"]["dtype"] == "bfloat16",
        "max_length": None,
    }


def _trl_parts(config: dict[str, Any], watch: Stopwatch) -> dict[str, Any]:
    """What TRL's trainers are made of beside settings and rows."""
    import torch
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, dtype = config["model"]["name"], torch.__dict__[config["model"]["dtype"]]
    return {
        "model": AutoModelForCausalLM.from_pretrained(name, dtype=dtype),
        "processing_class": AutoTokenizer.from_pretrained(name),
        "peft_config": LoraConfig(task_type=TaskType.CAUSAL_LM, **_lora(config)),
        "callbacks": [_timing(watch)],
    }


def _lora(config: dict[str, Any]) -> dict[str, Any]:
    lora = config["lora"]
    return {
        "target_modules": lora["target"],
        "r": lora["rank"],
        "lora_alpha": int(lora["alpha"]),
        "lora_dropout": lora["dropout"],
    }


def _load_first_adapter(model: Any, work: Path) -> None:
    """The adapter's values that tunewright starts from."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    first = load_file(work / "adapter" / "adapter_model.safetensors")
    outcome: Any = set_peft_model_state_dict(model, first)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert not outcome.unexpected_keys, outcome.unexpected_keys
    assert len(first) == len(trained), "every trained tensor starts from tunewright's values"


def _timing(watch: Stopwatch) -> "TrainerCallback":
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Timing(TrainerCallback):
        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
        ) -> None:
            watch.mark()

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            watch.mark()

    return Timing()


def _losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _objective(work: Path) -> str:
    objective: str = json.loads((work / "settings.json").read_text("utf-8"))["objective"]
    return objective


def _config(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "config.json").read_text("utf-8"))
    return found


def _rows(work: Path) -> list[Features]:
    """The rows of all steps in their order; of pairs the better and the worse answer in turn."""
    with np.load(work / "rows.npz") as arrays:
        ids, weights, offsets, order = (arrays[name] for name in ("ids", "weights", "offsets", "order"))
    labels = np.where(weights != 0, ids, -100)
    spans = [slice(offsets[index], offsets[index + 1]) for index in order.ravel()]
    return [
        {"input_ids": ids[span].tolist(), "attention_mask": [1] * len(ids[span]), "labels": labels[span].tolist()}
        for span in spans
    ]


def _padded(rows: list[Features], config: dict[str, Any], multiple: int) -> dict[str, Any]:
    """Tokens computed in each step: each micro-batch is padded to its longest row, rounded up to a `multiple`."""
    at_once = len(rows) // (config["train"]["max_steps"] * config["train"]["batch_size"]) * MICRO_BATCH
    lengths = np.array([len(row["input_ids"]) for row in rows]).reshape(-1, at_once)
    longest = -(-lengths.max(axis=1) // multiple) * multiple
    steps = longest.reshape(config["train"]["max_steps"], -1).sum(axis=1) * at_once
    return {"step_computed_tokens": steps.tolist()}


if __name__ == "__main__":
    sys.exit(main())
