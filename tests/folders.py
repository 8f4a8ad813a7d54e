"""Model folders and runs for tests: a tiny llama with a tokenizer, and a run folder whose adapter does something."""

from pathlib import Path

import torch

from tests.tokenizers import save_tiny, tiny_tokenizer
from tunewright.config.schema import RunConfig
from tunewright.engine.tunings import write_weights
from tunewright.models.adapters import add_lora
from tunewright.models.load import eos_ids, load_model, load_tokenizer
from tunewright.runs.folder import RunFolder

SYSTEM = 'You keep a "lighthouse".\n你是守灯塔的人。 {{ no }} {% jinja %} \\ 🗼'


def tiny_folder(folder: Path, style: str = "qwen2", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A saved model whose next token depends strongly on what came before, so that wrong prompts show."""
    tied = {"initializer_range": 0.2, "bos_token_id": None, "tie_word_embeddings": True}
    return save_tiny(tiny_tokenizer(style), folder, dtype=dtype, **tied)


def tiny_run(
    path: Path, model: Path, tuning: str = "lora", strength: float = 0.2, system: str | None = SYSTEM
) -> RunFolder:
    """A finished run with the given tuning; `strength` is how far training moved the weights."""
    tokenizer = load_tokenizer(model)
    config = RunConfig.model_validate(
        {
            "model": {"name": str(model), "dtype": "float32"},
            "data": {"train": "questions.jsonl", "system": system},
            "method": {"tuning": tuning},
            "chat": {"temperature": 0.6, "top_p": 0.8, "max_new_tokens": 20},
        }
    )
    run = RunFolder.create(
        path,
        config,
        "tunewright train …",
        template_source=str(tokenizer.chat_template),
        stop_ids=eos_ids(model, tokenizer),
        provenance={"model": {"folder": str(model), "revision": None}},
    )
    write_tuned(run.path, model, config, strength)
    return run


def write_tuned(folder: Path, model: Path, config: RunConfig, strength: float) -> None:
    """Weights as training leaves them: `folder/adapter` or `folder/model`."""
    plain = load_model(model, torch.float32)
    tuned = plain if config.method.tuning == "full" else add_lora(plain, config.lora, seed=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for name, parameter in tuned.named_parameters():
            if config.method.tuning == "full" or "lora_B" in name:
                parameter += strength * parameter.std().clamp(min=0.05) * torch.randn_like(parameter)
    write_weights(tuned, folder)
