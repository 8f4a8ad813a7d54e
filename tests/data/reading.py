"""Read a made file as a source of a config is read, for tests of the readers."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.config.schema import SourceConfig
from tunewright.data.examples import Place
from tunewright.data.read import read_rows
from tunewright.errors import UsageError


def read(path: Path, **settings: Any) -> list[tuple[dict[str, Any], Place]]:
    """All rows with their places."""
    return list(read_rows(SourceConfig(path=path.name, **settings), path.parent))


def complaint(path: Path, **settings: Any) -> str:
    """What is said of a file that is refused."""
    with pytest.raises(UsageError) as caught:
        read(path, **settings)
    return str(caught.value)
