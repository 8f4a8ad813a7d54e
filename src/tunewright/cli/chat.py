"""Talk to a run or a model in the terminal.

    tunewright chat RUN|MODEL [--checkpoint N] [--base] [--system TEXT] [--temperature T] [--tools FILE.json]

A run is asked with the template, system prompt and stop tokens it was trained with; the tools that it may call stand in
a file, as they do in its data. Where an answer calls some of them, what each returned is asked for, and the model goes
on. Questions and results may also come from a pipe, one a line; the answers then go to standard output and remarks to
standard error.
"""

import secrets
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunewright.errors import UsageError

if TYPE_CHECKING:
    from tunewright.chat.partner import Partner
    from tunewright.chat.session import Session
    from tunewright.data.examples import Message
    from tunewright.models.generate import Answer

COMMANDS = (
    "/reset forgets the dialog, /system TEXT changes the system prompt, /base compares with the base, /exit leaves"
)


def chat(
    target: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="Run folder, built-in name, model folder, hub id.")
    ],
    checkpoint: Annotated[str | None, typer.Option(help="Step number or folder of a checkpoint of the run.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Answer with the base model too, to compare.")] = False,
    system: Annotated[str | None, typer.Option(help="System prompt, instead of the run's.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Sample among the likeliest tokens.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Tools it may call: a JSON list of function schemas.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Same seed and questions, same answers.")
    ] = None,
) -> None:
    """Talk to a run or a model in the terminal."""
    from tunewright.chat.tools import read_tools
    from tunewright.cli.imports import heavy_imports

    if base and not _is_tuned_here(Path(target).expanduser()):
        raise UsageError(f"--base: {target} is no run, so there is no base to compare with")
    known = None if tools is None else read_tools(tools)
    with heavy_imports():
        from tunewright.chat.partner import open_partner
        from tunewright.chat.session import Session
    partner = open_partner(target, checkpoint)
    if known is not None and not partner.template.shows_tools:
        raise UsageError(f"--tools: the chat template of {target} does not show tools to the model; leave them out")
    settings = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    given = {key: value for key, value in settings.items() if value is not None}
    partner.sampling = partner.sampling.model_copy(update=given)
    opening = partner.system if system is None else system or None
    session = Session(partner.template, opening, partner.context, partner.sampling.max_new_tokens, known)
    Terminal(partner, session, base, seed).run()


def _is_tuned_here(path: Path) -> bool:
    """Whether a path is a run or a checkpoint inside one."""
    from tunewright.runs.names import is_run

    return is_run(path) or (path.parent.name == "checkpoints" and is_run(path.parent.parent))


class Terminal:
    """Reads questions and prints answers until the input ends."""

    def __init__(self, partner: "Partner", session: "Session", comparing: bool, seed: int | None) -> None:
        self.partner = partner
        self.session = session
        self.comparing = comparing
        self.seed = seed
        self.asked = 0
        self.interactive = sys.stdin.isatty()
        self.called: Message | None = None  # the latest answer, while results of its calls are to come
        self.returned: list[str] = []  # those that came

    def run(self) -> None:
        if self.interactive:
            self._remark(f"{self.partner.name}. {COMMANDS}; Ctrl-C stops an answer.")
        for line in self._lines():
            text = line.strip()
            if text == "/exit":
                return
            if text.startswith("/") and self._command(*text.partition(" ")[::2]):
                continue
            if self.called is not None:
                self._take_result(self.called, text)
            elif text:
                self._reply(partial(self.session.prompt, text))
        if self.called is not None:
            self._remark(f"(the input ended before {self._waiting(self.called)} returned anything)")

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from _piped()
            return
        import readline  # noqa: F401  # importing it gives input() line editing and history

        while True:
            try:
                waiting = None if self.called is None else self._waiting(self.called)
                yield input(f"{waiting} returned (empty: go on without): " if waiting else "\nyou: ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                self._remark("(/exit or Ctrl-D leaves)")

    def _command(self, name: str, argument: str) -> bool:
        """Obey a command; False when it is none, for a question may begin with a slash."""
        if name == "/reset":
            self.session.reset()
            self.called = None
            self._remark("(the dialog is forgotten)")
        elif name == "/system":
            self.session.system = argument.strip() or None
            self.session.reset()
            self.called = None
            self._remark(f"(system prompt: {self.session.system or 'none'}; the dialog is forgotten)")
        elif name == "/base" and self.partner.base_folder is None:
            self._remark("(this model was not tuned here: there is no base to compare with)")
        elif name == "/base":
            self.comparing = not self.comparing
            self._remark(f"(the base model {'answers too' if self.comparing else 'is silent'})")
        elif self.interactive and self.called is None and not argument:
            self._remark(f"(no such command; {COMMANDS})")
        else:
            return False
        return True

    def _take_result(self, called: "Message", text: str) -> None:
        """What a tool returned; an empty line leaves the calls as they are, and the next line is a question again."""
        if not text:
            self.called = None
            self._remark("(the calls are left unanswered)")
            return
        self.returned.append(text)
        if len(self.returned) == len(called.tool_calls):
            self.called = None
            self._reply(partial(self.session.results, called, self.returned))

    def _waiting(self, called: "Message") -> str:
        """The name of the tool whose result comes next."""
        return called.tool_calls[len(self.returned)].name

    def _reply(self, add: Callable[[], list[int]]) -> None:
        """Print the answer to what `add` adds to the dialog."""
        try:
            ids = add()
        except UsageError as error:
            self._remark(f"({error})")
            return
        if self.session.dropped:
            self._remark(f"(the context is full: the oldest {self.session.dropped} messages are forgotten)")
        self.asked += 1
        seed = secrets.randbits(31) if self.seed is None else self.seed + self.asked
        if self.comparing and self._print("base: ", self.partner.speak(ids, seed, base=True)) is None:
            self.session.withdraw()
            return
        answer = self.session.answer(ids, lambda ids: self.partner.speak(ids, seed))
        said = self._print("tuned: " if self.comparing else "", answer)
        self.called, self.returned = (None if said is None else self._calls(said)), []

    def _print(self, label: str, pieces: "Iterator[str | Answer]") -> "Answer | None":
        """Print an answer as it comes; None when Ctrl-C stopped it. In a pipe Ctrl-C ends the program instead."""
        try:
            return self._print_all(label, pieces)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._remark("\n(stopped)")
            return None

    def _print_all(self, label: str, pieces: "Iterator[str | Answer]") -> "Answer | None":
        print(label, end="", flush=True)
        answer = None
        for piece in pieces:
            if isinstance(piece, str):
                print(piece, end="", flush=True)
                continue
            answer = piece
            print(flush=True)
            if answer.finish == "length":
                self._remark(f"(cut at {len(answer.ids):,} tokens)")
            called = self._calls(answer)
            for call in () if called is None else called.tool_calls:
                self._remark(f"(calls {call.name} with {call.arguments})")
        return answer

    def _calls(self, answer: "Answer") -> "Message | None":
        from tunewright.chat.tools import read_calls

        return None if self.session.tools is None else read_calls(answer.text, self.session.tools)

    def _remark(self, text: str) -> None:
        print(text, file=sys.stdout if self.interactive else sys.stderr, flush=True)


def _piped() -> Iterator[str]:
    """The lines of standard input; UsageError where they are in another encoding than Python was told."""
    try:
        for line in sys.stdin:
            line.encode()  # in the C locale bytes that are no UTF-8 come as lone surrogates, which no tokenizer takes
            yield line
    except UnicodeError:
        raise UsageError(
            f"the questions from the pipe are not {sys.stdin.encoding} text; convert them, as iconv -f gbk -t utf-8 "
            "does, or name their encoding in PYTHONIOENCODING"
        ) from None
