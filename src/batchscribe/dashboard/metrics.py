"""Metrics for Prometheus: the three promises as numbers, from the ledger alone.

Times are exported as time stamps, so that an alert counts from them even if the file of metrics is no longer
written. Counters are sums over all runs in the ledger, which keeps runs for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from batchscribe import __version__
from batchscribe.controller.commands.rehearsal import PROVED, decode_proofs
from batchscribe.controller.external_state import NOTED
from batchscribe.controller.observe import PAUSED
from batchscribe.core.decide.hosted import make_savings
from batchscribe.core.decide.money import Usd
from batchscribe.core.messages import require_extra
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.run.usage import make_history, make_usage
from batchscribe.dashboard.context import Context
from batchscribe.detached import write_atomically
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.settings import Settings
from batchscribe.wiring.costs import read_cost_basis
from batchscribe.wiring.scheduler import make_policy

PREFIX = "batchscribe_"
SUFFIX = ".prom"
"""Of a file that the textfile collector of node_exporter reads."""
READABLE = 0o644
"""Mode of that file: node_exporter runs as another user, and it holds no key and no text."""
RECENT = timedelta(hours=24)
GAUGE, COUNTER = "gauge", "counter"
Sample = tuple[str, tuple[str, ...], float]
"""(metric without its prefix, values of its labels, number)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric; the name of a counter ends in `_total`."""

    name: str
    """Without PREFIX."""
    kind: str
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric("info", GAUGE, ("version", "policy", "provider"), "Always 1"),
    Metric(
        "backlog_chunks",
        GAUGE,
        ("state",),
        "Chunks without a transcript at the last check that held: triggering, previously_failed, waiting",
    ),
    Metric("backlog_observed_timestamp_seconds", GAUGE, (), "Time of that check"),
    Metric("quarantined_chunks", GAUGE, (), "Chunks that failed for good, at that check"),
    Metric(
        "oldest_chunk_timestamp_seconds",
        GAUGE,
        (),
        "Arrival of the oldest pending chunk; absent without one, and after a run until the next check",
    ),
    Metric("max_wait_seconds", GAUGE, (), "Limit of a chunk's wait (BATCH_MAX_WAIT_HOURS)"),
    Metric("late_chunks", GAUGE, (), "Chunks above that limit, in the runs settled in the last 24 hours"),
    Metric("open_runs", GAUGE, ("state",), "Runs that are not settled"),
    Metric("unreadable_runs", GAUGE, (), "Open runs that this version cannot read"),
    Metric(
        "run_deadline_timestamp_seconds",
        GAUGE,
        (),
        "Earliest deadline of the open runs on the GPU; absent without one",
    ),
    Metric(
        "instances_not_stopped", GAUGE, (), "Instances that a run started and did not observe stopped yet"
    ),
    Metric(
        "instance_started_timestamp_seconds", GAUGE, (), "First of their start requests; absent without one"
    ),
    Metric("stop_requested_timestamp_seconds", GAUGE, (), "First of their stop requests; absent without one"),
    Metric(
        "runs_not_proved_stopped_total", COUNTER, (), "Settled runs whose instance another owner kept running"
    ),
    Metric(
        "uncleaned_runs", GAUGE, (), "Settled runs with external state left: stop order, claim, tags, type"
    ),
    Metric("guard_enabled", GAUGE, (), "1 if BATCH_CLOUD_GUARD arms a stop order for each run"),
    Metric("guarded_runs", GAUGE, (), "Open runs whose stop order was armed"),
    Metric("proof_timestamp_seconds", GAUGE, ("act",), "Last rehearsal of the stop: box or guard"),
    Metric("proof_success", GAUGE, ("act",), "1 if that rehearsal proved the stop"),
    Metric(
        "last_tick_timestamp_seconds", GAUGE, (), "Last record of a tick or a step; absent before the first"
    ),
    Metric("check_interval_seconds", GAUGE, (), "Time between two checks (BATCH_SCHEDULER_CHECK_HOURS)"),
    Metric("paused", GAUGE, (), "1 while scheduling is suspended"),
    Metric("runs_total", COUNTER, ("outcome",), "Settled runs"),
    Metric("chunks_total", COUNTER, ("result",), "Chunks of settled runs: done or failed"),
    Metric("audio_seconds_total", COUNTER, (), "Transcribed audio"),
    Metric("cost_dollars_total", COUNTER, (), "Cost of the GPU in settled runs, at most"),
    Metric("month_cost_dollars", GAUGE, (), "The same, since the begin of the month (UTC)"),
    Metric("day_cost_dollars", GAUGE, (), "The same, since midnight (UTC)"),
    Metric("day_budget_dollars", GAUGE, (), "BATCH_MAX_DOLLARS_PER_DAY; absent if not set"),
    Metric("fixed_month_cost_dollars", GAUGE, (), "Fixed costs of a month, as far as known"),
    Metric(
        "savings_dollars",
        GAUGE,
        ("against",),
        "Price of all transcribed audio there, minus the cost; may be negative",
    ),
)


def routes(context: Context) -> list[Route]:
    """`/metrics`, for a Prometheus that scrapes this server."""
    return [Route("/metrics", partial(answer_metrics, context))]


def answer_metrics(context: Context, _request: Request) -> Response:
    """The metrics as text."""
    with context.open_ledger() as ledger:
        data = render_metrics(context.settings, ledger, context.clock.now())
    return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")


def write_metrics(path: Path, data: bytes) -> None:
    """Replaces a file for the textfile collector. Raises MisconfiguredError."""
    if path.suffix != SUFFIX:
        raise MisconfiguredError(
            f"{path} was not written: node_exporter reads only files whose name ends in {SUFFIX}"
        )
    if not path.absolute().parent.is_dir():
        raise MisconfiguredError(f"{path} was not written: create {path.absolute().parent} first")
    try:
        write_atomically(path, data, mode=READABLE)
        path.chmod(READABLE)
    except OSError as error:
        raise MisconfiguredError(
            f"the metrics were not written, an older file stays ({error}): correct the folder or its rights"
        ) from error


def render_metrics(settings: Settings, ledger: Ledger, now: datetime) -> bytes:
    """All metrics in Prometheus' text format. Raises what the ledger raises."""
    with require_extra("metrics need their extra", "dashboard"):
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415
    families = {
        each.name: (GaugeMetricFamily if each.kind == GAUGE else CounterMetricFamily)(
            f"{PREFIX}{each.name}", each.meaning, labels=each.labels
        )
        for each in METRICS
    }
    for name, labels, number in measure(settings, ledger, now):
        families[name].add_metric(labels, number)

    class Collector:
        """The families with a sample."""

        def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
            return (family for family in families.values() if family.samples)

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)


def measure(settings: Settings, ledger: Ledger, now: datetime) -> Iterator[Sample]:
    """Yields the known numbers of each metric and its labels."""
    yield "info", (__version__, settings.policy.value, settings.provider), 1.0
    open_runs = ledger.open_runs()
    yield from _measure_backlog(settings, ledger, now)
    yield from _measure_runs(settings, ledger, open_runs)
    yield from _measure_schedule(settings, ledger, now)
    yield from _measure_money(settings, ledger, now)


def _measure_backlog(settings: Settings, ledger: Ledger, now: datetime) -> Iterator[Sample]:
    policy = make_policy(settings)
    yield "max_wait_seconds", (), policy.max_wait.total_seconds()
    if ledger.unreadable:
        return  # the backlog depends on all runs, and their number must be scraped without it
    begin = now - RECENT - 2 * policy.max_wait
    samples, runs = ledger.samples(begin), ledger.runs(begin)
    if samples:
        yield from _measure_sample(samples[-1], runs)
    recent = [run for run in runs if run.settled and run.settled >= now - RECENT]
    yield "late_chunks", (), make_usage(recent, make_history(samples, runs, policy)).late or 0


def _measure_sample(last: QueueSample, runs: tuple[Run, ...]) -> Iterator[Sample]:
    states = {
        "triggering": last.triggering,
        "previously_failed": last.pending - last.triggering,
        "waiting": last.waiting,
    }
    for state, number in states.items():
        yield "backlog_chunks", (state,), number
    yield "backlog_observed_timestamp_seconds", (), last.at.timestamp()
    quarantined = last.numbers.get("quarantined")
    if isinstance(quarantined, int):
        yield "quarantined_chunks", (), quarantined
    if last.oldest and not any(run.settled and run.settled > last.at and run.chunks_done for run in runs):
        yield "oldest_chunk_timestamp_seconds", (), last.oldest.timestamp()


def _measure_runs(settings: Settings, ledger: Ledger, runs: tuple[Run, ...]) -> Iterator[Sample]:
    states = Counter(run.state for run in runs)
    for state in RunState:
        if state is not RunState.SETTLED:
            yield "open_runs", (state.value,), states[state]
    yield "unreadable_runs", (), len(ledger.unreadable)
    on_gpu = [run for run in runs if not run.lane]
    if on_gpu:
        yield "run_deadline_timestamp_seconds", (), min(run.deadline for run in on_gpu).timestamp()
    billed = [run for run in on_gpu if run.gpu_started]
    meters = [each.meter for run in billed for each in run.machines if not each.released]
    up = [each for each in meters if each.start_requested and not each.stopped]
    yield "instances_not_stopped", (), len(up)
    starts = [each.start_requested.at for each in up if each.start_requested]
    if starts:
        yield "instance_started_timestamp_seconds", (), min(starts).timestamp()
    stops = [run.stop_requested.at for run in billed if run.stop_requested and not run.stopped]
    if stops:
        yield "stop_requested_timestamp_seconds", (), min(stops).timestamp()
    noted = {key.removeprefix(NOTED) for key in ledger.facts(NOTED)}
    yield "uncleaned_runs", (), len(noted - {run.id for run in runs})
    guarded = settings.cloud_guard != "off"
    yield "guard_enabled", (), guarded
    yield "guarded_runs", (), sum(guarded and run.state is not RunState.PLANNED for run in on_gpu)
    for proof in decode_proofs(ledger.facts(PROVED)):
        yield "proof_timestamp_seconds", (proof.act,), proof.at.timestamp()
        yield "proof_success", (proof.act,), proof.proved


def _measure_schedule(settings: Settings, ledger: Ledger, now: datetime) -> Iterator[Sample]:
    if last := ledger.last_tick():
        yield "last_tick_timestamp_seconds", (), last.timestamp()
    yield "check_interval_seconds", (), settings.check_interval.total_seconds()
    paused = ledger.get(PAUSED)
    yield "paused", (), paused is not None and datetime.fromisoformat(paused) > now


def _measure_money(settings: Settings, ledger: Ledger, now: datetime) -> Iterator[Sample]:
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    yield "month_cost_dollars", (), ledger.spent(month).dollars
    yield "day_cost_dollars", (), ledger.spent_today(now).dollars
    if settings.max_dollars_per_day is not None:
        yield "day_budget_dollars", (), settings.max_dollars_per_day.dollars
    costs = read_cost_basis(settings, ledger, now)
    if costs:
        yield "fixed_month_cost_dollars", (), costs.fixed_costs().per_month
    sums = ledger.sum_settled()
    for each in sums:
        yield "runs_total", (each.outcome,), each.runs
    yield "chunks_total", ("done",), sum(each.chunks_done for each in sums)
    yield "chunks_total", ("failed",), sum(each.chunks_failed for each in sums)
    audio = sum(each.audio_seconds for each in sums)
    yield "audio_seconds_total", (), audio
    yield "runs_not_proved_stopped_total", (), sum(each.not_proved_stopped for each in sums)
    cost = sum((each.cost for each in sums), start=Usd(0))
    yield "cost_dollars_total", (), cost.dollars
    if savings := make_savings(cost, audio / 3600):
        yield "savings_dollars", (savings.against,), savings.saved
