"""tunewright against the tutorial script and TRL on a GPU: LoRA on a model of Llama-3-8B's shape, short and long rows.

    python benchmarks/cuda.py [--output FOLDER] [--persona FILE --system TEXT] [--contestants tunewright trainer …]
    python benchmarks/cuda.py --shape tiny --steps 3 --warmup 1            # the same on any machine, in minutes

Nothing is downloaded: weights are random, made from the shape alone, and the tokenizer is the built-in model's. How
long a step takes and what it holds depend on neither. Each work is one run of `sft_vs_trainer.py`, which says what is
kept equal and measured; its tables and JSON go to FOLDER.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# From the config.json of Meta-Llama-3-8B-Instruct; bos and eos are the tokenizer's own.
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "tiny": {
        "vocab_size": 49152,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
}


def main() -> int:
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="tunewright-cuda-") as folder:
        model, dialogs = Path(folder) / options.shape, Path(folder) / "dialogs.jsonl"
        # In a process of its own, which leaves nothing on the GPU.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(write_model, model, SHAPES[options.shape]).result()
        made = [str(HERE / "dialogs.py"), str(dialogs), "--rows", str(options.batch_size * options.steps)]
        subprocess.run([sys.executable, *made], check=True)
        persona = ["--data", options.persona, "--max-length", "384"]
        works = {
            "short": [*persona, *(["--system", options.system] if options.system else [])],
            "long": ["--data", str(dialogs), "--max-length", "4096"],
        }
        for name, work in works.items():
            command = [sys.executable, str(HERE / "sft_vs_trainer.py"), "--model", str(model), *work]
            command += ["--steps", str(options.steps), "--warmup", str(options.warmup)]
            command += ["--batch-size", str(options.batch_size), "--contestants", *options.contestants]
            command += ["--output", str(options.output / f"cuda-{options.shape}-{name}.json")]
            if code := subprocess.run(command, check=False).returncode:
                return code
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b", help="of the model (%(default)s)")
    parser.add_argument(
        "--persona", default="persona/captain_biscuit.jsonl", help="the short rows (the shipped persona)"
    )
    parser.add_argument("--system", help="system prompt of the short rows that have none")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of each contestant (%(default)s)")
    parser.add_argument("--warmup", type=int, default=8, help="first steps, not counted; kernels are compiled in them")
    parser.add_argument("--batch-size", type=int, default=16, help="samples a step (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    parser.add_argument(
        "--contestants",
        nargs="+",
        default=["tunewright", "trainer", "trainer-nockpt", "trl", "trl-nockpt"],
        metavar="NAME",
        help="as of sft_vs_trainer.py (%(default)s)",
    )
    return parser.parse_args()


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A Llama model folder with random bfloat16 weights, made on the GPU where there is one."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunewright.config.schema import ModelConfig
    from tunewright.models.load import load_tokenizer
    from tunewright.models.resolve import resolve_model

    tokenizer = load_tokenizer(resolve_model(ModelConfig(name="smollm2-135m-instruct"), Path.cwd()).path)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(**shape, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
