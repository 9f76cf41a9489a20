"""The controller and a host that starts its own workers: what each knows of the other is in the store."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest

from batchscribe.controller.follow import _explain_down
from batchscribe.controller.records import by_our_clock
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import BootRecord, HostEnd, InstanceRecord
from batchscribe.core.run.instances import MANIFEST_TAG, InstanceState
from batchscribe.core.run.manifest import ExitRecord, Phase, Progress, Tally, Timings, WorkerEnd
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import ComputeUnavailableError
from batchscribe.testing.compute import Fault
from support.world import INSTANCE, Stage, once


@pytest.fixture
def at(at: Stage) -> Stage:
    record = InstanceRecord(instance=INSTANCE, release="1", at=at.clock.now(), boots=True, shows_tags=True)
    at.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))
    at.launcher.is_alive = lambda _worker: None  # type: ignore[assignment, return-value]
    at.upload(120)
    at.clock.sleep(600)
    return at


def at_work(at: Stage) -> Run:
    """A run whose host is at work, and whose controller has just died."""
    at.worker.seconds_each = 1e6
    run = the_run(at)
    while run is None or run.state is not RunState.TRANSCRIBING:
        once(at)
        at.clock.sleep(10)
        run = the_run(at)
    return run


def the_run(at: Stage) -> Run | None:
    return next(iter(at.ledger.runs(at.clock.now() - timedelta(days=1))), None)


def report(at: Stage, run: Run, *, seen: int, behind: timedelta = timedelta(0)) -> None:
    progress = Progress(
        run=run.id,
        worker=0,
        sequence=seen,
        phase=Phase.WORKING,
        at=at.clock.now() - behind,
        total=120,
        tally=Tally(done=seen),
        timings=Timings(loaded=1.0, first_window=2.0, elapsed=60.0),
    )
    at.store.replace(keys.progress(run.id, 0), wire.encode(progress))


def host_ends(at: Stage, run: Run, why: str, *, worker: int | None = None) -> None:
    end = HostEnd(run=run.id, worker=worker, why=why, at=at.clock.now())
    at.store.create(keys.host_end(run.id), msgspec.json.encode(end))
    at.compute.stop(INSTANCE)
    at.clock.sleep(120)


def announcements(at: Stage) -> list[str]:
    return [call for call, _instance in at.compute.calls if call == "announce"]


def test_the_hash_of_the_manifest_is_in_the_tag_before_the_start(at: Stage) -> None:
    run = at_work(at)
    data = at.store.get(run.manifests[0]).data
    assert at.compute.describe(INSTANCE).tags[MANIFEST_TAG] == hashlib.sha256(data).hexdigest()
    assert announcements(at) == []


def test_the_settlement_has_the_phases_of_host_worker_and_controller(at: Stage) -> None:
    run = at_work(at)
    at.clock.sleep(60)
    assert run.start_requested is not None
    now, boot = at.clock.now(), run.start_requested.at + timedelta(seconds=8)
    elapsed = (now - boot).total_seconds() - 5.0
    timings = Timings(
        since_boot=5.0, manifest=1.0, loaded=3.0, first_window=3.5, published=elapsed - 0.5, elapsed=elapsed
    )
    record = ExitRecord(run=run.id, worker=0, end=WorkerEnd.STOPPED, at=now, tally=Tally(), timings=timings)
    booted = BootRecord(run=run.id, boot="boot-1", at=boot, agent=4.0, release="1")
    at.store.create(keys.boot(run.id), msgspec.json.encode(booted))
    at.store.create(keys.exit_record(run.id, 0), wire.encode(record))
    settled = tick(at.world, at.config).runs[0]
    assert settled.state is RunState.SETTLED
    times = settled.timeline
    assert list(times) == [
        "start",
        "boot",
        "agent",
        "manifest",
        "load",
        "first_window",
        "publish",
        "end",
        "teardown",
    ]
    assert (times["start"], times["boot"], times["agent"], times["load"]) == (8.0, 4.0, 1.0, 2.0)
    assert times["teardown"] > 0


def test_the_next_manifest_is_announced_as_well(at: Stage) -> None:
    run = at_work(at)
    more = at.upload(10, session="more")
    at.worker.seconds_each = 1.0
    at.clock.sleep(600)
    at.worker.started[run.id, 0].end(WorkerEnd.FINISHED)
    for _ in range(20):
        once(at)
        at.clock.sleep(10)
        if announcements(at):
            break
    (run,) = at.ledger.runs(run.created)
    data = at.store.get(run.manifests[1]).data
    assert at.compute.describe(INSTANCE).tags[MANIFEST_TAG] == hashlib.sha256(data).hexdigest()
    assert {chunk.key for chunk in wire.decode(data, wire.Manifest).chunks} >= set(more)


def test_an_announcement_that_fails_is_made_again_before_the_worker_is_started(at: Stage) -> None:
    at.compute.fail("announce", Fault(ComputeUnavailableError("throttled")))
    run = at_work(at)
    at.upload(10, session="more")
    at.clock.sleep(600)
    at.worker.started[run.id, 0].end(WorkerEnd.FINISHED)
    for _ in range(20):
        once(at)
        at.clock.sleep(10)
        if (run.id, 1) in at.worker.started:
            break
    assert announcements(at) == ["announce", "announce"]


def test_a_host_that_does_not_take_its_next_manifest_is_stopped_in_ten_minutes(at: Stage) -> None:
    run = at_work(at)
    at.upload(10, session="more")
    at.clock.sleep(600)
    report(at, run, seen=1)
    once(at)
    at.worker.started[run.id, 0].end(WorkerEnd.FINISHED)
    once(at)
    at.launcher.launch = lambda *_named: None  # type: ignore[method-assign]
    at.launcher.alive = lambda *_named: None  # type: ignore[method-assign]
    for _ in range(2):
        at.clock.sleep(330)
        once(at)
    lost = at.ledger.run(run.id)
    assert lost is not None
    assert len(lost.manifests) == 2
    assert lost.outcome is Outcome.LAUNCH_FAILED, lost.detail
    once(at)
    assert ("stop", INSTANCE) in at.compute.calls, "no further pass for a worker that never was"


def test_a_host_that_shows_no_tags_gets_its_work_over_ssh(at: Stage) -> None:
    record = InstanceRecord(instance=INSTANCE, release="1", at=at.clock.now(), boots=True)
    at.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))
    run = at_work(at)
    assert run.launch == "ssh"
    assert MANIFEST_TAG not in at.compute.describe(INSTANCE).tags


def test_a_slow_clock_on_the_host_does_not_get_live_work_shot(at: Stage) -> None:
    run = at_work(at)
    for seen in range(1, 6):
        report(at, run, seen=seen, behind=timedelta(minutes=7))
        assert reconcile(at.world, at.config) == ()
        at.clock.sleep(300)
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING


def test_work_that_stands_still_is_found_by_our_clock(at: Stage) -> None:
    run = at_work(at)
    for _look in range(5):
        report(at, run, seen=1)
        reconcile(at.world, at.config)
        at.clock.sleep(300)
    lost = at.ledger.run(run.id)
    assert lost is not None
    assert lost.outcome is Outcome.WORKER_LOST


def test_a_dispatch_that_was_not_recorded_is_a_host_at_work(at: Stage) -> None:
    run = at_work(at)
    unrecorded = replace(run.with_worker(0, launched=False), state=RunState.DISPATCHING, dispatched=None)
    at.ledger.save_run(unrecorded, at=at.clock.now())
    report(at, run, seen=1)
    reconcile(at.world, at.config)
    (found,) = at.ledger.open_runs()
    assert (found.state, found.manifests) == (RunState.TRANSCRIBING, run.manifests)
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING


def test_a_host_that_gave_up_on_us_is_not_called_stopped_by_somebody(at: Stage) -> None:
    run = at_work(at)
    host_ends(at, run, "work ended")
    ended = tick(at.world, at.config).runs[0]
    assert ended.outcome is Outcome.INCOMPLETE
    assert "the GPU host powered itself off: work ended" in ended.detail


@pytest.mark.parametrize(
    ("worker", "outcome"), [(0, Outcome.WORKER_LOST), (1, Outcome.INCOMPLETE), (None, Outcome.INCOMPLETE)]
)
def test_a_host_that_went_off_over_its_last_worker_says_that_the_worker_was_lost(
    at: Stage, worker: int | None, outcome: Outcome
) -> None:
    """It names the one that died or hung; any other is not the reason why the rest is left."""
    run = at_work(at)
    host_ends(at, run, "its worker died", worker=worker)
    ended = tick(at.world, at.config).runs[0]
    assert ended.outcome is outcome
    assert ended.detail == "the GPU host powered itself off: its worker died; the rest is for the next run"


def test_a_host_that_went_off_after_the_deadline_was_out_of_time(at: Stage) -> None:
    run = at_work(at)
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds())
    host_ends(at, run, "the deadline passed", worker=0)
    assert (
        _explain_down(at.world, run, at.compute.describe(INSTANCE), run.name_of(0), "it is stopped")[0]
        is Outcome.TIMED_OUT
    )


def test_reconcile_reads_why_the_host_went_off_too(at: Stage) -> None:
    run = at_work(at)
    report(at, run, seen=1)
    host_ends(at, run, "no progress was seen")
    (ended,) = reconcile(at.world, at.config)
    assert "the GPU host powered itself off: no progress was seen" in ended.detail


def test_an_instance_that_went_down_without_a_word_was_stopped_by_somebody(at: Stage) -> None:
    at_work(at)
    at.compute.stop(INSTANCE)
    at.clock.sleep(120)
    assert tick(at.world, at.config).runs[0].outcome is Outcome.INSTANCE_LOST


@pytest.mark.parametrize(("told", "taken"), [(-600, 0), (0, 0), (30, 30), (60, 60), (700, 60)])
def test_a_moment_of_the_host_lies_between_running_and_now(at: Stage, told: int, taken: int) -> None:
    run = at_work(at)
    assert run.machines[0].meter.running_since is not None
    since = run.machines[0].meter.running_since.at
    now = since + timedelta(seconds=60)
    assert by_our_clock(run, since + timedelta(seconds=told), now) == since + timedelta(seconds=taken)
