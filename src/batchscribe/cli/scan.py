"""`scan`: the backlog, by session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from batchscribe.cli.app import App, json_option, pass_app, print_json, source_option
from batchscribe.cli.terminal.layout import Column, print_table
from batchscribe.controller.sessions import known_unreadable
from batchscribe.core.figures import format_count, format_size, format_sizes
from batchscribe.core.redaction import printable
from batchscribe.core.run.engine_time import flag_text, sum_engine_time
from batchscribe.core.scan.backlog import Backlog, SessionScan, summarise
from batchscribe.core.scan.chunks import passed_over_text, show_session
from batchscribe.errors import BatchscribeError
from batchscribe.wiring.process import open_clock
from batchscribe.wiring.scanners import explain_empty, open_scanner
from batchscribe.wiring.seams import open_ledger

COUNTS = ("pending", "waiting", "done", "stale", "quarantined")
"""Counts of chunks in a Backlog."""
KEPT = frozenset({"pending", "done"})
"""Columns of every table, however narrow."""
EVER = datetime.min.replace(tzinfo=UTC)
NAMED = 20
"""Maximum number of unreadable transcripts in the summary; `--json` lists all."""
SHOWN = 50
"""Maximum number of rows; `--all` and `--json` show every session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """Counts of one session, and bytes of its pending chunks."""

    session: str
    pending: int
    waiting: int
    done: int
    stale: int
    quarantined: int
    empty: int
    unreadable: tuple[str, ...]
    bytes: int
    oldest: datetime | None
    live: bool
    complete: bool

    @property
    def unfinished(self) -> bool:
        work = self.pending or self.waiting or self.stale or self.quarantined or self.unreadable
        return bool(work or self.live)


@click.command()
@source_option
@click.option("--all", "everything", is_flag=True, help="Show every session, not only those with work.")
@json_option
@pass_app
def scan(app: App, *, everything: bool, as_json: bool) -> None:
    """The backlog, by session: what is pending, done, stale or quarantined."""
    unreadable, flags = _read_ledger(app)
    scanner = replace(open_scanner(app.settings), unreadable=unreadable)
    kept: list[SessionRow] = []
    backlog = summarise(
        _collect_rows(scanner.sessions(), kept), lambda: scanner.odd_keys, lambda: scanner.passed_over
    )
    now = open_clock().now()
    if as_json:
        print_json(build_document(app.settings.source, backlog, kept, now) | {"flags": flags})
        return
    rows = kept if everything else [row for row in kept if row.unfinished][:SHOWN]
    if rows:
        print_table(app.console, _build_columns(rows, now))
    named = [key for row in kept for key in row.unreadable]
    for line in list_summary(backlog, now, hidden=len(kept) - len(rows), unreadable=named, flags=flags):
        app.console.print(line, markup=False)
    if empty := explain_empty(app.settings, backlog):
        app.console.print(empty, markup=False)


def _read_ledger(app: App) -> tuple[dict[str, str], dict[str, int]]:
    """Returns unreadable transcripts of earlier runs, and the count of each flag.

    Both are empty if the ledger cannot be opened: `scan` does not require it.
    """
    try:
        with open_ledger(app.settings, remember=False) as ledger:
            return known_unreadable(ledger), sum_engine_time(run.worked for run in ledger.runs(EVER)).flags
    except BatchscribeError:
        return {}, {}


def build_document(source: str, backlog: Backlog, rows: list[SessionRow], now: datetime) -> dict[str, Any]:
    """JSON document of `scan --json`; sizes in bytes, ages in seconds."""
    return {
        "source": source,
        "at": now,
        **{name: getattr(backlog, name) for name in COUNTS},
        "troubled": backlog.troubled,
        "empty": backlog.empty,
        "bytes": backlog.pending_bytes,
        "oldest": backlog.oldest,
        "oldest_age_seconds": _age_seconds(backlog.oldest, now),
        "odd_keys": backlog.odd_keys,
        "passed_over": backlog.passed_over,
        "sessions": [asdict(row) | {"oldest_age_seconds": _age_seconds(row.oldest, now)} for row in rows],
    }


def _build_columns(rows: list[SessionRow], now: datetime) -> list[Column]:
    sessions = [row.session + (" (live)" if row.live else "") for row in rows]
    counts = {name: [getattr(row, name) for row in rows] for name in COUNTS} | {
        "unreadable": [len(row.unreadable) for row in rows]
    }
    size = 1 if any(row.bytes for row in rows) else 3
    return [
        Column("session", sessions, folded=24),
        *(_count_column(name, column) for name, column in counts.items()),
        Column("pending size", format_sizes([row.bytes for row in rows]), right=True, optional=size),
        Column(
            "oldest",
            [format_span(now - row.oldest) if row.oldest else "-" for row in rows],
            optional=1,
            right=True,
        ),
    ]


def _count_column(name: str, counts: Sequence[int]) -> Column:
    """A column of counts; a narrow table leaves out zeros early."""
    cells = [str(count) if count else "-" for count in counts]
    empty = 2 if name in COUNTS else 3
    return Column(name, cells, optional=0 if name in KEPT or any(counts) else empty, right=True)


def list_summary(
    backlog: Backlog, now: datetime, *, hidden: int, unreadable: Sequence[str], flags: Mapping[str, int]
) -> Iterator[str]:
    if hidden:
        yield f"{format_count(hidden, 'session')} not shown; `--all` shows every session"
    oldest = f", the oldest {format_span(now - backlog.oldest)} old" if backlog.oldest else ""
    yield f"{backlog.pending} pending ({format_size(backlog.pending_bytes)}){oldest}"
    counts = [f"{getattr(backlog, name)} {name}" for name in COUNTS[1:]]
    counts += [f"{backlog.troubled} failed before", f"{backlog.empty} empty"]
    yield ", ".join(counts) + f", in {format_count(backlog.sessions, 'session')}"
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        yield (
            f"Transcripts that cannot be read: {', '.join(map(printable, unreadable[:NAMED]))}{more}; "
            "`batchscribe why KEY` shows the reason, `batchscribe redo KEY` transcribes it again"
        )
    if counted := flag_text(flags):
        yield f"Flags of transcripts, of all runs in the ledger: {counted}"
    if backlog.passed_over:
        yield passed_over_text(backlog.passed_over)
    if backlog.odd_keys:
        yield "Unusual keys, listed by a slower method: " + ", ".join(map(printable, backlog.odd_keys))


def format_span(age: timedelta) -> str:
    """Formats a time span in its two largest units."""
    seconds = max(0, int(age.total_seconds()))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds % 60:02} s"


def _collect_rows(scans: Iterator[SessionScan], kept: list[SessionRow]) -> Iterator[SessionScan]:
    """Yields the sessions, and keeps only a row of each."""
    for scan in scans:
        kept.append(_to_row(scan))
        yield scan


def _to_row(scan: SessionScan) -> SessionRow:
    return SessionRow(
        session=show_session(scan.session),
        pending=len(scan.pending),
        waiting=len(scan.waiting),
        done=scan.done,
        stale=len(scan.stale),
        quarantined=scan.quarantined,
        empty=scan.empty,
        unreadable=scan.unreadable,
        bytes=sum(chunk.size for chunk in scan.pending),
        oldest=scan.oldest,
        live=scan.live,
        complete=scan.complete,
    )


def _age_seconds(oldest: datetime | None, now: datetime) -> float | None:
    return round((now - oldest).total_seconds(), 1) if oldest else None
