"""A request to stop: the first signal is noted, the second Ctrl-C is not held back."""

from __future__ import annotations

import signal
import threading

import pytest

from internvl.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_only_asks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.requested
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_changes_no_handler() -> None:
    handlers = []

    def enter() -> None:
        with StopRequest() as stop:
            handlers.append((signal.getsignal(signal.SIGINT), stop.requested))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [(before, False)]
