"""Reports of a run and of a period, with money in dollars.

GPU seconds are an upper bound (from the last poll before it ran to the first one after it stopped), so every
cost is "at most".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec

from batchscribe.core.decide.fixed import CostBasis, FixedCosts, RunCosts
from batchscribe.core.decide.hosted import Savings, make_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.figures import encode_json
from batchscribe.core.run.bill_parts import BilledParts, split_bill
from batchscribe.core.run.engine_time import EngineTime, make_engine_time, sum_engine_time
from batchscribe.core.run.meter import Moment
from batchscribe.core.run.runs import Machine, Run
from batchscribe.core.scan.backlog import Backlog

FORMAT = "batchscribe.report"
VERSION = 1
_HOUR = 3600.0


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A run entered `state`, or stayed there, at a time."""

    at: datetime
    state: str
    note: str = ""


class QueueSample(msgspec.Struct, frozen=True, kw_only=True):
    """Observations of a tick that held; `decision` is the reason's code."""

    at: datetime
    pending: int
    triggering: int
    waiting: int
    oldest: datetime | None
    decision: str
    sentence: str
    numbers: dict[str, float | int | str | None] = {}


class Timestamps(msgspec.Struct, frozen=True, kw_only=True):
    """Times of a run's events; None if not observed."""

    created: datetime
    deadline: datetime
    dispatched: datetime | None = None
    first_window: datetime | None = None
    work_ended: datetime | None = None
    settled: datetime | None = None


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """The backlog before the run, and the batch that the run took."""

    planned_chunks: int
    planned_audio_seconds: float
    sessions: int | None = None
    pending: int | None = None
    pending_bytes: int | None = None
    waiting: int | None = None
    done: int | None = None
    stale: int | None = None
    quarantined: int | None = None
    passed_over: dict[str, int] = {}
    """Sound files in unsupported formats, by extension."""
    oldest: datetime | None = None


_OBSERVED = Scan.__struct_fields__[2:]
"""Fields with their names in a backlog."""


class MachineBill(msgspec.Struct, frozen=True, kw_only=True):
    """One of several machines of a run; dollars are for reading."""

    name: str
    type: str
    market: str
    outcome: str
    """How its work ended early; empty if it did not."""
    seconds: float
    """Billed, at most."""
    rate: float
    rate_micros: int
    cost: float
    cost_micros: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU's bill; `cost` and `rate` are dollars for display."""

    provider: str
    instance: str
    type: str
    tried: tuple[str, ...]
    """Types for which the cloud had no capacity."""
    was_running: bool
    started_by_us: bool
    start: datetime | None
    running: datetime | None
    stop: datetime | None
    stopped: datetime | None
    seconds: float
    """Billed, at most."""
    cost: float
    cost_micros: int
    rate: float
    rate_micros: int
    source: str
    as_of: str
    machines: tuple[MachineBill, ...] = ()
    """If there are several; `type` and `rate` are then those of the last offer."""


class Transcription(msgspec.Struct, frozen=True, kw_only=True):
    done: int
    failed: int
    failures: dict[str, str] = {}
    """Reasons of the first failed chunks, by key."""
    audio_seconds: float


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Results from store and cloud, independent of the worker's reports."""

    complete: bool
    """Every chunk of the batch is done or quarantined."""
    gpu_seen_stopped: bool


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `phases` are the states of the run, by their names."""

    phases: dict[str, float]
    launch: str
    """Start of its workers: boot, ssh or local."""
    to_running: float | None
    """From the start request to the first poll that showed it running."""
    to_worker: float | None
    """From the start request to the worker's start."""
    setup: float | None
    """From the start request to the first window."""
    work: float | None
    """From the first window to the end of the work."""
    release: float | None
    """From the stop request to the poll that showed it stopped."""
    total: float | None
    audio_per_second: float | None
    """Audio seconds for each second of work."""
    timeline: dict[str, float] = {}
    """Phases of the paid time, in order, once it is settled; `audio` is beside `load`."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report of one run; written as `batch-reports/batch-….json`."""

    format: str = FORMAT
    version: int = VERSION
    run: str
    status: str
    """The outcome, or the state of a run without an outcome."""
    success: bool
    detail: str
    policy: str
    reason: str
    lock: str
    """Holder of the tick's lock: "PID timestamp"; empty if not recorded."""
    timestamps: Timestamps
    scan: Scan
    gpu: Gpu
    transcription: Transcription
    verification: Verification
    performance: Performance
    work: EngineTime | None = None
    """As reported by its workers; None if they reported nothing (yet)."""
    savings: Savings | None = None
    """None without audio."""
    billed: BilledParts | None = None
    """None if not measured."""
    other_costs: RunCosts | None = None
    """Of this run, beside the GPU's."""
    fixed_costs: FixedCosts | None = None
    queue: tuple[QueueSample, ...]
    """Ticks that held since the run before this one."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over settled runs; `cost` is dollars for reading."""

    runs: int
    starts: int
    chunks_done: int
    chunks_failed: int
    audio_hours: float
    billed_hours: float
    cost: float
    cost_micros: int
    cost_per_audio_hour: float | None
    unproductive_cost_micros: int = 0
    """Part of the cost: runs that transcribed nothing."""
    work: EngineTime | None = None
    savings: Savings | None = None


def build(
    run: Run,
    *,
    events: Iterable[RunEvent] = (),
    samples: Iterable[QueueSample] = (),
    backlog: Backlog | None = None,
    lock: str = "",
    costs: CostBasis | None = None,
) -> RunReport:
    """The report of a run in its current state.

    `backlog` is the one that its decision used. `costs`: for the costs beside the GPU's.
    """
    observed: dict[str, Any] = {name: getattr(backlog, name) for name in _OBSERVED} if backlog else {}
    success = bool(run.outcome and run.outcome.success)
    return RunReport(
        run=run.id,
        status=(run.outcome or run.state).value,
        success=success,
        detail=run.detail,
        policy=run.policy,
        reason=run.reason,
        lock=lock,
        timestamps=msgspec.convert(run, Timestamps, from_attributes=True),
        scan=Scan(
            planned_chunks=run.planned_chunks, planned_audio_seconds=run.planned_audio_seconds, **observed
        ),
        gpu=_make_gpu(run),
        transcription=Transcription(
            done=run.chunks_done,
            failed=run.chunks_failed,
            failures=run.failures,
            audio_seconds=run.audio_seconds,
        ),
        verification=Verification(
            complete=success,
            gpu_seen_stopped=run.stopped is not None and not run.borrowed and not run.abandoned_gpu,
        ),
        performance=measure_performance(run, events),
        work=make_engine_time(run.worked),
        savings=make_savings(run.cost, run.audio_seconds / _HOUR),
        billed=split_bill(run),
        other_costs=run_costs(run, costs),
        fixed_costs=costs.fixed_costs() if costs else None,
        queue=tuple(samples),
    )


def encode(report: RunReport) -> bytes:
    """Encodes as JSON: indented, UTF-8, rounded floats, newline at the end."""
    return encode_json(report) + b"\n"


def totals(runs: Iterable[Run]) -> Totals:
    """Sums over the settled runs among `runs`."""
    settled = [run for run in runs if not run.open]
    cost = sum((run.cost for run in settled), start=Usd(0))
    hours = sum(run.audio_seconds for run in settled) / _HOUR
    each = cost.per(hours)
    return Totals(
        runs=len(settled),
        starts=sum(run.gpu_started for run in settled),
        chunks_done=sum(run.chunks_done for run in settled),
        chunks_failed=sum(run.chunks_failed for run in settled),
        audio_hours=hours,
        billed_hours=sum(run.billed_seconds for run in settled) / _HOUR,
        cost=cost.dollars,
        cost_micros=cost.micros,
        cost_per_audio_hour=each.dollars if each else None,
        unproductive_cost_micros=sum(run.cost.micros for run in settled if not run.chunks_done),
        work=make_engine_time(sum_engine_time(run.worked for run in settled)),
        savings=make_savings(cost, hours),
    )


def _make_gpu(run: Run) -> Gpu:
    return Gpu(
        provider=run.provider,
        instance=", ".join(run.instances),
        type=run.instance_type,
        tried=run.tried_types,
        was_running=run.borrowed,
        started_by_us=run.gpu_started,
        start=_read_time(run.start_requested),
        running=_read_time(run.running_since),
        stop=_read_time(run.stop_requested),
        stopped=_read_time(run.stopped),
        seconds=run.billed_seconds,
        cost=run.cost.dollars,
        cost_micros=run.cost.micros,
        rate=run.rate.per_hour.dollars,
        rate_micros=run.rate.per_hour.micros,
        source=run.rate.source,
        as_of=run.rate.as_of,
        machines=tuple(_make_bill(run, each) for each in run.machines) if len(run.machines) > 1 else (),
    )


def _make_bill(run: Run, machine: Machine) -> MachineBill:
    rate, amount = (machine.rate or run.rate).per_hour, run.bill_of(machine)
    return MachineBill(
        name=machine.id,
        type=machine.type or run.instance_type,
        market=machine.market,
        outcome=machine.outcome.value if machine.outcome else "",
        seconds=run.billed_seconds_of(machine),
        rate=rate.dollars,
        rate_micros=rate.micros,
        cost=amount.dollars,
        cost_micros=amount.micros,
    )


def run_costs(run: Run, costs: CostBasis | None) -> RunCosts | None:
    """Costs of a run beside the GPU's; None without readable prices."""
    return costs.run_costs(seconds=run.billed_seconds, chunks=run.planned_chunks) if costs else None


def measure_performance(run: Run, events: Iterable[RunEvent] = ()) -> Performance:
    """Times and speed of a run, as far as observed."""
    work = _seconds_between(run.first_window, run.work_ended)
    start = _read_time(run.start_requested)
    return Performance(
        phases=phases(tuple(events)),
        launch=run.launch,
        to_running=_seconds_between(start, _read_time(run.running_since)),
        to_worker=_seconds_between(start, run.worker_since),
        setup=_seconds_between(start, run.first_window),
        work=work,
        release=_seconds_between(_read_time(run.stop_requested), _read_time(run.stopped)),
        total=_seconds_between(run.created, run.settled),
        audio_per_second=run.audio_seconds / work if work else None,
        timeline=run.timeline,
    )


def phases(events: Sequence[RunEvent]) -> dict[str, float]:
    """Seconds in each state, in order of first entry."""
    spent: dict[str, float] = {}
    for event, after in pairwise(events):
        spent[event.state] = spent.get(event.state, 0.0) + (after.at - event.at).total_seconds()
    return spent


def _read_time(moment: Moment | None) -> datetime | None:
    return moment.at if moment else None


def _seconds_between(begin: datetime | None, end: datetime | None) -> float | None:
    return max(0.0, (end - begin).total_seconds()) if begin and end else None
