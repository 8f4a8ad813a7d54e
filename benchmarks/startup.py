"""Where the seconds go from the call of `tunewright train` to the end of its first step.

    python benchmarks/startup.py [--runs 5] [--recipe RECIPE] [--output benchmarks/results/NAME.json]

Each run is a fresh process; the medians are shown, of wall clock and of CPU time (all threads). One run before, which
does not count, fills the token store, the plan's memory and the system's file cache: all numbers are warm ones.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = "smollm2-135m-instruct/lora-persona"
LAUNCHED = "STARTUP_LAUNCHED"  # the variable that tells a child when it was launched

Stages = list[tuple[str, float, float]]  # name, and wall and CPU seconds from the launch to its end


class Marks:
    """When each stage ended."""

    def __init__(self) -> None:
        self.launched = float(os.environ[LAUNCHED])
        self.stages: Stages = []

    def __call__(self, name: str, before: float = 0.0) -> None:
        """`name` ended `before` seconds ago."""
        self.stages.append((name, time.time() - self.launched - before, time.process_time()))

    def after(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, which marks the end of `name` whenever it returns."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self(name)
            return result

        return marked


def measured_run(recipe: str, output: str) -> None:
    """What `tunewright train RECIPE` does, with marks between; ends the process after the first step."""
    mark = Marks()
    from tunewright.cli.imports import heavy_imports
    from tunewright.cli.progress import Progress
    from tunewright.config.load import load_config

    config = load_config(Path(recipe), [f"output={output}"])
    mark("Python and config")
    with heavy_imports():
        import torch  # noqa: F401  # these are what is measured

        mark("import torch")
        from transformers import PreTrainedModel  # noqa: F401  # the same

        mark("import transformers' models")
        from tunewright.engine import start

        mark("import PEFT and tunewright")
    from tunewright.evaluate.answers import Question
    from tunewright.models.generate import Answer
    from tunewright.runs.folder import RunFolder

    class Watcher(Progress):
        """Shows nothing and marks what the loop tells."""

        def begin(self, run: RunFolder, step: int, total_steps: int) -> None:
            mark("optimizer; the loop begins")

        def step(self, record: dict[str, Any]) -> None:
            if "loss" not in record:
                mark("validation of the untrained model")
                return
            mark("answers of the untrained model", before=record["step_seconds"])
            mark("step 1")
            print(json.dumps(mark.stages), flush=True)
            os._exit(0)

        def sample(self, step: int, question: Question, reply: Answer) -> None:
            pass

        def say(self, line: str) -> None:
            pass

    for name, stage in {
        "load_tokenizer": "tokenizer",
        "prepare": "data from the token store, stop proof",
        "plan_training": "plan",
        "load_for_training": "run folder, weights and adapters",
        "prove_forest": "proof on a forest",
    }.items():
        setattr(start, name, mark.after(vars(start)[name], stage))
    start.start(start.make_ready(config, Path.cwd()), "benchmark", Watcher())


def launch(recipe: str) -> Stages:
    """One run in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--recipe", recipe, "--child", f"{scratch}/run"]
        done = subprocess.run(
            command, env={**os.environ, LAUNCHED: repr(time.time())}, stdout=subprocess.PIPE, text=True, check=True
        )
    stages: Stages = [(name, wall, cpu) for name, wall, cpu in json.loads(done.stdout.splitlines()[-1])]
    return stages


def wall_of(words: list[str]) -> float:
    """Seconds that a whole `tunewright` command takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tunewright", *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def table(runs: list[Stages]) -> list[str]:
    """Medians by stage: its own seconds, its CPU seconds, and the seconds since the launch at its end."""
    lines = ["| stage | seconds | CPU seconds | since the call |", "|---|---:|---:|---:|"]
    for index, (name, _, _) in enumerate(runs[0]):
        before = [run[index - 1][1:] if index else (0.0, 0.0) for run in runs]
        wall = statistics.median(run[index][1] - start[0] for run, start in zip(runs, before, strict=True))
        # The step's begin is told afterwards, so the CPU time of what came before it is known together with it only.
        told_later = index + 2 == len(runs[0])
        cpu = statistics.median(run[index][2] - start[1] for run, start in zip(runs, before, strict=True))
        since = statistics.median(run[index][1] for run in runs)
        shown = "" if told_later or index + 1 == len(runs[0]) else f"{cpu:.2f}"
        lines.append(f"| {name} | {wall:.2f} | {shown} | {since:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measured_run(options.recipe, options.child)
        return
    launch(options.recipe)
    runs = [launch(options.recipe) for _ in range(options.runs)]
    commands = {"--help": ["--help"], "check": ["check", options.recipe]}
    walls = {name: [wall_of(words) for _ in range(options.runs)] for name, words in commands.items()}
    print("\n".join(table(runs)))
    for name, seconds in walls.items():
        print(f"tunewright {name}: {statistics.median(seconds):.2f} s")
    busy = max(os.getloadavg())
    print(f"{options.runs} runs, medians, warm file cache; {os.cpu_count()} cores, load {busy:.1f} at the end")
    if options.output is not None:
        options.output.write_text(json.dumps({"runs": runs, "commands": walls, "load": busy}, indent=1) + "\n")


if __name__ == "__main__":
    main()
