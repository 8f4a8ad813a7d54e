"""Amounts in words."""

import pytest

from tunewright.units import duration, gib


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (7.6, "8 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3599.6, "1 h 00 min"), (7620, "2 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_gib() -> None:
    assert gib(1.5 * 2**30) == "1.5 GiB"
