"""All findings of one run, in one pass over its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tunewright.data.encode import Prepared
from tunewright.data.examples import Place
from tunewright.data.findings.answers import RepeatingAnswers, ShortAnswers
from tunewright.data.findings.copies import Copies
from tunewright.data.findings.found import SHOWN, Found
from tunewright.data.findings.rows import Batch, Rows
from tunewright.data.findings.scripts import OddCharacters, Scripts, ScriptShares
from tunewright.data.findings.stopping import look_at_spelling, look_at_stopping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RANK = {"error": 0, "warning": 1, "note": 2, "fine": 3}


class Finding(Protocol):
    """One look at the rows, in memory that hardly grows with them."""

    def add(self, batch: Batch) -> None: ...

    def result(self) -> list[Found]: ...


@dataclass(frozen=True, slots=True)
class Looked:
    """`trained` and `held_out` count rows and name the first; `found` has the worst first."""

    trained: int
    held_out: int
    first_trained: list[Place]
    first_held_out: list[Place]
    found: list[Found]
    scripts: ScriptShares


def look(
    prepared: Prepared,
    tokenizer: "PreTrainedTokenizerBase",
    stated_eos: Sequence[int] = (),
    known: Sequence[Found] = (),
) -> Looked:
    """Look at every row once; `known` was found elsewhere and is sorted in."""
    rows = Rows(prepared)
    scripts = Scripts()
    copies = Copies(rows, len(prepared.train), len(prepared.validation))
    findings: list[Finding] = [copies, RepeatingAnswers(prepared.stop_ids), ShortAnswers(), scripts, OddCharacters()]
    for batch in rows.batches():
        for finding in findings:
            finding.add(batch)
    found = [one for finding in findings for one in finding.result()]
    found += [*known, *look_at_spelling(prepared), *look_at_stopping(prepared, tokenizer, stated_eos)]
    return Looked(
        trained=rows.trained,
        held_out=len(rows) - rows.trained,
        first_trained=[rows.place(number) for number in range(min(SHOWN, rows.trained))],
        first_held_out=[rows.place(number) for number in range(rows.trained, min(rows.trained + SHOWN, len(rows)))],
        found=sorted(found, key=lambda one: _RANK[one.level]),
        scripts=scripts.shares(),
    )
