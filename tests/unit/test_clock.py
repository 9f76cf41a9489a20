from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from batchscribe.adapters.clock import Interrupts
from batchscribe.errors import InterruptedRunError


@pytest.fixture
def ignored() -> Iterator[signal.Signals]:
    """A signal that this process ignores, as under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


def test_a_signal_that_is_ignored_stays_ignored(ignored: signal.Signals) -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(ignored)
        assert interrupts.signal is None
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_every_signal_to_end_is_heard_and_given_back() -> None:
    before = [signal.getsignal(number) for number in Interrupts.SIGNALS]
    for number in Interrupts.SIGNALS:
        with pytest.raises(InterruptedRunError, match=number.name), Interrupts():
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in Interrupts.SIGNALS] == before
