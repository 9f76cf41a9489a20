"""Half-written objects, and wall clocks that are set while a run is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.host_access.client import SilentHost
from batchscribe.controller.advance import PassResult, advance_all
from batchscribe.controller.context import RunConfig, World, read_moment
from batchscribe.controller.records import forget_manifests
from batchscribe.controller.settle import settle
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.host import CheckRequest, ClaimLaunch, HostWaits, InstanceRecord
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.manifest import EngineSpec, WorkerName, decode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.preflight import preflight
from support.host_agent import RUN, Awake
from support.host_setup import PlayedSetup
from support.values import metered
from support.world import INSTANCE, Stage, advanced, once, stage

CHUNKS = 8
WORKING = 32.0
"""Seconds from the decision on; the worker has a few chunks done."""
HALF = b'{"run": "r", "worker": 0, "sequ'
TORN = {"half": HALF, "empty": b"", "another": b"[1, 2]", "bytes": b"\xff\x00\xfe"}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW))
    made.upload(CHUNKS)
    made.clock.sleep(600)
    yield made
    made.ledger.close()


def the_run(at: Stage) -> Run:
    (run,) = tick(at.world, at.config).runs
    return run


def stopped(at: Stage) -> bool:
    return at.compute.describe(INSTANCE).state is InstanceState.STOPPED


def listed(at: Stage, tail: str) -> list[str]:
    return [info.key for info in at.store.list(keys.RUNS) if info.key.endswith(tail)]


def tear(at: Stage, data: bytes) -> None:
    """From now on the progress is torn at every look."""
    (key,) = listed(at, "/progress.json")
    at.store.replace(key, data)
    for worker in at.worker.started.values():
        worker.store = Tearing(at.store, data)  # type: ignore[assignment]  # a worker only writes


class Tearing:
    """A store that keeps a torn progress, whatever is written."""

    def __init__(self, store: MemoryStore, data: bytes) -> None:
        self._store = store
        self._data = data

    def create(self, key: str, data: bytes) -> bool:
        return self._store.create(key, data)

    def replace(self, key: str, data: bytes) -> None:
        self._store.replace(key, self._data if key.endswith("/progress.json") else data)


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_torn_progress_is_no_end_of_the_work(at: Stage, data: bytes) -> None:
    at.clock.at(WORKING, partial(tear, at, data))
    run = the_run(at)
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, CHUNKS), run.detail
    assert stopped(at)


@pytest.mark.parametrize("launch", ["", ClaimLaunch.SSH, ClaimLaunch.BOOT])
def test_progress_that_is_torn_late_is_no_end_of_the_work(at: Stage, launch: str) -> None:
    """Its worker reported before: it is not one that never started."""
    at.worker.seconds_each = 150.0
    run = at_work(at)
    at.ledger.save_run(replace(run, launch=launch or run.launch), at=at.clock.now())
    at.clock.at(at.config.waits.reach + 60, partial(tear, at, HALF))
    tick(at.world, at.config)
    run = at.ledger.run(run.id) or run
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, CHUNKS), run.detail
    assert stopped(at)


def test_a_worker_that_only_ever_leaves_torn_progress_is_lost_in_time(at: Stage) -> None:
    at.worker.endless = frozenset({"s/chunk-004.webm"})
    at.clock.at(WORKING, partial(tear, at, HALF))
    before = at.clock.monotonic()
    run = the_run(at)
    assert run.outcome is Outcome.WORKER_LOST
    assert at.clock.monotonic() - before < at.config.waits.silence + 300
    assert stopped(at)


def at_work(at: Stage) -> Run:
    """The run, by ticks of one step, with its worker at work."""
    while True:
        (run,) = once(at).runs
        if run.state is RunState.TRANSCRIBING:
            return run
        at.clock.sleep(5)


@pytest.mark.parametrize("looks", [tick, reconcile])
@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_torn_last_word_is_one(at: Stage, data: bytes, looks: Callable[[World, RunConfig], object]) -> None:
    run = at_work(at)
    at.clock.sleep(5)
    at.worker.started[run.id, 0].die()
    at.store.place(keys.exit_record(run.id, 0), data)
    looks(at.world, at.config)
    run = at.ledger.run(run.id) or run
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.WORKER_FAILED)
    assert keys.exit_record(run.id, 0) in run.detail
    assert 0 < run.chunks_done < CHUNKS
    assert run.audio_seconds > 0
    assert stopped(at)


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_torn_manifest_is_read_from_its_copy_in_the_ledger(at: Stage, data: bytes) -> None:
    run = at_work(at)
    at.store.place(keys.manifest(run.id, 0), data)
    run = the_run(at)
    assert (run.outcome, run.chunks_done, run.detail) == (Outcome.COMPLETED, CHUNKS, "")
    assert stopped(at)


@pytest.mark.parametrize("looks", [tick, reconcile])
@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_torn_manifest_without_a_copy_keeps_no_run_open(
    at: Stage, data: bytes, looks: Callable[[World, RunConfig], object]
) -> None:
    run = at_work(at)
    at.store.place(keys.manifest(run.id, 0), data)
    forget_manifests(at.world, run)
    at.worker.kill(WorkerName(run=run.id, worker=0))
    at.clock.sleep(at.config.waits.describe)
    looks(at.world, at.config)
    run = at.ledger.run(run.id) or run
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.WORKER_LOST)
    assert "manifests that could not be read: 1 of 1" in run.detail
    assert stopped(at)
    at.clock.sleep(4 * 3600)
    tick(at.world, at.config)
    assert sorted(at.worker.published) == [f"s/chunk-{number:03}.webm" for number in range(1, CHUNKS + 1)]


def test_a_run_of_which_a_manifest_cannot_be_read_reports_no_success(at: Stage) -> None:
    run = at_work(at)
    at.clock.at(15, lambda: at.store.place(keys.manifest(run.id, 0), HALF))
    at.clock.sleep(60)
    forget_manifests(at.world, run)
    over = replace(at.ledger.run(run.id) or run, state=RunState.VERIFYING)
    over = metered(over, over.machines[0].meter.end(read_moment(at.world)))
    run = settle(at.world, at.config, over, [])
    assert run.outcome is Outcome.INCOMPLETE
    assert "manifests that could not be read: 1 of 1" in run.detail


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_host_goes_on_over_a_torn_progress(data: bytes) -> None:
    host = Awake()
    host.claimed()
    host.give()
    host.at(60, lambda: host.progress(1))
    host.at(70, lambda: host.store.replace(keys.progress(RUN, 0), data))
    host.at(200, lambda: host.progress(2))
    host.at(300, host.finish)
    off = host.live()
    assert off is not None
    assert off >= 300 + HostWaits().linger
    end = host.end()
    assert end is not None
    assert (end.worker, end.why) == (None, "work ended")


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_host_that_cannot_read_its_record_takes_up_nothing(data: bytes) -> None:
    host = Awake()
    host.claimed()
    host.store.replace(keys.instance(INSTANCE), data)
    assert host.live() is None
    assert host.workers.requests == []
    assert host.taken_by() is None


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_record_that_cannot_be_read_is_refused_before_anything_is_paid(
    at: Stage, tmp_path: Path, data: bytes
) -> None:
    at.store.replace(keys.instance(INSTANCE), data)
    names = {"GPU_INSTANCE_ID": INSTANCE, "BATCH_CLOUD_GUARD": "off", "BATCH_SOURCE": "s3://bucket"}
    with pytest.raises(MisconfiguredError, match="gpu setup`, which rewrites it"):
        preflight(load(names, folder=tmp_path), at.store)


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_set_up_writes_a_torn_record_anew(at: Stage, data: bytes) -> None:
    at.store.replace(keys.instance(INSTANCE), data)
    setup = PlayedSetup(
        client=SilentHost(),
        clock=at.clock,
        request=CheckRequest(now=at.clock.now(), engine=EngineSpec(engine="played"), gpu=False),
        output=at.store,
        published=lambda _instance: frozenset(),
    )
    setup._write_record(at.compute.describe(INSTANCE), "SHA256:key", boots=True)
    record = decode(at.store.get(keys.instance(INSTANCE)).data, InstanceRecord)
    assert (record.fingerprint, record.boots, record.claim) == ("SHA256:key", True, None)


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_record_that_is_torn_under_a_run_keeps_nothing_running(at: Stage, data: bytes) -> None:
    record = InstanceRecord(instance=INSTANCE, release=__version__, at=at.clock.now(), boots=True)
    at.store.create(keys.instance(INSTANCE), msgspec.json.encode(record))
    at.clock.at(WORKING, lambda: at.store.replace(keys.instance(INSTANCE), data))
    run = the_run(at)
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, CHUNKS), run.detail
    assert stopped(at)


class TrueTime:
    """What the cloud's clocks show, whatever ours does."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._began = clock.now() - timedelta(seconds=clock.monotonic())

    def now(self) -> datetime:
        return self._began + timedelta(seconds=self._clock.monotonic())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


@pytest.fixture
def wrong(at: Stage) -> Stage:
    """A world in which only this machine's wall clock can be set."""
    at.compute._clock = at.store._clock = TrueTime(at.clock)  # type: ignore[assignment]
    return at


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("seconds", [21.0, WORKING, 42.0])
def test_an_hour_more_or_less_on_the_wall_changes_no_run(wrong: Stage, seconds: float, hours: int) -> None:
    """Dispatched, working, stopping: an hour is less than the two that a run may take."""
    wrong.clock.at(seconds, lambda: wrong.clock.jump(hours * 3600))
    before = wrong.clock.monotonic()
    run = the_run(wrong)
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, CHUNKS), run.detail
    assert sorted(wrong.worker.published) == sorted(set(wrong.worker.published))
    assert stopped(wrong)
    assert not wrong.guard.standing(INSTANCE)
    assert wrong.clock.monotonic() - before < 600, "nothing waits for the wall clock to come back"


def test_after_a_clock_was_set_back_the_instance_is_looked_at_all_the_same(wrong: Stage) -> None:
    wrong.worker.seconds_each = 600
    run = at_work(wrong)
    wrong.clock.jump(-3600)
    wrong.compute.stop(INSTANCE)
    wrong.clock.sleep(wrong.config.waits.describe)
    once(wrong)
    seen = wrong.ledger.run(run.id)
    assert seen is not None
    assert (seen.state, seen.outcome) == (RunState.RELEASING, Outcome.INSTANCE_LOST)


@pytest.mark.parametrize("state", [RunState.PROVISIONING, RunState.TRANSCRIBING])
def test_a_clock_that_was_set_back_extends_no_run(wrong: Stage, state: RunState) -> None:
    """The monotonic clock ends it, as it ends a host's agent."""
    wrong.upload(30, session="more")
    wrong.worker.seconds_each = 600
    once(wrong)
    run = advanced(wrong, lambda run: run.state is state)
    since, longest = wrong.clock.monotonic(), wrong.config.policy.max_runtime.total_seconds()
    wrong.clock.jump(-3 * 3600)
    while wrong.ledger.open_runs():
        wrong.clock.sleep(30)
        advance_all(wrong.world, wrong.config, PassResult())
    (settled,) = wrong.notes.reports
    assert (settled.id, settled.outcome) == (run.id, Outcome.TIMED_OUT)
    assert wrong.clock.monotonic() - since < longest + 600


@pytest.mark.parametrize("hours", [1, -1])
def test_an_hour_while_it_starts_costs_a_start_at_most(wrong: Stage, hours: int) -> None:
    """Set forward, it looks as if the instance did not come up in time."""
    wrong.clock.at(3.0, lambda: wrong.clock.jump(hours * 3600))
    before = wrong.clock.monotonic()
    assert the_run(wrong).outcome in {Outcome.COMPLETED, Outcome.START_FAILED}
    assert stopped(wrong)
    tick(wrong.world, wrong.config)
    assert sorted(wrong.worker.published) == sorted(f"s/chunk-{n:03}.webm" for n in range(1, CHUNKS + 1))
    assert stopped(wrong)
    assert not wrong.guard.standing(INSTANCE)
    assert wrong.clock.monotonic() - before < 1200


@pytest.mark.parametrize("seconds", [3.0, 21.0, WORKING])
def test_a_clock_set_past_the_deadline_ends_the_run_and_loses_nothing(wrong: Stage, seconds: float) -> None:
    wrong.clock.at(seconds, lambda: wrong.clock.jump(3 * 3600))
    run = the_run(wrong)
    assert run.outcome is Outcome.TIMED_OUT
    assert stopped(wrong)
    tick(wrong.world, wrong.config)
    assert len(list(wrong.store.list("s/transcription-"))) == CHUNKS
    assert sorted(wrong.worker.published) == sorted(set(wrong.worker.published))


@pytest.mark.parametrize("hours", [1, -1])
def test_a_deaf_worker_is_stopped_by_any_clock(wrong: Stage, hours: int) -> None:
    """The wall clock is set as soon as the way out has begun."""
    wrong.worker.deaf = True
    wrong.worker.endless = frozenset({"s/chunk-004.webm"})
    wrong.world = replace(wrong.world, launcher=SetsTheClock(wrong, hours))
    wrong.clock.at(WORKING, wrong.clock.interrupt)
    before = wrong.clock.monotonic()
    run = the_run(wrong)
    assert run.outcome is Outcome.INTERRUPTED
    assert stopped(wrong)
    assert wrong.clock.monotonic() - before < 300


class SetsTheClock:
    """A launcher beside which somebody sets the clock while a worker is asked to end."""

    def __init__(self, at: Stage, hours: int) -> None:
        self._at = at
        self._hours = hours

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at.launcher, name)

    def cancel(self, *args: Any, **named: Any) -> None:
        self._at.launcher.cancel(*args, **named)
        self._at.clock.jump(self._hours * 3600)
