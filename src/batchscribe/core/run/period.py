"""Report of a period, by run and by day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta

import msgspec

from batchscribe.core.decide.baselines import Baseline
from batchscribe.core.decide.fixed import CostBasis, FixedCosts, RunCosts
from batchscribe.core.run.bill_parts import BilledParts, split_bill
from batchscribe.core.run.engine_time import make_engine_time
from batchscribe.core.run.report import Totals, measure_performance, run_costs, totals
from batchscribe.core.run.runs import Run
from batchscribe.core.run.session_costs import SessionCost, SessionShare, sum_by_session
from batchscribe.core.run.usage import History, Usage, compare_bill, make_usage, sum_arrived_hours

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
UNDIVIDED = "undivided"
"""Part of a cost whose run was not measured."""
NESTED = frozenset({"usage", "billed", "other_costs", "cost_parts_micros", "other_costs_micros"})
"""Fields of rows that are no single value; a CSV has the usage in columns of its own, and not the others."""


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a report; `cost` is an upper bound in dollars."""

    run: str
    created: datetime
    settled: datetime | None
    """None while it is open."""
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
    setup_seconds: float | None
    """From the start request to the first window."""
    audio_per_second: float | None
    """Audio seconds for each second of work."""
    load_seconds: float | None
    busy_share: float | None
    """Shares of the engines' time after loading; None if no worker reported it."""
    starved_share: float | None
    blocked_share: float | None
    to_blame: tuple[str, ...]
    flags: dict[str, int]
    timeline: dict[str, float]
    """Seconds of each phase, in order."""
    billed: BilledParts | None
    """None if not measured."""
    other_costs: RunCosts | None
    """Costs beside the GPU's; None without readable prices."""
    usage: Usage


class DayRow(msgspec.Struct, frozen=True, kw_only=True):
    """The runs settled on a UTC day; `cost` is an upper bound."""

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
    """Time with a GPU up as a part of the day's recorded time, at most 1."""
    arrived_hours: float | None
    """Audio that arrived on the day; None before the first recorded check."""
    queue_hours: float | None
    """Arrived minus transcribed audio: the backlog's growth."""
    cost_parts_micros: dict[str, int]
    """The cost by purpose of the billed time: boot, load, work, idle, minimum, undivided."""
    other_costs_micros: dict[str, int]
    """Costs of these runs beside the GPU's: address, requests."""
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
    """Time with a GPU up as a part of the recorded time; None without that."""
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
    """The report of a period; `history` and `shares` are of its runs."""
    records, sums, divided = history or History(), totals(runs), {share.run for share in shares}
    begin = _find_begin(runs, since, until, records)
    hours = (until - begin) / _HOUR
    rows = tuple(_make_row(run, records, costs) for run in runs)
    return Period(
        since=since,
        until=until,
        runs=rows,
        totals=sums,
        fixed_costs=costs.fixed_costs() if costs else None,
        days=tuple(_make_days(runs, rows, begin, until, records)),
        sessions=sum_by_session(shares),
        runs_without_sessions=sum(
            not run.open and run.chunks_done > 0 and run.id not in divided for run in runs
        ),
        cost_without_session_micros=sums.cost_micros - sum(share.cost_micros for share in shares),
        usage=make_usage(runs, records),
        recorded_hours=hours,
        gpu_share=min(1.0, _measure_up_hours(runs) / hours) if hours else None,
        baselines=compare_bill(runs, records, hours),
    )


def _find_begin(runs: Sequence[Run], since: datetime, until: datetime, history: History) -> datetime:
    """Time of the first record in the period; its end without one."""
    begins = [run.created for run in runs] + ([history.begun] if history.begun else [])
    return min(until, max(since, min(begins, default=until)))


def _make_days(
    runs: Sequence[Run], rows: Sequence[ReportRow], begin: datetime, until: datetime, history: History
) -> Iterator[DayRow]:
    arrived = sum_arrived_hours(runs, history)
    settled: dict[date, list[tuple[Run, ReportRow]]] = {}
    for run, row in zip(runs, rows, strict=True):
        if row.settled:
            settled.setdefault(row.settled.date(), []).append((run, row))
    begun = history.begun.date() if history.begun else date.max
    for day in sorted({*settled, *(day for day in arrived if day >= max(begin.date(), begun))}):
        midnight = datetime.combine(day, time(), UTC)
        hours = (min(until, midnight + _DAY) - max(begin, midnight)) / _HOUR
        came = arrived.get(day, 0.0) if day >= begun else None
        yield _make_day(day, hours, settled.get(day, []), came, history)


def _make_day(
    day: date,
    hours: float,
    settled: Sequence[tuple[Run, ReportRow]],
    arrived: float | None,
    history: History,
) -> DayRow:
    runs, rows = [run for run, _ in settled], [row for _, row in settled]
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
        # A run is billed on the day on which it was settled, also for the hours before.
        gpu_share=min(1.0, _measure_up_hours(runs) / hours) if hours > 0 else 0.0,
        arrived_hours=arrived,
        queue_hours=None if arrived is None else arrived - sums.audio_hours,
        cost_parts_micros=_sum_parts(rows),
        other_costs_micros=_sum_other_costs(rows),
        usage=make_usage(runs, history),
    )


def _measure_up_hours(runs: Iterable[Run]) -> float:
    """Hours in which a machine was up: several at once count once."""
    spans = sorted(
        (start.at, start.at + timedelta(seconds=run.billed_seconds_of(machine) - meter.shared_seconds))
        for run in runs
        for machine in run.machines
        if (start := (meter := machine.meter).idle_until or meter.start_requested)
    )
    hours, reached = 0.0, datetime.min.replace(tzinfo=UTC)
    for begin, end in spans:
        hours += max(timedelta(0), end - max(begin, reached)) / _HOUR
        reached = max(reached, end)
    return hours


def _sum_parts(rows: Iterable[ReportRow]) -> dict[str, int]:
    """The costs of runs by part; they add up to the cost."""
    sums = Counter[str]()
    for row in rows:
        sums.update(row.billed.cost_micros if row.billed else {UNDIVIDED: row.cost_micros})
    return {name: amount for name, amount in sums.items() if amount}


def _sum_other_costs(rows: Iterable[ReportRow]) -> dict[str, int]:
    sums = Counter[str]()
    for other in filter(None, (row.other_costs for row in rows)):
        sums.update({"address": other.address_micros or 0, "requests": other.requests_micros or 0})
    return {name: amount for name, amount in sums.items() if amount}


def _make_row(run: Run, history: History, costs: CostBasis | None) -> ReportRow:
    work = make_engine_time(run.worked)
    performance = measure_performance(run)
    return ReportRow(
        run=run.id,
        created=run.created,
        settled=None if run.open else run.settled,
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
        setup_seconds=performance.setup,
        audio_per_second=performance.audio_per_second,
        load_seconds=work.load_seconds if work else None,
        busy_share=work.busy_share if work else None,
        starved_share=work.starved_share if work else None,
        blocked_share=work.blocked_share if work else None,
        to_blame=work.to_blame if work else (),
        flags=work.flags if work else {},
        timeline=run.timeline,
        billed=None if run.open else split_bill(run),
        other_costs=None if run.open else run_costs(run, costs),
        usage=make_usage([run], history),
    )
