"""Times on a terminal and elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from batchscribe.cli.app import App
from batchscribe.cli.logs import describe_line
from batchscribe.cli.terminal.times import show_times

SENTENCE = "paused until 2026-07-01 22:30 UTC; seen 2026-12-31 23:30:15 UTC"
LINE = '{"event": "gpu.started", "timestamp": "2026-07-01T22:30:05.123+00:00"}'


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


def test_times_are_local_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert show_times(SENTENCE) == "paused until 2026-07-02 00:30 CEST; seen 2027-01-01 00:30:15 CET"
    assert describe_line(LINE) == "2026-07-02 00:30:05 CEST gpu.started"
    App().console.print(SENTENCE)
    App().print_labelled("Paused", SENTENCE, indent=11)
    assert capsys.readouterr().out.count("2026-07-02 00:30 CEST") == 2


def test_digits_that_are_no_time_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    text = "9999-99-99 99:99 UTC 9999-12-31 23:59 UTC"
    assert show_times(text) == text


def test_times_are_utc_elsewhere() -> None:
    assert show_times(SENTENCE) == SENTENCE
    assert describe_line(LINE) == "2026-07-01 22:30:05 UTC gpu.started"
