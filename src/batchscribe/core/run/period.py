"""Report of a period, by run and by day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta

import msgspec

from batchscribe.core.decide.baselines import Baseline
from batchscribe.core.decide.fixed import CostBasis, FixedCosts
from batchscribe.core.run.engine_time import make_engine_time
from batchscribe.core.run.report import Totals, totals
from batchscribe.core.run.runs import Run
from batchscribe.core.run.session_costs import SessionCost, SessionShare, sum_by_session
from batchscribe.core.run.usage import History, Usage, compare_bill, make_usage, sum_arrived_hours

_HOUR = timedelta(hours=1)
_DAY_HOURS = 24.0


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a report; `cost` is an upper bound in dollars."""

    run: str
    created: datetime
    status: str
    type: str
    chunks_done: int
    chunks_failed: int
    audio_hours: float
    billed_hours: float
    rate: float
    rate_source: str
    rate_as_of: str
    cost: float
    cost_micros: int
    load_seconds: float | None
    busy_share: float | None
    """Shares of the engines' time after loading; None if no worker reported it."""
    starved_share: float | None
    blocked_share: float | None
    to_blame: tuple[str, ...]
    flags: dict[str, int]
    timeline: dict[str, float]
    """Seconds of each phase, in order."""
    usage: Usage


class DayRow(msgspec.Struct, frozen=True, kw_only=True):
    """The runs that were settled on one UTC day; `cost` is an upper bound in dollars."""

    day: str
    runs: int
    starts: int
    chunks_done: int
    chunks_failed: int
    audio_hours: float
    billed_hours: float
    cost: float
    cost_micros: int
    gpu_share: float
    """Billed hours as a part of 24 h."""
    arrived_hours: float | None
    """Audio that arrived on the day; None before the first recorded check."""
    queue_hours: float | None
    """Arrived minus transcribed audio: the backlog's growth."""
    usage: Usage


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """Runs settled in a period or open at its end, with totals."""

    since: datetime
    until: datetime
    runs: tuple[ReportRow, ...]
    totals: Totals
    fixed_costs: FixedCosts | None = None
    """None if they cannot be read."""
    days: tuple[DayRow, ...]
    """Days of the period with a settled run or an arrival."""
    sessions: tuple[SessionCost, ...]
    """Sessions that settled runs transcribed, the most expensive first."""
    runs_without_sessions: int
    """Settled runs with transcripts of an earlier version, which recorded no sessions."""
    cost_without_session_micros: int
    """Part of the cost in no session: of those runs, and of runs without a transcript."""
    usage: Usage
    recorded_hours: float
    """Length of the period, from the first record in it on."""
    gpu_share: float | None
    """Billed hours as a part of the recorded ones; None without these."""
    baselines: tuple[Baseline, ...]
    """Costs of the same audio otherwise; empty if no run had a price."""


def period_of(
    runs: Sequence[Run],
    since: datetime,
    until: datetime,
    costs: CostBasis | None = None,
    history: History | None = None,
    *,
    shares: Sequence[SessionShare] = (),
) -> Period:
    """The report of a period. `history`: for waits, arrivals and baselines; `shares`: of these runs."""
    records, sums, divided = history or History(), totals(runs), {share.run for share in shares}
    hours = _measure_recorded(runs, since, until, records)
    return Period(
        since=since,
        until=until,
        runs=tuple(_make_row(run, records) for run in runs),
        totals=sums,
        fixed_costs=costs.fixed_costs() if costs else None,
        days=tuple(_make_days(runs, since.date(), records)),
        sessions=sum_by_session(shares),
        runs_without_sessions=sum(
            not run.open and run.chunks_done > 0 and run.id not in divided for run in runs
        ),
        cost_without_session_micros=sums.cost_micros - sum(share.cost_micros for share in shares),
        usage=make_usage(runs, records),
        recorded_hours=hours,
        gpu_share=sums.billed_hours / hours if hours else None,
        baselines=compare_bill(runs, records, hours),
    )


def _measure_recorded(runs: Sequence[Run], since: datetime, until: datetime, history: History) -> float:
    begins = [run.created for run in runs] + ([history.begun] if history.begun else [])
    return max(0.0, (until - max(since, min(begins, default=until))) / _HOUR)


def _make_days(runs: Sequence[Run], first: date, history: History) -> Iterator[DayRow]:
    arrived = sum_arrived_hours(runs, history)
    settled: dict[date, list[Run]] = {}
    for run in runs:
        if run.settled and not run.open:
            settled.setdefault(run.settled.date(), []).append(run)
    begun = history.begun.date() if history.begun else date.max
    for day in sorted({*settled, *(day for day in arrived if day >= max(first, begun))}):
        yield _make_day(day, settled.get(day, []), arrived.get(day, 0.0) if day >= begun else None, history)


def _make_day(day: date, runs: Sequence[Run], arrived: float | None, history: History) -> DayRow:
    sums = totals(runs)
    return DayRow(
        day=day.isoformat(),
        runs=sums.runs,
        starts=sums.starts,
        chunks_done=sums.chunks_done,
        chunks_failed=sums.chunks_failed,
        audio_hours=sums.audio_hours,
        billed_hours=sums.billed_hours,
        cost=sums.cost,
        cost_micros=sums.cost_micros,
        gpu_share=sums.billed_hours / _DAY_HOURS,
        arrived_hours=arrived,
        queue_hours=None if arrived is None else arrived - sums.audio_hours,
        usage=make_usage(runs, history),
    )


def _make_row(run: Run, history: History) -> ReportRow:
    work = make_engine_time(run.worked)
    return ReportRow(
        run=run.id,
        created=run.created,
        status=(run.outcome if run.outcome and not run.open else run.state).value,
        type=run.instance_type or run.provider,
        chunks_done=run.chunks_done,
        chunks_failed=run.chunks_failed,
        audio_hours=run.audio_seconds / 3600,
        billed_hours=run.billed_seconds / 3600,
        rate=run.rate.per_hour.dollars,
        rate_source=run.rate.source,
        rate_as_of=run.rate.as_of,
        cost=run.cost.dollars,
        cost_micros=run.cost.micros,
        load_seconds=work.load_seconds if work else None,
        busy_share=work.busy_share if work else None,
        starved_share=work.starved_share if work else None,
        blocked_share=work.blocked_share if work else None,
        to_blame=work.to_blame if work else (),
        flags=work.flags if work else {},
        timeline=run.timeline,
        usage=make_usage([run], history),
    )
