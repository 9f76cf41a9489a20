"""Runs: a table, and one page for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchscribe.core.run.bill_parts import BilledParts
from batchscribe.core.run.cost_block import cost_block
from batchscribe.core.run.report import RunEvent, RunReport, build
from batchscribe.core.run.timeline import AUDIO
from batchscribe.dashboard.context import Context, page
from batchscribe.errors import ObjectNotFoundError
from batchscribe.wiring.costs import read_cost_basis
from batchscribe.wiring.process import LogLine, find_log, parse_line, read_log_end

PAGE = 50
"""Runs on a page."""
LOG_BYTES = 64 * 1024
"""Of the end of a log that is shown."""


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A phase on a time axis, in percentages of the whole."""

    name: str
    seconds: float
    begin: float
    length: float
    row: int = 0


def routes(context: Context) -> list[Route]:
    """Table and pages of runs."""
    return [
        Route("/runs", partial(list_runs, context)),
        Route("/runs/{run}", partial(show_run, context)),
    ]


def list_runs(context: Context, request: Request) -> Response:
    """The table: `?outcome=` filters, `?page=` counts from 1."""
    outcome = request.query_params.get("outcome", "")
    asked = request.query_params.get("page", "1")
    number = max(1, int(asked)) if asked.isascii() and asked.isdigit() and len(asked) < 7 else 1
    with context.open_ledger() as ledger:
        counts = ledger.outcomes()
        runs = ledger.run_page(outcome, skip=(number - 1) * PAGE, count=PAGE)
    total = counts.get(outcome, 0) if outcome else sum(counts.values())
    return page(
        "runs.html",
        request,
        runs=runs,
        counts=counts,
        outcome=outcome,
        number=number,
        pages=max(1, -(-total // PAGE)),
        total=total,
    )


def show_run(context: Context, request: Request) -> Response:
    """One run: phases, chunks, costs, events and log."""
    name = request.path_params["run"]
    with context.open_ledger() as ledger:
        run = ledger.run(name)
        if run is None:
            raise HTTPException(404)
        events = ledger.events(name)
        costs = read_cost_basis(context.settings, ledger, run.settled or run.created)
    report = build(run, events=events, costs=costs)
    lines, cut = read_lines(context.settings.log_dir, run.id)
    return page(
        "run.html",
        request,
        run=run,
        report=report,
        costs=cost_block(report) if run.started else [],
        spans=list_spans(report),
        shares=list_shares(report.billed),
        engine=list_engine_shares(report),
        events=list_changes(events),
        lines=lines,
        cut=cut,
        log_bytes=LOG_BYTES,
    )


def list_changes(events: Sequence[RunEvent]) -> list[RunEvent]:
    """Events that changed the state or have a note.

    A step that had to wait is recorded, too.
    """
    before = ["", *(each.state for each in events)]
    return [each for each, state in zip(events, before, strict=False) if each.note or each.state != state]


def list_spans(report: RunReport) -> list[PhaseSpan]:
    """Phases of the paid time, in order.

    Audio, which is beside the load, has a row of its own.
    """
    timeline = report.performance.timeline or report.performance.phases
    whole = sum(seconds for name, seconds in timeline.items() if name != AUDIO) or 1.0
    spans, at, loading = list[PhaseSpan](), 0.0, 0.0
    for name, seconds in timeline.items():
        shown = name.replace("_", " ")
        begin = loading if name == AUDIO else at
        length = min(seconds, whole - begin)
        spans.append(PhaseSpan(shown, seconds, 100 * begin / whole, 100 * length / whole, int(name == AUDIO)))
        if name == "manifest":
            loading = at + seconds
        at += 0.0 if name == AUDIO else seconds
    return spans


def list_shares(billed: BilledParts | None) -> list[PhaseSpan]:
    """Parts of the bill as bars, without empty ones."""
    if billed is None:
        return []
    parts = {name: getattr(billed, name) for name in billed.cost_micros}
    return lay_out({name: seconds for name, seconds in parts.items() if seconds})


def list_engine_shares(report: RunReport) -> list[PhaseSpan]:
    """The engine's time after loading: busy, starved, blocked, and the rest."""
    work = report.work
    if work is None or not work.after_load_seconds:
        return []
    parts = {"busy": work.busy_seconds, "starved": work.starved_seconds, "blocked": work.blocked_seconds}
    rest = work.after_load_seconds - sum(parts.values())
    return lay_out(parts | ({"other": rest} if rest > 0 else {}))


def lay_out(parts: dict[str, float]) -> list[PhaseSpan]:
    """Lays the parts one after the other."""
    whole, at, spans = sum(parts.values()) or 1.0, 0.0, list[PhaseSpan]()
    for name, seconds in parts.items():
        spans.append(PhaseSpan(name, seconds, 100 * at / whole, 100 * seconds / whole))
        at += seconds
    return spans


def read_lines(folder: Path, run: str) -> tuple[list[LogLine], bool]:
    """(end of a run's log, True if there is more)."""
    try:
        lines, cut = read_log_end(find_log(folder, run), LOG_BYTES)
    except (ObjectNotFoundError, OSError):
        return [], False
    return [parse_line(line) for line in lines], cut
