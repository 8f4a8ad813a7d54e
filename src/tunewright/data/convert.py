"""A data file of any kind -> JSON lines in another form, exactly or not at all.

tunewright data convert rows.json rows.jsonl --to openai
"""

from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from tunewright.config.schema import SourceConfig
from tunewright.data.columns import SAMPLE, Format, Layout, choose_layout
from tunewright.data.examples import Place
from tunewright.data.formats import read_example
from tunewright.data.formats_write import WRITERS, write_row
from tunewright.data.read import read_rows
from tunewright.data.suggest import nearest
from tunewright.data.values import BadRow
from tunewright.data.write import write_lines
from tunewright.errors import UsageError
from tunewright.models.cache import Notify, to_stderr


@dataclass(slots=True)
class Converted:
    """What was written: how the rows were read, how many there are, and columns of theirs that held something else."""

    layout: Layout
    rows: int = 0
    unread: dict[str, Place] = field(default_factory=dict)


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
    rows = read_rows(source, Path.cwd(), key, notify)
    first = list(islice(rows, SAMPLE))
    layout = choose_layout([row for row, _ in first], source, "pt" if wanted == "text" else "sft", key)
    converted = Converted(layout)
    read = set(layout.columns.values())
    texts: dict[str, bool] = {}  # whether a written column holds text; one that holds turns too would not be read again
    with write_lines(target, replace) as write:
        for row, place in chain(first, rows):
            try:
                written = write_row(read_example(row, layout, None, place), wanted)
            except BadRow as bad:
                raise UsageError(f"{place}: {bad}; nothing is written") from None
            for name, value in written.items():
                if value is not None and texts.setdefault(name, isinstance(value, str)) != isinstance(value, str):
                    mixed = f"{wanted} would need text in the column {name} of some rows and turns in others"
                    raise UsageError(f"{place}: {mixed}, use openai; nothing is written")
            write(written)
            converted.rows += 1
            for name, value in row.items():
                if name not in read and value not in (None, "", [], {}):
                    converted.unread.setdefault(name, place)
    return converted


def _form(name: str) -> Format:
    for form in WRITERS:
        if form == name:
            return form
    raise UsageError(f"--to: there is no form {name!r}; known are {', '.join(WRITERS)}{nearest(name, WRITERS)}")
