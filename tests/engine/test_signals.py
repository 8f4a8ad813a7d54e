"""Ctrl-C and SIGTERM, with real signals to this process."""

import signal

import pytest

from tunewright.engine.signals import StopRequest, catch_stop_signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_only_asks(name: str) -> None:
    with catch_stop_signals() as stop:
        assert not stop
        signal.raise_signal(signal.Signals[name])
        assert stop
        assert stop.signal_name == name


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_after_a_request_ends_at_once_and_keeps_the_first_name(name: str) -> None:
    with catch_stop_signals() as stop:
        signal.raise_signal(signal.Signals[name])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal_name == name


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_further_sigterm_only_asks_again(name: str) -> None:
    """`tunewright stop` twice, or by two people: the checkpoint that was promised is still written."""
    with catch_stop_signals() as stop:
        signal.raise_signal(signal.Signals[name])
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal_name == name


def test_earlier_handlers_come_back_whatever_happens() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(RuntimeError, match="within"), catch_stop_signals():
        fail()
    assert [signal.getsignal(number) for number in numbers] == before


def fail() -> None:
    raise RuntimeError("within")


def test_requests_are_not_shared() -> None:
    with catch_stop_signals() as first:
        signal.raise_signal(signal.SIGTERM)
    with catch_stop_signals() as second:
        assert first
        assert not second
    assert not StopRequest()
