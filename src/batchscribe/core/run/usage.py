"""Use of the GPU by runs: yield, waits and late chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from statistics import median

import msgspec

from batchscribe.core.decide.arrivals import Arrival, MatchedArrival, match_arrivals
from batchscribe.core.decide.baselines import Baseline, Bill, compare_baselines
from batchscribe.core.decide.money import Usd, units_per_dollar
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.replay import last_check
from batchscribe.core.decide.simulation import count_late, measure_waits
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run

_HOUR = 3600.0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Yield, waits and late chunks of runs.

    A wait counts from the check that listed a chunk first to the end of its run's work.
    """

    cost_per_audio_hour: float | None
    """None without audio."""
    chunks_per_dollar: float | None
    """None without a cost."""
    audio_per_gpu_second: float | None
    """Audio seconds for each billed second; None without a bill."""
    mean_wait_hours: float | None
    """Waits are None if no check was recorded before the run."""
    p95_wait_hours: float | None
    max_wait_hours: float | None
    late: int | None
    """Chunks that waited longer than BATCH_MAX_WAIT_HOURS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Records of the ledger, and the policy that they are measured by."""

    chunks: Sequence[MatchedArrival] = ()
    """In order of time."""
    begun: datetime | None = None
    """The first recorded check."""
    waits: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds that the chunks of each run waited; without the runs before the first check."""
    policy: Policy = field(default_factory=Policy)


def make_history(samples: Sequence[QueueSample], runs: Iterable[Run], policy: Policy) -> History:
    """Matches chunks with the settled runs that transcribed them.

    `samples` are in order of time.
    """
    chunks = match_arrivals(samples, (run for run in runs if not run.open))
    begun = samples[0].at if samples else None
    waits: dict[str, list[float]] = {}
    for each in chunks:
        if each.run and begun and begun <= each.run.created:
            waits.setdefault(each.run.id, []).append(_measure_wait(each.at, each.run))
    return History(chunks=chunks, begun=begun, waits=waits, policy=policy)


def _measure_wait(at: datetime, run: Run) -> float:
    return max(0.0, ((run.work_ended or run.settled or run.created) - at).total_seconds())


def make_usage(runs: Iterable[Run], history: History) -> Usage:
    """Usage of the settled runs among `runs`."""
    settled = [run for run in runs if not run.open]
    audio, billed = sum(run.audio_seconds for run in settled), sum(run.billed_seconds for run in settled)
    on_gpu = sum(run.audio_seconds for run in settled if not run.lane)
    cost = sum((run.cost for run in settled), start=Usd(0))
    each = cost.per(audio / _HOUR)
    waits = [wait for run in settled for wait in history.waits.get(run.id, ())]
    measured = measure_waits(waits) if waits else None
    return Usage(
        cost_per_audio_hour=each.dollars if each else None,
        chunks_per_dollar=units_per_dollar(sum(run.chunks_done for run in settled), cost),
        audio_per_gpu_second=on_gpu / billed if billed else None,
        mean_wait_hours=measured.mean if measured else None,
        p95_wait_hours=measured.p95 if measured else None,
        max_wait_hours=measured.max if measured else None,
        late=count_late(waits, history.policy) if waits else None,
    )


def sum_arrived_hours(runs: Sequence[Run], history: History) -> dict[date, float]:
    """Audio hours that arrived on each UTC day.

    A chunk has the mean length of its run's chunks; one without a run that of all chunks of `runs`.
    """
    done = sum(run.chunks_done for run in runs)
    mean = sum(run.audio_seconds for run in runs) / done if done else 0.0
    arrived: dict[date, float] = {}
    for each in history.chunks:
        audio = each.run.audio_seconds / each.run.chunks_done if each.run else mean
        arrived[each.at.date()] = arrived.get(each.at.date(), 0.0) + audio / _HOUR
    return arrived


def compare_bill(runs: Iterable[Run], history: History, hours: float) -> tuple[Baseline, ...]:
    """Compares the bill of the settled runs with all baselines.

    Returns none if no run had a price. `hours`: length of the period. Price, set-up time and speed are those
    of the latest type.
    """
    settled = [run for run in runs if not run.open]
    priced = [run for run in settled if run.rate.per_hour.micros]
    if not priced:
        return ()
    taken = list(_find_taken({run.id for run in settled}, history.chunks))
    interval = history.policy.check_interval
    bill = Bill(
        cost=sum((run.cost for run in settled), start=Usd(0)),
        hours=hours,
        # A chunk arrived before the check that listed it, which may have been some seconds late.
        arrivals=tuple(
            Arrival(last_check(at, interval), run.audio_seconds / run.chunks_done) for at, run in taken
        )
        if history.begun
        else None,
        waits=tuple(_measure_wait(last_check(at, interval), run) for at, run in taken),
    )
    return compare_baselines(bill, history.policy, _make_offer(priced))


def _find_taken(ids: set[str], chunks: Iterable[MatchedArrival]) -> Iterator[tuple[datetime, Run]]:
    """Yields the chunks of these runs, with their runs."""
    for each in chunks:
        if each.run and each.run.id in ids:
            yield each.at, each.run


def _make_offer(runs: Sequence[Run]) -> Offer:
    """The latest run's type, price, set-up time and speed."""
    last = runs[-1]
    return Offer(
        provider=last.provider,
        instance_type=last.instance_type,
        market=Market.ON_DEMAND,
        rate=last.rate,
        priors=_measure_priors([run for run in runs if run.instance_type == last.instance_type]),
    )


def _measure_priors(runs: Sequence[Run]) -> Priors:
    """Medians of the runs; what no run measured is assumed."""
    setups, works, releases = list[float](), list[float](), list[float]()
    for run in runs:
        start, window, end, stopped = run.start_requested, run.first_window, run.work_ended, run.stopped
        if not (start and window and end and stopped and run.audio_seconds and window < end):
            continue
        setups.append(_seconds_between(start.at, window))
        works.append(run.audio_seconds / _seconds_between(window, end))
        releases.append(_seconds_between(end, stopped.at))
    if not setups:
        return Priors()
    return Priors(
        speed=median(works),
        setup_seconds=median(setups),
        setup_p95_seconds=max(setups),
        release_seconds=median(releases),
    )


def _seconds_between(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin) / timedelta(seconds=1))
