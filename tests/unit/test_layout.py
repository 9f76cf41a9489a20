"""Widths of tables and labelled lines, and numbers as text."""

from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.cli.app import App
from batchscribe.cli.scan import SessionRow, _build_columns
from batchscribe.cli.terminal.layout import Column, choose_columns, describe_finding, fold
from batchscribe.core.decide.money import Usd
from batchscribe.core.figures import format_clock, format_count, format_hours, format_sizes
from batchscribe.core.run.host import failed, passed
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
        *("session", "pending", "done", "quarantined", "pending size", "oldest"),
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


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("Run r1: completed in a while", ["Run r1: completed in a", "  while"]),
        ("  ok  disk  some space is free", ["  ok  disk  some space is", "            free"]),
        ("    deep text without a label", ["    deep text without a", "      label"]),
        ("short", ["short"]),
    ],
)
def test_folded_lines_hang_below_their_text(line: str, folded: list[str]) -> None:
    assert fold(line, 26).splitlines() == folded


def test_every_line_of_a_console_is_folded_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    App().console.print("first line\n  Audio:  " + "word " * 8, markup=False)
    assert capsys.readouterr().out.splitlines() == [
        "first line",
        "  Audio:  word word word word word word",
        "          word word",
    ]


def test_a_fix_that_is_too_long_is_below_its_finding_and_a_command_can_still_be_pasted() -> None:
    finding = failed("quota", "0 vCPUs", "aws service-quotas request --desired-value 4")
    assert describe_finding(finding, 200) == (
        "FAIL  quota              0 vCPUs -> aws service-quotas request --desired-value 4"
    )
    assert describe_finding(finding, 40).splitlines() == [
        "FAIL  quota              0 vCPUs",
        "      -> aws service-quotas request \\",
        "         --desired-value 4",
    ]
    assert "->" not in describe_finding(passed("quota", "enough"), 10)


def test_a_column_has_one_unit() -> None:
    assert format_sizes([0, 5_000, 1_234_000_000]) == ["0.0 GB", "<0.1 GB", "1.2 GB"]
    assert format_sizes([999]) == ["999 B"]
    assert format_sizes([]) == []
    assert [format_clock(seconds) for seconds in (0, 21.4, 90_061)] == ["0:00:00", "0:00:21", "25:01:01"]


def test_a_pipe_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    App().console.print("word " * 5000)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "$0.00"),
        (31, "$0.000031"),
        (880, "$0.00088"),
        (8_800, "$0.0088"),
        (263_000, "$0.26"),
        (100_423_700, "$100.42"),
        (-500_000, "-$0.50"),
    ],
)
def test_small_amounts_keep_two_significant_digits(micros: int, text: str) -> None:
    assert str(Usd(micros)) == text


def test_counts_and_hours_have_their_units() -> None:
    assert [format_count(count, "chunk") for count in (0, 1, 2)] == ["0 chunks", "1 chunk", "2 chunks"]
    assert [format_hours(seconds) for seconds in (0, 21, 90, 360, 5400)] == [
        *("0 s", "21 s", "1.5 min", "0.10 h", "1.50 h"),
    ]
