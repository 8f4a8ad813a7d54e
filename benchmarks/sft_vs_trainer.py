"""tunewright against the tutorial script (transformers Trainer + PEFT) and others: the same work, in one run.

    python benchmarks/sft_vs_trainer.py [--data FILE] [--system TEXT] [--max-length 384] [--output results.json]
    python benchmarks/sft_vs_trainer.py --contestants tunewright trainer trl trl-nockpt llamafactory …
    python benchmarks/sft_vs_trainer.py --objective dpo [--data FILE]      preference pairs, against TRL's DPOTrainer

Every contestant is a fresh process with the same threads, model folder, token ids, labels, order of rows, samples a
step, first adapter weights and learning rate; README.md says how each of these is kept equal. This process only
launches them, one after the other, and lays their JSON lines side by side: tunewright's part is in `contestants.py`
and `pairs.py`, the others' in `peers.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environments import python_for
from peers import BETA, MICRO_BATCH, PEERS
from preferences import write_pairs
from surroundings import today

from tunewright.errors import RunError, TunewrightError, UsageError

OURS = "tunewright"
BASELINE = {"sft": "trainer", "dpo": "trl"}  # to which all ratios are
CONTESTANTS = {
    objective: (OURS, *(f"{peer}{variant}" for peer in peers for variant in ("", "-nockpt")))
    for objective, peers in PEERS.items()
}
CONTESTANTS["dpo"] += (f"{OURS}-precomputed", "trl-precomputed", "trl-nockpt-precomputed")
SMOOTHED = 4  # steps whose mean loss is compared with --target-loss, since some batches are easier than others
DPO_LINE = (
    f"- objective: DPO, sigmoid loss, β {BETA}; a sample is a pair, and the reference the untrained model, computed in "
    "each step (…-precomputed: before the first, in the start-up)"
)


def main() -> int:
    options = parse_options()
    try:
        results = compare(options)
    except TunewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = to_markdown(results)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="built-in name, hub id, GGUF or folder")
    parser.add_argument(
        "--objective", default="sft", choices=tuple(PEERS), help="sft learns answers, dpo which of two is better"
    )
    parser.add_argument("--data", help="rows to train on (the shipped persona; for dpo what preferences.py makes)")
    parser.add_argument("--system", help="system prompt of every row that has none")
    parser.add_argument("--max-length", type=int, default=384, help="longer rows are left out, for all (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples a step, for all (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each contestant (%(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="first steps that are not counted (%(default)s)")
    parser.add_argument(
        "--target-loss", type=float, help=f"tell when the mean loss of {SMOOTHED} steps is at most this, for all"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="constant, for all (%(default)s)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="of the frozen weights"
    )
    parser.add_argument("--threads", type=int, help="of every contestant (torch's own choice)")
    parser.add_argument("--seed", type=int, default=42, help="of order and first adapter (%(default)s)")
    parser.add_argument(
        "--forest-tokens",
        type=int,
        default=4096,
        help="most distinct tokens that tunewright computes at once for dpo; for sft its plan decides (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write the numbers here, and FILE.md beside it"
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        metavar="NAME",
        help="who takes part; for "
        + "; for ".join(f"{objective} of {', '.join(names)}" for objective, names in CONTESTANTS.items())
        + f" ({OURS} and the first peer, with and without checkpointing)",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(".benchmark-environments"),
        metavar="FOLDER",
        help="where peers are installed that tunewright does not bring (%(default)s)",
    )
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All parts in turn, each in its own process; what the report needs. Raises UsageError for unusable options."""
    if options.batch_size < MICRO_BATCH or options.batch_size % MICRO_BATCH:
        raise UsageError(
            f"--batch-size is {options.batch_size}; the peers take {MICRO_BATCH} at a time: a multiple of it"
        )
    if not 0 <= options.warmup < options.steps:
        raise UsageError(f"--warmup is {options.warmup} of {options.steps} steps; leave at least one step to count")
    if options.target_loss is not None and options.steps < SMOOTHED:
        raise UsageError(f"--steps is {options.steps}; --target-loss looks at the mean of {SMOOTHED} steps")
    known, base = CONTESTANTS[options.objective], BASELINE[options.objective]
    options.contestants = options.contestants or [OURS, base, f"{base}-nockpt"]
    for name in options.contestants:
        if name not in known:
            raise UsageError(f"--contestants: there is no {name} for {options.objective}, only {', '.join(known)}")
    if base not in options.contestants:
        raise UsageError(f"--contestants must have {base}, to which all ratios are")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tunewright-benchmark-") as folder:
        work = Path(folder)
        if options.data is None and options.objective == "dpo":
            options.data = str(work / "preferences.jsonl")
            write_pairs(Path(options.data), rows=200, seed=options.seed)
        options.data = options.data or "persona/captain_biscuit.jsonl"
        settings = {key: value for key, value in vars(options).items() if key not in ("environments", "output")}
        (work / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        facts = launch("prepare", work, options)
        runs = {name: launch(name, work, options) for name in options.contestants}
        floor = launch("floor", work, options)
    if len(threads := {part["threads"] for part in runs.values()}) > 1:
        raise UsageError(f"the contestants ran with different numbers of threads ({threads}); set --threads")
    counted = slice(options.warmup, options.steps)
    per_step = {key: statistics.mean(values[counted]) for key, values in facts.pop("steps").items()}
    settings |= {"data": Path(options.data).name, "model": Path(options.model).name, "threads": threads.pop()}
    return {
        "benchmark": "sft_vs_trainer",
        "created": today(),
        "settings": settings,
        **facts,
        "load_before": load_before,
        "per_step": per_step,
        "floor": floor,
        "contestants": {
            name: measures(run, counted, options.batch_size, per_step, floor["seconds"])
            | {"target_seconds": seconds_to_loss(run, options.target_loss)}
            for name, run in runs.items()
        },
    }


def launch(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a fresh process; its last line of output. What it says on the way goes to stderr."""
    environment = {"CUDA_VISIBLE_DEVICES": "0", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    if options.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    peer = name.partition("-")[0]
    program = "peers.py" if peer in PEERS[options.objective] else "contestants.py"
    python = python_for(peer, options.environments)
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [python, str(Path(__file__).with_name(program)), name, str(work), repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=False)
    if done.returncode == UsageError.exit_code:
        raise SystemExit(done.returncode)  # it said why
    if done.returncode:
        raise RunError(f"{name} ended with exit code {done.returncode}:\n{done.stdout}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measures(
    run: dict[str, Any], counted: slice, batch_size: int, per_step: dict[str, float], floor_seconds: float
) -> dict[str, Any]:
    """Rates over the counted steps; tokens are those of the data (no padding), whatever a contestant computes."""
    seconds = run["step_seconds"][counted]
    mean = statistics.mean(seconds)
    return {
        **run,
        "computed_tokens": statistics.mean(run["step_computed_tokens"][counted]),
        "cpu_share": sum(run["step_cpu_seconds"][counted]) / sum(seconds) / run["threads"],
        "samples_per_second": batch_size / statistics.median(seconds),
        "samples_per_second_overall": batch_size / mean,
        "tokens_per_second": per_step["tokens"] / mean,
        "distinct_tokens_per_second": per_step["distinct_tokens"] / mean,
        "supervised_tokens_per_second": per_step["supervised_tokens"] / mean,
        "step_over_floor": mean / floor_seconds,
    }


def seconds_to_loss(run: dict[str, Any], target: float | None) -> float | None:
    """Seconds from the launch to the end of the first step with which the mean loss of `SMOOTHED` is at most `target`.

    In the first epoch the rows of a step are new to the model, so this is the loss on rows that were not trained on.
    """
    losses = run["losses"]
    for step in range(SMOOTHED, len(losses) + 1) if target is not None else ():
        if statistics.mean(losses[step - SMOOTHED : step]) <= target:
            return float(run["startup_seconds"] + sum(run["step_seconds"][:step]))
    return None


def to_markdown(results: dict[str, Any]) -> str:
    """The report: what was done, the measures, the floor, the loss curves; tables that also read in a terminal."""
    settings, floor, runs, per_step = (results[key] for key in ("settings", "floor", "contestants", "per_step"))
    objective, dtype = settings["objective"], results["dtype"]
    baseline = BASELINE[objective]
    rate = floor["flops_per_second"] / 1e9
    curves = [
        [str(step + 1), *(f"{run['losses'][step]:.6f}" for run in runs.values())] for step in range(settings["steps"])
    ]
    differences = (f"{name} {_difference(run, runs[baseline])}" for name, run in runs.items() if name != baseline)
    lines = [
        f"# tunewright and its peers, {results['created']}",
        "",
        f"- work: {settings['model']} on {settings['data']} (sha256 {results['data_sha256'][:12]}), "
        f"{results['examples']:,} rows, {results['left_out']:,} left out; max_length {settings['max_length']}",
        *([DPO_LINE] if objective == "dpo" else []),
        f"- settings: LoRA r 8 α 32 on all linear layers, {settings['batch_size']} samples a step, learning rate "
        f"{settings['learning_rate']:g} constant, seed {settings['seed']}",
        f"- steps: {settings['steps']}, the first {settings['warmup']} not counted; one has {per_step['tokens']:,.0f} "
        f"tokens, {per_step['distinct_tokens']:,.0f} of them distinct, {per_step['supervised_tokens']:,.0f} trained",
        f"- machine: {results['machine']}, {settings['threads']} threads, {dtype}; load average before the start "
        f"{results['load_before']:.1f}",
        *(f"- versions of {peer}: {', '.join(found)}" for peer, found in _versions(runs).items()),
        "",
        *_table(["", *runs], _measure_rows(runs, baseline) + _target_rows(runs, settings["target_loss"])),
        "",
        f"Floor: the matrix products that a step can't do without take {floor['seconds']:.3f} s alone, "
        f"{settings['batch_size'] / floor['seconds']:.1f} samples/s at {rate:,.0f} GFLOP/s ({dtype}, model's shapes).",
        "",
        *_table(["loss of step", *runs], curves),
        "",
        f"Largest difference from the loss of {baseline}: {'; '.join(differences)}.",
        "",
    ]
    return "\n".join(lines)


def _measure_rows(runs: dict[str, dict[str, Any]], baseline: str) -> list[list[str]]:
    base = runs[baseline]

    def row(title: str, key: str, form: str, unit: float = 1) -> list[str]:
        return [title, *(format(run[key] / unit, form) for run in runs.values())]

    def ratios(title: str, key: str) -> list[str]:
        return [title, *(f"{run[key] / base[key]:.2f}×" for run in runs.values())]

    return [
        row("samples/s, median of steps", "samples_per_second", ".2f"),
        ratios(f"… to {baseline}", "samples_per_second"),
        row("samples/s, over all steps", "samples_per_second_overall", ".2f"),
        ratios(f"… to {baseline}", "samples_per_second_overall"),
        row("tokens computed in a step, padding too", "computed_tokens", ",.0f"),
        row("tokens/s", "tokens_per_second", ",.0f"),
        row("distinct tokens/s", "distinct_tokens_per_second", ",.0f"),
        row("trained tokens/s", "supervised_tokens_per_second", ",.0f"),
        row("peak memory, GiB", "peak_memory_bytes", ".2f", 2**30),
        ratios(f"… to {baseline}", "peak_memory_bytes"),
        row("start-up, s", "startup_seconds", ".1f"),
        row("wall clock, start-up included, s", "wall_seconds", ".1f"),
        ratios(f"… to {baseline}", "wall_seconds"),
        row("step over its floor", "step_over_floor", ".2f"),
        row("CPU time got, of what its threads could", "cpu_share", ".0%"),
    ]


def _target_rows(runs: dict[str, dict[str, Any]], target: float | None) -> list[list[str]]:
    if target is None:
        return []
    reached = (run["target_seconds"] for run in runs.values())
    cells = ("not reached" if seconds is None else f"{seconds:.1f}" for seconds in reached)
    return [[f"wall clock to a loss of {target:g}, s", *cells]]


def _versions(runs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """By peer, whose variants all have the same."""
    return {
        name.partition("-")[0]: [f"{package} {version}" for package, version in run["versions"].items()]
        for name, run in runs.items()
    }


def _difference(run: dict[str, Any], base: dict[str, Any]) -> str:
    pairs = zip(run["losses"], base["losses"], strict=True)
    largest, relative = max((abs(a - b), abs(a - b) / abs(b)) for a, b in pairs)
    return f"{largest:.2g} ({relative:.2g} of it)"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table with its columns aligned, so that it reads in a terminal too."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    first, *others = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [heads, *rows]
    ]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return [f"| {' | '.join(row)} |" for row in (first, rule, *others)]


if __name__ == "__main__":
    sys.exit(main())
