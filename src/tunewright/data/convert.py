"""A data file of any kind -> JSON lines in another form: every example exactly, or nothing at all.

What is part of no example, such as columns of ids or a key of turns that has no meaning here, is named.

tunewright data convert rows.json rows.jsonl --to openai
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.config.schema import SourceConfig
from tunewright.data.account import SourceAccount, SourceReport
from tunewright.data.columns import Format
from tunewright.data.examples import Place
from tunewright.data.find import find_named_files
from tunewright.data.formats import read_example, unread_keys
from tunewright.data.formats_write import WRITERS, write_row
from tunewright.data.load import Source, read_sources
from tunewright.data.suggest import nearest
from tunewright.data.values import BadRow
from tunewright.data.write import write_lines
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr


@dataclass(slots=True)
class Converted:
    """What was written: how the rows were read, and what else stood in them.

    `unread` are keys of turns that were not carried over, each with how many turns have it and the place of the first;
    columns that were not are in the reports.
    """

    reports: list[SourceReport] = field(default_factory=list)
    unread: dict[str, tuple[int, Place]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(report.rows for report in self.reports)

    def lost(self) -> Iterator[tuple[str, int, Place]]:
        """What was not carried over: in words, how often it stands there, and where first."""
        for report in self.reports:
            yield from ((f"column {name}", count, first) for name, (count, first) in report.ignored.items())
        for name, (count, first) in self.unread.items():
            shown = name.encode(errors="backslashreplace").decode()  # JSON can write half of a character in a key
            yield f"key {shown}", count, first


def convert_rows(
    source: SourceConfig,
    target: Path,
    form: str,
    replace: bool = False,
    key: str = "data.train",
    notify: Notify = to_stderr,
) -> Converted:
    """Write every row of a source in the form called `form`.

    A relative path starts at the working directory; `key` is the config key that messages call the source by. Raises
    UsageError for a form that is not known, a row that cannot be read and one that the form cannot hold; then nothing
    is written.
    """
    wanted = _form(form)
    whole = Source(0, key, source, find_named_files(source, Path.cwd(), key, notify), held_out=False)
    converted = Converted()
    texts: dict[str, bool] = {}  # whether a written column holds text; one that holds turns too would not be read again
    with write_lines(target, replace) as write:
        for item in read_sources([whole], None, notify):
            if isinstance(item, SourceAccount):
                converted.reports.append(item.report)
                continue
            for row, place in zip(item.rows, item.places, strict=True):
                try:
                    example = read_example(row, item.layout, None, place)
                except BadRow as bad:
                    raise UsageError(f"{place}: {bad}; mend or remove that row: nothing is written") from None
                try:
                    written = write_row(example, wanted)
                except BadRow as bad:
                    raise UsageError(f"{place}: {bad}; nothing is written") from None
                for name, value in written.items():
                    if value is not None and texts.setdefault(name, isinstance(value, str)) != isinstance(value, str):
                        mixed = f"{wanted} would need text in the column {name} of some rows and turns in others"
                        raise UsageError(f"{place}: {mixed}, use openai; nothing is written")
                write(written)
                for name in unread_keys(row, item.layout):
                    count, first = converted.unread.get(name, (0, place))
                    converted.unread[name] = count + 1, first
            converted.reports[item.account].rows += len(item.rows)
    return converted


def _form(name: str) -> Format:
    for form in WRITERS:
        if form == name:
            return form
    raise UsageError(f"--to: there is no form {name!r}; known are {', '.join(WRITERS)}{nearest(name, WRITERS)}")
