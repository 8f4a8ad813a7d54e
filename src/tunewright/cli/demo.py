"""Fine-tune the built-in model on a persona, and compare its answers before and after.

    tunewright demo [--output DIR]

What `make demo` runs: the recipe smollm2-135m-instruct/lora-persona, trained for real, then three questions that are
not in its data, answered by the base model and by the tuned one.
"""

import shutil
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunewright.models.generate import Answer
    from tunewright.runs.folder import RunFolder

RECIPE = "smollm2-135m-instruct/lora-persona"
QUESTIONS = ("Who are you, and what do you do all day?", "What is the capital of Greece?", "晚安，船长。")
MOST_TOKENS = 96


def demo(
    output: Annotated[
        str | None, typer.Option("--output", help="Run folder; default runs/demo, runs/demo-2, …")
    ] = None,
) -> None:
    """Fine-tune the built-in model on a persona, and compare before and after."""
    from tunewright.cli.imports import heavy_imports
    from tunewright.cli.progress import Progress
    from tunewright.cli.train import show_commands, show_ready
    from tunewright.config.load import load_config
    from tunewright.runs.output import free_folder

    began = time.monotonic()
    config = load_config(Path(RECIPE), [])
    config.output = output or str(free_folder(Path("runs/demo")))
    # The two columns below are this run's report.
    config.evaluate.at_end = False
    with heavy_imports():
        from tunewright.engine.start import make_ready, start
    with Progress() as progress:
        progress.say(f"demo: {RECIPE}; the same as: tunewright train {RECIPE}")
        ready = make_ready(config, Path.cwd())
        show_ready(ready, progress)
        run = start(ready, "tunewright demo", progress)
        progress.say("")
        for question, base, tuned in _answers(run):
            _show_pair(question, base, tuned)
        progress.say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
        show_commands(run, progress)


def _answers(run: "RunFolder") -> "list[tuple[str, Answer, Answer]]":
    """Each question with the answers of the base model and of the tuned one, greedy."""
    from tunewright.chat.partner import open_partner
    from tunewright.config.schema import ChatConfig
    from tunewright.data.examples import Message, opening

    partner = open_partner(str(run.path))
    partner.sampling = ChatConfig(temperature=0, max_new_tokens=MOST_TOKENS)
    answers = []
    for question in QUESTIONS:
        prompt = partner.template.prompt_ids([*opening(partner.system), Message("user", question)])
        answers.append((question, _last(partner.speak(prompt, 0, base=True)), _last(partner.speak(prompt, 0))))
    return answers


def _last(pieces: "Iterator[str | Answer]") -> "Answer":
    """The whole answer, which a stream ends with."""
    *_, answer = pieces
    assert not isinstance(answer, str)
    return answer


def _show_pair(question: str, base: "Answer", tuned: "Answer") -> None:
    width = min(shutil.get_terminal_size().columns, 100) - 10
    print(f"? {question}")
    for name, reply in (("base", base), ("tuned", tuned)):
        cut = "" if reply.finish == "stop" else " (cut by length)"
        lines = textwrap.wrap(" ".join(reply.text.split()) + cut, width) or [""]
        print("\n".join(f"  {name if i == 0 else '':<6} {line}" for i, line in enumerate(lines)))
    print(flush=True)
