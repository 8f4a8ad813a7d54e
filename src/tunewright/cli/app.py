"""The command line: `tunewright VERB …`, and `tunewright --help`.

A verb's module is imported only when that verb is run, so that help and mistakes answer at once.
A TunewrightError prints its message alone and ends with its exit code; any other exception is a bug and keeps its
traceback. Exit codes: 0 done, 1 failed, 2 wrong config or usage, 130 interrupted.
"""

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple, NoReturn

from tunewright.errors import Interrupted, TunewrightError


class Verb(NamedTuple):
    """Module and function of a verb, and its line in the help."""

    module: str
    function: str
    help: str


VERBS = {
    "demo": Verb("demo", "demo", "Fine-tune the built-in model on a persona, and compare before and after."),
    "check": Verb("check", "check", "Prove data, template and stop token, and plan memory and time; trains nothing."),
    "train": Verb("train", "train", "Fine-tune: tunewright train RUN.yaml [key=value …], or --model NAME --data FILE."),
    "resume": Verb("resume", "resume", "Go on with a run from its newest sound checkpoint."),
    "stop": Verb("stop", "stop", "Stop a training run; it writes a checkpoint first."),
    "chat": Verb("chat", "chat", "Talk to a run or a model in the terminal."),
    "eval": Verb("eval", "evaluate", "Loss, perplexity, stop and loop rate, base against tuned."),
    "compare": Verb("compare", "compare", "Put several runs side by side."),
    "export": Verb("export", "export", "Write a merged model that other programs load, and prove that it is the same."),
    "runs": Verb("runs", "runs", "List runs, newest first."),
    "show": Verb("show", "show", "Show a run's summary, or a recipe or config with every default filled in."),
    "data": Verb("data", "data", "Make data files: join questions and answers, convert to another form."),
    "ls": Verb("ls", "ls", "List recipes, built-in models, chat templates and data formats."),
    "cp": Verb("cp", "cp", "Copy a recipe to a file of your own."),
    "doctor": Verb("doctor", "doctor", "Look at this machine and installation, and say what is missing."),
}

MORE_HELP = "Run 'tunewright VERB --help' for the options of a verb."


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(words)
        sys.stdout.flush()
    except TunewrightError as error:
        if isinstance(error, Interrupted):
            print(error, file=sys.stderr)  # asked for, so no error
        else:
            _print_error(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader, such as `head`, has had enough. Nothing more can be said; keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from tunewright import __version__

        print(f"tunewright {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        near = get_close_matches(words[0], VERBS, 1)
        hint = f"did you mean 'tunewright {near[0]}'?" if near else "'tunewright --help' lists the verbs"
        _print_error(f"there is no verb {words[0]!r}; {hint}")
        return 2
    return _run_verb(words[0], verb, words[1:])


def _run_verb(name: str, verb: Verb, words: list[str]) -> int:
    import typer
    from typer.main import get_command

    module = import_module(f"tunewright.cli.{verb.module}")
    # Plain help and errors: the same in a terminal, a log and a pipe, and rich stays out of the way of start-up.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    help_options = {"help_option_names": ["-h", "--help"]}
    function = vars(module)[verb.function]
    if isinstance(function, typer.Typer):  # a verb with verbs of its own
        app.add_typer(function, context_settings=help_options)
    else:
        app.command(name=name, context_settings=help_options)(function)
    try:
        get_command(app)(args=words, prog_name=f"tunewright {name}")
    except SystemExit as leave:
        if leave.code == 130:  # what typer makes of Ctrl-C, without a word
            raise KeyboardInterrupt from leave
        return leave.code if isinstance(leave.code, int) else 0
    return 0


def _help() -> str:
    from tunewright import __doc__ as about

    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()]
    usage = "Usage: tunewright VERB …"
    first = "A first try:  tunewright train --model smollm2-135m-instruct --data FILE.xlsx"
    return "\n".join([usage, "", about or "", "", *lines, "", MORE_HELP, first])


def _print_error(message: str) -> None:
    colored = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    label = "\033[31merror:\033[0m" if colored else "error:"
    print(f"{label} {message}", file=sys.stderr)
