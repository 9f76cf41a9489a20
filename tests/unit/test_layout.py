"""Widths of tables and labelled lines, and numbers as text."""

from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.cli.app import App
from batchscribe.cli.layout import Column, choose_columns
from batchscribe.cli.scan import SessionRow, _build_columns
from batchscribe.core.decide.money import Usd
from batchscribe.core.figures import format_count, format_hours
from support.values import NOW


def columns_of(session: str, *, pending: int, width: int) -> list[str]:
    row = SessionRow(
        session=session,
        pending=pending,
        waiting=0,
        done=120,
        stale=0,
        quarantined=0,
        empty=0,
        unreadable=(),
        bytes=10**9,
        oldest=NOW - timedelta(days=3),
        live=False,
        complete=False,
    )
    return [column.name for column in choose_columns(_build_columns([row], NOW), width)]


def test_a_narrow_table_leaves_out_columns_without_counts_first() -> None:
    assert columns_of("a" * 60, pending=7, width=80) == [
        *("session", "pending", "done", "unreadable", "bytes", "oldest"),
    ]
    assert "stale" in columns_of("a" * 60, pending=7, width=200)


def test_columns_that_are_not_optional_stay() -> None:
    columns = [Column("id", ["x" * 50]), Column("note", ["y" * 50], optional=1)]
    assert [column.name for column in choose_columns(columns, 40)] == ["id"]


def test_labelled_text_is_folded_between_words_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    App().print_labelled("Timer", "none: `batchscribe install systemd` or install-cron", indent=11)
    assert capsys.readouterr().out.splitlines() == [
        "Timer       none: `batchscribe",
        "            install systemd`",
        "            or install-cron",
    ]


def test_a_pipe_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    App().console.print("word " * 200)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "$0.00"),
        (31, "$0.000031"),
        (880, "$0.00088"),
        (8_800, "$0.0088"),
        (263_000, "$0.2630"),
        (100_423_700, "$100.42"),
        (-500_000, "-$0.5000"),
    ],
)
def test_small_amounts_keep_two_significant_digits(micros: int, text: str) -> None:
    assert str(Usd(micros)) == text


def test_counts_and_hours_have_their_units() -> None:
    assert [format_count(count, "chunk") for count in (0, 1, 2)] == ["0 chunks", "1 chunk", "2 chunks"]
    assert [format_hours(seconds) for seconds in (0, 21, 90, 360, 5400)] == [
        *("0 s", "21 s", "1.5 min", "0.10 h", "1.50 h"),
    ]
