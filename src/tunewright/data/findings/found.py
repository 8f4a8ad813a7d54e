"""What one look at the data found, as plain data: a sentence with numbers, what to do about it, and where first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tunewright.data.examples import Place

# fine: looked at, nothing is wrong. note: worth a look. warning: likely a mistake. error: training would go wrong.
Level = Literal["fine", "note", "warning", "error"]

SHOWN = 5  # places told of a kind
SHOWN_SAMPLES = 3
_SAMPLE_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class Sample:
    """A row in a few words; `other` is the row it is compared with."""

    place: Place
    text: str
    other: Place | None = None
    other_text: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """`name` is stable, for programs; `count` counts rows, or what the message says; `first` are the first places."""

    name: str
    level: Level
    message: str
    advice: str = ""
    count: int = 0
    first: Sequence[Place] = ()
    samples: Sequence[Sample] = ()


@dataclass(slots=True)
class Tally:
    """A count that remembers the first few."""

    count: int = 0
    first: list[Place] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, place: Place, text: str = "") -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(place)
        if text and len(self.samples) < SHOWN_SAMPLES:
            self.samples.append(Sample(place, shorten(text)))


def shorten(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 2 * _SAMPLE_CHARACTERS].split())
    return line if len(line) <= _SAMPLE_CHARACTERS else line[: _SAMPLE_CHARACTERS - 1] + "…"


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """`1 row`, `1,203 rows`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def percent(part: int, whole: int) -> str:
    """A share that never rounds to nothing or to all."""
    share = part / whole
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %").replace(".0 %", " %")
