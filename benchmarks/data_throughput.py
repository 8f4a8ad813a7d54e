"""How fast and in how much memory rows become tokens and are checked, beside the tutorials' `datasets.map`.

    python benchmarks/data_throughput.py [--rows 10000 100000 1000000] [--peer-rows 100000] [--output results.json]

The rows are alpaca rows made here; README.md says of what. Every measurement is a fresh process on the same cores, and
its clock starts when libraries and tokenizer are loaded. The peer needs the extra `bench`; with `--peer-python` it runs
in another environment, with `--peer-rows 0` not at all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from surroundings import cores, processor, today, versions

PACKAGES = ("tunewright", "transformers", "tokenizers", "pyarrow", "datasets")
LENGTHS = {"instruction": (2.4, 0.5), "input": (3.0, 0.6), "output": (3.7, 0.9)}  # of log-normal word counts
UNSEEN = 0.02  # share of words glued from two, as names and slips of the pen are
MAX_LENGTH = 2048  # tokens; no row made here has so many, so that nobody leaves out or cuts one
LOOK_EVERY, LIST_EVERY = 0.01, 0.25  # seconds between two looks at the memory, and at which processes there are
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> int:
    options = parse_options()
    if options.part is not None:
        name, folder, data = options.part
        print(json.dumps({**PARTS[name](Path(folder), Path(data)), "versions": versions(PACKAGES)}))
        return 0
    require_peer(options)
    results = compare(options)
    text = to_markdown(results)
    print(text)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="sizes of data")
    parser.add_argument("--peer-rows", type=int, default=100_000, help="rows for the peer, 0: none (%(default)s)")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has `datasets`")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers; Markdown goes beside it")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def require_peer(options: argparse.Namespace) -> None:
    """Ends the program where the peer is asked for and cannot run: after an hour would be late."""
    if not options.peer_rows:
        return
    found = subprocess.run(
        [options.peer_python, "-c", "import datasets, transformers"], capture_output=True, check=False
    )
    if found.returncode:
        raise SystemExit(
            f"{options.peer_python} has no `datasets`, which the peer needs: install the extra bench, name another "
            "Python by --peer-python, or do without by --peer-rows 0"
        )


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, one after the other."""
    from tunewright.config.schema import ModelConfig
    from tunewright.models.resolve import resolve_model

    model = resolve_model(ModelConfig(name="smollm2-135m-instruct"), Path.cwd()).path
    with tempfile.TemporaryDirectory(prefix="data-throughput-") as work:
        cache = {"TUNEWRIGHT_CACHE": f"{work}/cache", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        ours, checks, same = [], [], []
        for rows in options.rows:
            data = write_rows(Path(work) / f"{rows}.jsonl", rows, model)
            ours.append(measure("tunewright", sys.executable, model, data, cache))
            ours[-1] |= {"reopened": measure("tunewright", sys.executable, model, data, cache)["seconds"]}
            afresh = {**cache, "TUNEWRIGHT_CACHE": f"{work}/checked"}
            checks.append(measure("tunewright check", sys.executable, model, data, afresh))
        if options.peer_rows:
            data = write_rows(Path(work) / "peer.jsonl", options.peer_rows, model)
            same.append(measure("tunewright", sys.executable, model, data, cache))
            for name in ("datasets.map", "datasets.map num_proc"):
                home = {"HF_HOME": f"{work}/hf-{len(same)}"}
                same.append(measure(name, options.peer_python, model, data, {**cache, **home}))
    used = {one["name"]: one.pop("versions") for one in (*ours, *checks, *same)}
    return {
        "benchmark": "data_throughput",
        "created": today(),
        "command": f"python benchmarks/data_throughput.py --rows {' '.join(map(str, options.rows))} "
        f"--peer-rows {options.peer_rows}",
        "machine": processor(),
        "cores": cores(),
        "versions": used,
        "tunewright": ours,
        "check": checks,
        "same_rows": same,
    }


def write_rows(path: Path, count: int, model: Path) -> Path:
    """Alpaca rows: words of the tokenizer's own vocabulary, frequent ones often (Zipf), with points and commas."""
    from tunewright.models.load import load_tokenizer

    pieces = sorted(load_tokenizer(model).get_vocab().items(), key=lambda item: item[1])
    words = [piece[1:] for piece, _ in pieces if piece[0] == "Ġ" and len(piece) > 2 and piece[1:].isascii()]
    words = np.array([word for word in words if word.isalpha()], object)
    chances = 1 / (np.arange(len(words)) + 2.7) ** 1.1  # between alpaca's and C4's variety of words
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, count, 10_000):
            size = min(10_000, count - begin)
            columns = {name: _texts(random, words, chances / chances.sum(), size, *LENGTHS[name]) for name in LENGTHS}
            for row in zip(*columns.values(), random.random(size) < 0.6, strict=True):
                alpaca = {"instruction": row[0], "input": "" if row[3] else row[1], "output": row[2]}
                file.write(json.dumps(alpaca) + "\n")
    os.utime(path, (time.time() - 60,) * 2)  # written long ago, as data are
    return path


def _texts(random: Any, words: Any, chances: Any, count: int, mean: float, spread: float) -> Iterator[str]:
    lengths = np.clip(random.lognormal(mean, spread, count).astype(int), 2, 400)
    drawn = random.choice(words, int(lengths.sum()), p=chances)
    drawn += random.choice(np.array(["", ",", ".", "\n"], object), len(drawn), p=[0.87, 0.07, 0.055, 0.005])
    unseen = random.random(len(drawn)) < UNSEEN
    drawn[unseen] = random.choice(words, int(unseen.sum())) + drawn[unseen]
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        yield " ".join(drawn[end - length : end])


def measure(name: str, python: str, model: Path, data: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run one part and watch the memory of its process and all that it starts."""
    command = [python, __file__, "--part", name, str(model), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment) as process:
        peak = watch_memory(process)
        assert process.stdout is not None
        written = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{name} on {data.name} ended with {process.returncode}")
    answer = json.loads(written.splitlines()[-1])
    rows = sum(1 for _ in data.open("rb"))
    return {"name": name, "rows": rows, **answer, "rows_per_second": rows / answer["seconds"], "peak_bytes": peak}


def watch_memory(process: "subprocess.Popen[bytes]") -> int:
    """The most bytes that a process and all that it starts hold at once, without what they share, once it has ended.

    What is resident costs nothing to ask for, so it is looked at often; only when there is more of it than before is
    it found out, which takes milliseconds, how much of that is not shared.
    """
    import psutil

    whole, family, listed = psutil.Process(process.pid), [], 0.0
    most = peak = 0
    while process.poll() is None:
        try:
            if not family or time.monotonic() - listed > LIST_EVERY:
                family, listed = [whole, *whole.children(recursive=True)], time.monotonic()
            resident = sum(one.memory_info().rss for one in family)
            if resident > 1.01 * most:
                most, peak = resident, max(peak, sum(one.memory_full_info().uss for one in family))
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # one has just ended
            family = []
        time.sleep(LOOK_EVERY)
    return peak


def run_tunewright(model: Path, data: Path, check: bool = False) -> dict[str, Any]:
    """What `tunewright train` does with the data: read, check, render, tokenise, weigh, prove, store, split.

    For `check` also everything that it looks for in them.
    """
    from tunewright.config.schema import RunConfig
    from tunewright.data.check import gather_facts
    from tunewright.data.encode import prepare
    from tunewright.models.load import eos_ids, load_tokenizer

    tokenizer = load_tokenizer(model)
    config = RunConfig.model_validate({"model": str(model), "data": {"train": str(data), "max_length": MAX_LENGTH}})
    stop_ids = eos_ids(model, tokenizer)
    begin = time.perf_counter()
    prepared = prepare(config, tokenizer, stop_ids, Path.cwd())
    if check:
        gather_facts("sft", prepared, tokenizer, stop_ids)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": int(prepared.train.lengths.sum() + prepared.validation.lengths.sum())}


def run_map(model: Path, data: Path, processes: int | None = None) -> dict[str, Any]:
    """The tutorials' script: load the rows, map a function that tokenises prompt and answer."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    process_func = tutorial_function(AutoTokenizer.from_pretrained(model))
    begin = time.perf_counter()
    rows = load_dataset("json", data_files=str(data), split="train")
    columns = rows.column_names
    mapped = rows.map(process_func, remove_columns=columns, num_proc=processes, load_from_cache_file=False)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": sum(map(len, mapped["input_ids"]))}


def tutorial_function(tokenizer: Any) -> Callable[[dict[str, str]], dict[str, list[int]]]:
    """As the tutorials have it, but with the very tokens that the model's template writes: a line end between
    instruction and input and one behind the answer, where they glue the first two and write a padding token last."""
    end = tokenizer("\n", add_special_tokens=False)["input_ids"]

    def process_func(example: dict[str, str]) -> dict[str, list[int]]:
        question = "\n".join(part for part in (example["instruction"], example["input"]) if part)
        instruction = tokenizer(PROMPT.format(question=question), add_special_tokens=False)
        response = tokenizer(f"{example['output']}<|im_end|>", add_special_tokens=False)
        input_ids = instruction["input_ids"] + response["input_ids"] + end
        attention_mask = instruction["attention_mask"] + response["attention_mask"] + [1] * len(end)
        labels = [-100] * len(instruction["input_ids"]) + response["input_ids"] + [-100] * len(end)
        columns = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {name: column[:MAX_LENGTH] for name, column in columns.items()}

    return process_func


PARTS = {
    "tunewright": run_tunewright,
    "tunewright check": lambda model, data: run_tunewright(model, data, check=True),
    "datasets.map": run_map,
    "datasets.map num_proc": lambda model, data: run_map(model, data, cores()),
}


def to_markdown(results: dict[str, Any]) -> str:
    lines = [
        f"# Rows to tokens, {results['created']}",
        "",
        f"- command: `{results['command']}`",
        f"- machine: {results['machine']}, {results['cores']} cores",
        *(f"- versions: {found} ({', '.join(names)})" for found, names in _by_versions(results["versions"]).items()),
        "",
        "Peak memory is that of all processes together, without what they share.",
        "",
        "| tunewright, rows | seconds | rows/s | peak memory | reopened in |",
        "|---|---|---|---|---|",
    ]
    for one in results["tunewright"]:
        speed = f"{one['seconds']:.1f} | {one['rows_per_second']:,.0f}"
        lines.append(f"| {one['rows']:,} | {speed} | {one['peak_bytes'] / 1e6:,.0f} MB | {one['reopened']:.2f} s |")
    lines += ["", "| tunewright check, rows | seconds | rows/s | peak memory |", "|---|---|---|---|"]
    for one in results["check"]:
        speed = f"{one['seconds']:.1f} | {one['rows_per_second']:,.0f}"
        lines.append(f"| {one['rows']:,} | {speed} | {one['peak_bytes'] / 1e6:,.0f} MB |")
    if results["same_rows"]:
        lines += ["", "| the same rows | rows/s | tunewright is | tokens |", "|---|---|---|---|"]
    for one in results["same_rows"]:
        ratio = f"{results['same_rows'][0]['rows_per_second'] / one['rows_per_second']:.1f} × as fast"
        lines.append(f"| {one['name']} | {one['rows_per_second']:,.0f} | {ratio} | {one['tokens']:,} |")
    return "\n".join(lines) + "\n"


def _by_versions(used: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Who ran with the same versions, by these in words."""
    names: dict[str, list[str]] = {}
    for name, found in used.items():
        names.setdefault(", ".join(f"{package} {number}" for package, number in found.items()), []).append(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
