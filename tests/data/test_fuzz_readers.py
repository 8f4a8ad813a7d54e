"""Ten minutes of damaged files of every kind; `python -m tests.fuzz_readers` runs for longer."""

import pytest

from tests.fuzz_readers import main


@pytest.mark.slow
def test_damaged_files_end_in_rows_or_a_sentence() -> None:
    assert main(minutes=10) == 0
