"""A model set up for training, and what is written of it."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig

from tests.engine_setup import run_config
from tests.folders import tiny_folder
from tunewright.engine.tunings import load_for_training, write_weights


def test_fully_tuned_weights_leave_the_makers_sampling_behind(tmp_path: Path) -> None:
    """A temperature without sampling is what transformers may refuse to save, in the middle of a run."""
    folder = tiny_folder(tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 9], "do_sample": False, "temperature": 0.6, "top_k": 20}))
    write_weights(load_for_training(folder, run_config("full"), torch.float32, None), tmp_path)
    written = GenerationConfig.from_pretrained(tmp_path / "model")
    written.validate(strict=True)
    assert written.eos_token_id == [7, 9]
