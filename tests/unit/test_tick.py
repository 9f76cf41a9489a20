"""The production tick in a world of doubles: every way in, every way out."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.scan import Scanner
from batchscribe.controller.teardown import begin_teardown
from batchscribe.controller.tick import ENGINE, Ticked, forget_run, reconcile, tick, watch
from batchscribe.core import keys
from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.observation import IfRunning, Policy
from batchscribe.core.decide.policy import Hold, Launch, Reclaim, Resume
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.instances import RUN_TAG, Claim, InstanceState
from batchscribe.core.run.manifest import Failure, FailureKind, Manifest, WorkerEnd
from batchscribe.core.run.meter import LONGEST_LAG
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import decode_run, decode_settlement
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    InterruptedRunError,
    LaunchError,
    MisconfiguredError,
    NoCapacityError,
    NotStoppedError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from batchscribe.testing.compute import Fault
from batchscribe.testing.store import MemoryStore
from support.world import INSTANCE, Stage, once, stage


def ready(at: Stage, count: int = 120) -> list[str]:
    names = at.upload(count)
    at.clock.sleep(600)
    return names


def state(at: Stage) -> InstanceState:
    return at.compute.describe(INSTANCE).state


def test_below_the_threshold_nothing_is_started_and_the_sample_is_kept(at: Stage) -> None:
    ready(at, 99)
    ticked = tick(at.world, at.config)
    assert isinstance(ticked.decision, Hold)
    assert [call for call, _ in at.compute.calls if call == "start"] == []
    (sample,) = at.ledger.samples(at.clock.now() - timedelta(hours=1))
    assert (sample.pending, sample.decision) == (99, "below-threshold")


def test_a_batch_is_transcribed_and_the_gpu_is_seen_stopped(at: Stage) -> None:
    names = ready(at)
    ticked = tick(at.world, at.config)
    assert isinstance(ticked.decision, Launch)
    (run,) = ticked.runs
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.COMPLETED)
    assert (run.chunks_done, run.chunks_failed) == (120, 0)
    assert state(at) is InstanceState.STOPPED
    assert at.compute.describe(INSTANCE).run is None
    assert [call for call, _ in at.guard.calls if call != "armed"] == ["arm", "disarm"]
    assert sorted(at.worker.published) == names
    assert at.notes.messages[-1].title.endswith("completed")
    assert at.notes.reports == [run]


def test_the_bill_is_an_upper_bound_close_to_what_the_cloud_billed(at: Stage) -> None:
    ready(at)
    (run,) = tick(at.world, at.config).runs
    billed = at.compute.billed_seconds(INSTANCE)
    assert billed <= run.billed_seconds <= billed + 3 * at.config.waits.poll
    assert run.cost == run.bill()


def test_intent_and_settlement_are_in_the_store(at: Stage) -> None:
    ready(at)
    (run,) = tick(at.world, at.config).runs
    record = decode_run(at.store.get(keys.intent(run.id)).data)
    assert (record.id, record.deadline, record.planned_chunks) == (run.id, run.deadline, 120)
    assert decode_settlement(at.store.get(keys.settlement(run.id)).data, record) == run


def test_the_session_is_written_when_it_is_complete(at: Stage) -> None:
    ready(at)
    tick(at.world, at.config)
    for name in ("transcript.json", "transcript.srt", "transcript.vtt", "transcript.txt"):
        assert at.store.get(f"s/{name}").data


def test_a_quiet_tick_after_a_run_does_nothing(at: Stage) -> None:
    ready(at)
    tick(at.world, at.config)
    before = list(at.compute.calls)
    assert isinstance(tick(at.world, at.config).decision, Hold)
    assert {call for call, _ in at.compute.calls[len(before) :]} <= {"describe"}


def test_intent_is_recorded_before_the_start_and_the_guard_before_it(at: Stage) -> None:
    ready(at)
    seen: list[tuple[bool, bool]] = []
    start = at.compute.start

    def watched(claim: Claim) -> None:
        known = at.ledger.run(claim.run)
        seen.append((known is not None and known.started, bool(at.guard.armed(INSTANCE))))
        assert at.store.get(keys.intent(claim.run)).data
        start(claim)

    at.compute.start = watched  # type: ignore[method-assign]
    tick(at.world, at.config)
    assert seen == [(True, True)]


def test_once_makes_one_step_and_keeps_it(at: Stage) -> None:
    ready(at)
    states = []
    for _ in range(400):
        ticked = once(at)
        if isinstance(ticked.decision, Hold):
            break
        states.append(ticked.runs[0].state)
        at.clock.sleep(5)
    assert (
        list(dict.fromkeys(states))
        == [
            RunState.PLANNED,
            RunState.ARMED,
            RunState.PROVISIONING,
            RunState.DISPATCHING,
            RunState.TRANSCRIBING,
            RunState.RELEASING,
            RunState.VERIFYING,
            RunState.SETTLED,
        ][states[0] is not RunState.PLANNED :]
    )
    assert state(at) is InstanceState.STOPPED


def test_a_listing_error_starts_nothing(at: Stage) -> None:
    ready(at)

    def broken(method: str, _key: str) -> None:
        if method == "list":
            raise StoreUnavailableError("the store did not answer")

    at.store.before = broken
    with pytest.raises(StoreUnavailableError):
        tick(at.world, at.config)
    assert [call for call, _ in at.compute.calls if call == "start"] == []


def test_no_capacity_is_an_outcome_not_a_loop(at: Stage) -> None:
    ready(at)
    at.compute.fail("start", Fault(NoCapacityError("no g4dn.xlarge in this zone now")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.cost.micros) == (Outcome.NO_CAPACITY, 0)
    assert [call for call, _ in at.compute.calls].count("start") == 1
    assert [call for call, _ in at.guard.calls if call != "armed"] == ["arm", "disarm"]
    assert "no g4dn.xlarge" in at.notes.messages[-1].body


@pytest.mark.parametrize("applied", [False, True])
def test_a_lost_start_reply_is_settled_by_looking(at: Stage, applied: bool) -> None:
    ready(at)
    at.compute.fail("start", Fault(ComputeUnavailableError("no reply"), applied=applied))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert state(at) is InstanceState.STOPPED
    assert at.compute.billed_seconds(INSTANCE) <= run.billed_seconds


def test_a_start_that_lands_after_we_gave_up_is_still_stopped(at: Stage) -> None:
    ready(at)
    claims: list[Claim] = []
    start = at.compute.start

    def lost(claim: Claim) -> None:
        claims.append(claim)
        raise ComputeUnavailableError("no reply")

    at.compute.start = lost  # type: ignore[method-assign]
    at.clock.at(2, at.clock.interrupt)
    at.clock.at(20, lambda: start(claims[0]))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.INTERRUPTED
    assert state(at) is InstanceState.STOPPED
    assert at.compute.billed_seconds(INSTANCE) > 0


def test_a_start_that_stays_stopped_has_a_name(at: Stage) -> None:
    ready(at)
    at.compute.break_boot(INSTANCE)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.STAYED_STOPPED
    most = LONGEST_LAG.total_seconds() + 2 * at.config.waits.poll
    assert run.billed_seconds <= most, "no more than may have run between two polls that count"


def test_a_host_that_never_answers_is_stopped(at: Stage) -> None:
    ready(at)
    at.launcher.silent_probes = 10_000
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.LAUNCH_FAILED
    assert (run.chunks_done, run.chunks_failed) == (0, 0), "no chunk was tried"
    assert state(at) is InstanceState.STOPPED


def test_a_worker_of_another_version_is_refused(at: Stage) -> None:
    ready(at)
    at.launcher.version = "0.0.1"
    ticked = tick(at.world, at.config)
    assert ticked.runs[0].outcome is Outcome.LAUNCH_FAILED
    assert isinstance(ticked.errors[0], MisconfiguredError)
    assert state(at) is InstanceState.STOPPED


def test_the_preflight_comes_before_any_intent(at: Stage) -> None:
    ready(at)

    def refuse() -> None:
        raise MisconfiguredError("run `batchscribe gpu setup`")

    with pytest.raises(MisconfiguredError):
        tick(replace(at.world, preflight=refuse), at.config)
    assert at.ledger.open_runs() == ()


def test_a_guard_that_cannot_be_armed_starts_nothing(at: Stage) -> None:
    ready(at)
    at.guard.fail("arm", Fault(BatchscribeError("no right to create a schedule")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.started) == (Outcome.START_FAILED, False)
    assert [call for call, _ in at.compute.calls if call in {"start", "stop"}] == []


def test_the_longest_runtime_stops_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(max_runtime=timedelta(minutes=6)))
    ready(at)
    at.worker.seconds_each = 10
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.TIMED_OUT
    assert 0 < run.chunks_done < 120
    assert state(at) is InstanceState.STOPPED
    assert run.machines[0].meter.stopped is not None
    assert run.machines[0].meter.stopped.at <= run.deadline + timedelta(minutes=2)
    at.ledger.close()


@pytest.mark.parametrize("after", [1, 15, 40, 100, 250])
def test_a_signal_releases_at_once(at: Stage, after: float) -> None:
    ready(at)
    at.clock.at(after, at.clock.interrupt)
    ticked = tick(at.world, at.config)
    (run,) = ticked.runs
    assert run.state is RunState.SETTLED
    assert run.outcome in {Outcome.INTERRUPTED, Outcome.COMPLETED}
    assert state(at) is InstanceState.STOPPED


def test_a_worker_that_died_is_noticed_and_its_chunk_is_blamed(at: Stage) -> None:
    names = ready(at)
    at.worker.dies_after = 7
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.chunks_done) == (Outcome.WORKER_LOST, 7)
    blamed = [info.key for info in at.store.list(keys.ATTEMPTS)]
    assert len(blamed) == 1
    assert keys.digest(names[7]) in blamed[0]
    assert state(at) is InstanceState.STOPPED


def test_a_silent_worker_is_given_up_by_a_clock_that_cannot_jump(at: Stage) -> None:
    ready(at)
    at.worker.seconds_each = 1e6
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.WORKER_LOST
    assert state(at) is InstanceState.STOPPED


def test_a_failed_engine_is_an_outcome(at: Stage) -> None:
    ready(at)
    at.worker.end, at.worker.message = WorkerEnd.FAILED, "the CUDA driver is gone"
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.detail) == (Outcome.WORKER_FAILED, "the CUDA driver is gone")


def test_a_poisoned_chunk_is_quarantined_and_never_starts_a_gpu(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(threshold=1))
    names = ready(at, 3)
    at.worker.fails = frozenset({names[1]})
    starts = 0
    for batch in range(6):
        at.upload(1, session=f"later-{batch}")
        at.clock.sleep(3600)
        starts += isinstance(tick(at.world, at.config).decision, Launch)
    assert starts == 6
    (held,) = at.store.list(keys.QUARANTINE)
    assert held.key == keys.quarantine(names[1])
    assert isinstance(tick(at.world, at.config).decision, Hold)
    assert len([i for i in at.store.list(keys.ATTEMPTS) if keys.digest(names[1]) in i.key]) == 3
    at.ledger.close()


def test_a_chunk_that_reached_the_limit_outside_a_run_is_quarantined(at: Stage) -> None:
    """Attempts of another scheduler, a lower limit, a deleted record: no run would settle it."""
    (name,) = ready(at, 1)
    etag = next(info.etag for info in at.store.list(name))
    for run in ("run-1", "run-2", "run-3"):
        failure = Failure(key=name, etag=etag, run=run, kind=FailureKind.CHUNK, message="", at=at.clock.now())
        at.store.create(keys.attempt(name, etag, run), wire.encode(failure))
    tick(at.world, at.config)
    assert at.store.keys(keys.QUARANTINE) == (keys.quarantine(name),)
    assert "quarantined now: 1" in at.notes.messages[-1].body
    again = tick(at.world, at.config)
    assert again.seen is not None
    assert again.seen.backlog.exhausted == 0


def test_what_the_poll_before_a_stop_showed_is_billed(at: Stage) -> None:
    """It may be the last poll that is answered for a long time."""
    ready(at)
    run = once(at).runs[0]
    while run.state is not RunState.TRANSCRIBING:
        at.clock.sleep(30)
        (run,) = once(at).runs
    at.compute.stop(INSTANCE)
    begin_teardown(at.world, run.to_teardown(Outcome.INTERRUPTED))
    recorded = at.ledger.run(run.id)
    assert recorded is not None
    assert recorded.machines[0].meter.stopped is not None


def test_a_stop_that_is_never_seen_is_an_alarm_and_is_tried_again(at: Stage) -> None:
    ready(at)
    lost = Fault(ComputeUnavailableError("no reply"))
    at.compute.fail("stop", *[lost] * 130)
    with pytest.raises(NotStoppedError) as raised:
        tick(at.world, at.config)
    assert raised.value.exit_code == 3
    assert at.notes.messages[-1].title == "batchscribe: a GPU may still be running"
    (run,) = reconcile(at.world, at.config)
    assert run.state is RunState.SETTLED
    assert state(at) is InstanceState.STOPPED


def test_a_gpu_that_runs_already_is_left_alone(at: Stage) -> None:
    ready(at)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    assert isinstance(tick(at.world, at.config).decision, Hold)
    assert state(at) is InstanceState.RUNNING


def test_a_gpu_that_runs_already_may_be_used_and_stays_running(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(if_running=IfRunning.USE))
    ready(at)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.borrowed) == (Outcome.COMPLETED, True)
    assert state(at) is InstanceState.RUNNING
    assert [call for call, _ in at.compute.calls if call == "stop"] == []
    at.ledger.close()


def test_a_gpu_that_is_coming_up_is_waited_for_where_it_may_be_used(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(if_running=IfRunning.USE))
    ready(at)
    at.compute.start_unclaimed(INSTANCE)
    assert state(at) is InstanceState.PENDING
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.borrowed) == (Outcome.COMPLETED, True)
    assert state(at) is InstanceState.RUNNING
    at.ledger.close()


def test_a_gpu_that_is_on_its_way_down_is_waited_for(at: Stage) -> None:
    ready(at)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    at.compute.stop(INSTANCE)
    assert state(at) is InstanceState.STOPPING
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.borrowed) == (Outcome.COMPLETED, False)
    assert state(at) is InstanceState.STOPPED


def test_another_schedulers_claim_is_respected(at: Stage) -> None:
    ready(at)
    deadline = at.clock.now() + timedelta(hours=1)
    at.compute.start(Claim(instance=INSTANCE, run="somebody-elses", deadline=deadline))
    at.clock.sleep(60)
    decision = tick(at.world, at.config).decision
    assert isinstance(decision, Hold)
    assert "another scheduler" in decision.reason.sentence
    assert reconcile(at.world, at.config) == ()
    assert state(at) is InstanceState.RUNNING


def test_a_tag_without_a_deadline_claims_no_stopped_instance(at: Stage) -> None:
    """A tag of an unknown run without a readable deadline would otherwise never lose its effect."""
    ready(at)
    at.compute.tag(INSTANCE, {RUN_TAG: "unknown-run"})
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, state(at)) == (Outcome.COMPLETED, InstanceState.STOPPED)


def test_a_gpu_stopped_by_somebody_else_mid_run_ends_it(at: Stage) -> None:
    ready(at)
    at.clock.at(120, lambda: at.compute.stop(INSTANCE))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.INSTANCE_LOST
    assert "stopped from outside" in run.detail
    assert list(at.store.list(keys.ATTEMPTS)) == [], "trouble of the machine is no chunk's fault"


class _KilledError(BaseException):
    """The controller's death: nothing catches it."""


@pytest.mark.parametrize("writes", range(1, 16))
def test_a_controller_killed_at_any_record_is_made_good_by_the_next_tick(at: Stage, writes: int) -> None:
    names = ready(at)
    save = at.ledger.save_run
    left = [writes]

    def killed(*arguments: object, **named: object) -> None:
        save(*arguments, **named)  # type: ignore[arg-type]
        left[0] -= 1
        if left[0] == 0:
            raise _KilledError

    at.ledger.save_run = killed  # type: ignore[method-assign]
    with contextlib.suppress(_KilledError):
        tick(at.world, at.config)
    at.ledger.save_run = save  # type: ignore[method-assign]
    at.clock.sleep(30)
    tick(at.world, at.config)
    assert sorted(at.worker.published) == names
    assert state(at) is InstanceState.STOPPED
    assert at.ledger.open_runs() == ()


def test_a_run_with_live_work_is_resumed_not_shot(at: Stage) -> None:
    ready(at)
    for _ in range(12):
        once(at)
        at.clock.sleep(5)
    (open_run,) = at.ledger.open_runs()
    assert open_run.state is RunState.TRANSCRIBING
    assert reconcile(at.world, at.config) == ()
    ticked = tick(at.world, at.config)
    assert ticked.runs[0].id == open_run.id
    assert ticked.runs[0].outcome is Outcome.COMPLETED


def test_a_run_past_its_deadline_is_reclaimed(at: Stage) -> None:
    ready(at)
    at.worker.seconds_each = 1e6
    for _ in range(12):
        once(at)
        at.clock.sleep(5)
    at.clock.sleep(3 * 3600)
    (run,) = reconcile(at.world, at.config)
    assert run.outcome is Outcome.TIMED_OUT
    assert state(at) is InstanceState.STOPPED


def test_a_lost_ledger_is_read_back_from_the_store(tmp_path: Path) -> None:
    first = stage(tmp_path / "a")
    ready(first)
    (done,) = tick(first.world, first.config).runs
    first.upload(110, session="t")
    first.clock.sleep(600)
    for _ in range(12):
        once(first)
        first.clock.sleep(5)
    (left_open,) = first.ledger.open_runs()
    second = stage(tmp_path / "b")
    world = replace(first.world, ledger=second.ledger)
    ticked = tick(world, first.config)
    assert isinstance(ticked.decision, Hold)
    assert ticked.runs[0].id == left_open.id
    assert ticked.runs[0].outcome is Outcome.COMPLETED
    remembered = second.ledger.run(done.id)
    assert remembered is not None
    assert remembered.cost == done.cost
    assert state(first) is InstanceState.STOPPED


def test_while_time_remains_the_run_goes_on_with_what_arrived_meanwhile(at: Stage) -> None:
    ready(at)
    at.clock.at(30, lambda: at.upload(40, session="later"))
    at.worker.seconds_each = 6
    (run,) = tick(at.world, at.config).runs
    assert len(run.manifests) == 2
    assert run.chunks_done == 160
    assert run.outcome is Outcome.COMPLETED


def test_a_paused_scheduler_still_finishes_what_it_began(at: Stage) -> None:
    ready(at)
    once(at)
    once(at)
    once(at)
    at.ledger.put("paused_until", (at.clock.now() + timedelta(hours=8)).isoformat())
    ticked = tick(at.world, at.config)
    assert isinstance(ticked.decision, Hold)
    assert ticked.decision.reason.code == "paused"
    assert state(at) is InstanceState.STOPPED


def test_decisions_of_an_open_run(at: Stage) -> None:
    ready(at)
    assert isinstance(once(at).decision, Launch)
    assert isinstance(once(at).decision, Reclaim | Resume)


# What broke it once, and must not again.


def midway(at: Stage) -> Run:
    """A run whose worker is at work, with no controller beside it."""
    for _ in range(12):
        once(at)
        at.clock.sleep(5)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.TRANSCRIBING
    return run


def stops(at: Stage) -> int:
    return [call for call, _ in at.compute.calls].count("stop")


def test_a_store_that_lost_the_manifest_does_not_keep_the_gpu_running(at: Stage) -> None:
    ready(at)
    run = midway(at)
    at.store.delete(run.manifests[0])
    tick(at.world, at.config)
    assert state(at) is InstanceState.STOPPED
    assert at.ledger.open_runs() == ()


def test_a_listing_that_fails_does_not_keep_an_orphan_running(at: Stage) -> None:
    ready(at)
    midway(at)
    at.clock.sleep(5 * 3600)

    def broken(method: str, _key: str) -> None:
        if method == "list":
            raise StoreUnavailableError("the store did not answer")

    at.store.before = broken
    with pytest.raises(StoreUnavailableError):
        tick(at.world, at.config)
    assert state(at) is InstanceState.STOPPED


def test_a_ledger_that_cannot_be_written_does_not_keep_the_gpu_running(at: Stage) -> None:
    ready(at)
    midway(at)

    def full(*_arguments: object, **_named: object) -> None:
        raise MisconfiguredError("the disk is full")

    at.ledger.save_run = full  # type: ignore[method-assign]
    at.ledger.put = full  # type: ignore[method-assign]
    assert any("the disk is full" in str(error) for error in tick(at.world, at.config).errors)
    assert state(at) is InstanceState.STOPPED


def test_a_look_that_is_older_than_the_start_proves_nothing(at: Stage) -> None:
    ready(at)
    at.compute.lag = timedelta(seconds=12)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    at.clock.sleep(60)
    assert state(at) is InstanceState.STOPPED
    assert at.compute.billed_seconds(INSTANCE) <= run.billed_seconds


def test_a_signal_right_after_the_start_waits_for_what_it_started(at: Stage) -> None:
    ready(at)
    at.compute.lag = timedelta(seconds=12)
    at.clock.at(6, at.clock.interrupt)
    (run,) = tick(at.world, at.config).runs
    at.clock.signal = None
    at.clock.sleep(60)
    assert run.outcome is Outcome.INTERRUPTED
    assert state(at) is InstanceState.STOPPED
    assert 0 < at.compute.billed_seconds(INSTANCE) <= run.billed_seconds


def test_a_run_is_finished_where_it_was_opened_whatever_the_settings_say(at: Stage) -> None:
    ready(at)
    run = midway(at)
    at.clock.sleep(3 * 3600)
    other = MemoryStore(at.clock, url="memory://elsewhere")
    world = replace(
        at.world,
        source=other,
        output=other,
        scanner=lambda _manual: Scanner(other, other, clock=at.clock),
        elsewhere=lambda _world, _run: at.world,
    )
    (closed,) = tick(world, replace(at.config, region="eu-west-1")).runs
    assert (closed.id, closed.outcome) == (run.id, Outcome.TIMED_OUT)
    assert state(at) is InstanceState.STOPPED
    assert at.store.get(keys.settlement(run.id)).data


def test_an_instance_that_seems_missing_is_not_taken_for_stopped(at: Stage) -> None:
    ready(at)
    midway(at)
    describe = at.compute.describe
    at.compute.describe = lambda instance: replace(  # type: ignore[method-assign]
        describe(instance), state=InstanceState.MISSING
    )
    at.clock.sleep(3 * 3600)
    with pytest.raises(NotStoppedError):
        tick(at.world, at.config)
    assert at.notes.messages[-1].title == "batchscribe: a GPU may still be running"


def test_tags_that_vanish_do_not_make_our_gpu_a_strangers(at: Stage) -> None:
    ready(at)
    at.clock.at(60, lambda: at.compute.release(INSTANCE))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert state(at) is InstanceState.STOPPED


def test_a_gpu_in_other_hands_is_left_alone_and_nobody_says_it_was_stopped(at: Stage) -> None:
    ready(at)
    other = Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now() + timedelta(hours=9))
    at.clock.at(60, lambda: at.compute.start(other))
    (run,) = tick(at.world, at.config).runs
    assert state(at) is InstanceState.RUNNING
    assert stops(at) == 0
    assert run.abandoned_gpu
    assert "not touched" in run.detail


def test_a_signal_at_an_odd_place_still_leads_to_the_release(at: Stage) -> None:
    ready(at)

    def show(_run: object, _progress: object) -> None:
        raise InterruptedRunError("asked to end by SIGTERM")

    at.notes.show = show  # type: ignore[method-assign, assignment]
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.INTERRUPTED
    assert state(at) is InstanceState.STOPPED


def test_a_signal_between_the_work_and_its_shield_changes_nothing(at: Stage) -> None:
    ready(at)
    shielded = at.clock.shielded
    late = [InterruptedRunError("asked to end by SIGTERM")]

    def shield() -> contextlib.AbstractContextManager[None]:
        if late:
            raise late.pop()
        return shielded()

    at.clock.shielded = shield  # type: ignore[method-assign, assignment]
    (run,) = tick(at.world, at.config).runs
    assert run.state is RunState.SETTLED
    assert state(at) is InstanceState.STOPPED


def test_step_by_step_too_a_stop_that_is_never_seen_is_an_alarm(at: Stage) -> None:
    ready(at)
    midway(at)
    at.clock.sleep(3 * 3600)
    lost = Fault(ComputeUnavailableError("no reply"))
    at.compute.fail("stop", *[lost] * 1000)
    told = None
    for _ in range(400):
        try:
            once(at)
        except NotStoppedError as error:
            told = error
            break
        at.clock.sleep(5)
    assert told is not None
    assert "no reply" in str(told)


def test_a_worker_on_a_machine_that_runs_on_is_killed_before_its_run_ends(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(if_running=IfRunning.USE, max_runtime=timedelta(minutes=5)))
    ready(at)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    at.worker.seconds_each, at.worker.deaf = 10, True
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.TIMED_OUT
    assert not any(worker.alive for worker in at.worker.started.values())
    assert at.launcher.killed
    at.ledger.close()


def test_starts_that_are_paid_for_nothing_come_further_and_further_apart(at: Stage) -> None:
    ready(at)
    at.launcher.silent_probes = 10**6
    starts = []
    for hour in range(48):
        if isinstance(tick(at.world, at.config).decision, Launch):
            starts.append(hour)
        at.clock.sleep(3600)
    assert len(starts) <= 7
    assert "paid for" in at.notes.messages[-1].body
    titles = [message.title for message in at.notes.messages if "paid for" in message.body]
    assert titles[0] == "batchscribe: no start for a while", "no chunk is late yet"
    assert titles[-1] == "batchscribe: chunks wait too long"
    at.launcher.silent_probes = 0
    manual = replace(at.config, policy=replace(at.config.policy, manual=True))
    assert tick(at.world, manual).runs[0].outcome is Outcome.COMPLETED


def test_starts_without_a_bill_hold_no_later_one(tmp_path: Path) -> None:
    at = stage(tmp_path, rate_of=lambda _type: FREE)
    ready(at)
    at.launcher.silent_probes = 10**6
    for _ in range(4):
        assert isinstance(tick(at.world, at.config).decision, Launch)
        at.clock.sleep(3600)
    at.ledger.close()


def test_a_chunk_that_never_ends_starves_nobody_and_starts_a_gpu_once(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(threshold=1, max_runtime=timedelta(minutes=20)))
    at.store.place("long/talk.wav", size=2_000_000_000)
    ready(at, 20)
    at.worker.endless = frozenset({"long/talk.wav"})
    (first,) = tick(at.world, at.config).runs
    assert first.chunks_done >= 20
    starts = 0
    for _ in range(40):
        at.clock.sleep(24 * 3600)
        starts += isinstance(tick(at.world, at.config).decision, Launch)
    assert starts == 3, "at its longest wait, once for each attempt; then it is quarantined"
    at.ledger.close()


def test_a_launch_that_never_succeeds_is_bounded(at: Stage) -> None:
    ready(at)
    at.launcher.fail("launch", *[LaunchError("the disk of the box is full")] * 10_000)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.LAUNCH_FAILED
    assert "disk of the box is full" in run.detail
    assert run.billed_seconds < 900


def test_a_second_worker_has_its_own_time_to_be_reached(at: Stage) -> None:
    ready(at, 150)
    at.worker.seconds_each = 6
    at.clock.at(60, lambda: at.upload(40, session="later"))

    def unreachable() -> None:
        at.launcher.silent_probes = 3

    at.clock.at(700, unreachable)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert run.chunks_done == 190


def test_one_session_that_cannot_be_written_holds_up_nothing_else(at: Stage) -> None:
    at.store.create("s/transcript.json", b"somebody's own")
    at.store.create("s/transcript.batchscribe.json", b"somebody's too")
    ready(at)
    ticked = tick(at.world, at.config)
    assert ticked.runs[0].state is RunState.SETTLED
    assert "are foreign files" in str(ticked.errors[0])
    assert at.notes.messages[-1].title.endswith("completed")
    assert at.store.get("s/transcript.json").data == b"somebody's own"


def test_what_was_deleted_or_replaced_meanwhile_is_not_called_done(at: Stage) -> None:
    names = ready(at)

    def change() -> None:
        at.store.delete(names[118])
        at.store.replace(names[119], b"another recording")

    at.worker.skips = frozenset(names[118:])
    at.clock.at(40, change)
    (run,) = tick(at.world, at.config).runs
    assert run.chunks_done == 118
    assert "chunks deleted or replaced meanwhile: 2" in run.detail


def test_a_moment_without_credentials_does_not_shoot_live_work(at: Stage) -> None:
    ready(at)
    at.clock.at(70, lambda: at.compute.fail("describe", Fault(MisconfiguredError("no credentials"))))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED


def test_died_between_manifest_and_record_the_work_is_still_counted(at: Stage) -> None:
    ready(at)
    save = at.ledger.save_run

    def killed(run: Run, **named: object) -> None:
        if run.manifests:
            raise _KilledError
        save(run, **named)  # type: ignore[arg-type]

    at.ledger.save_run = killed  # type: ignore[method-assign]
    with contextlib.suppress(_KilledError):
        tick(at.world, at.config)
    at.ledger.save_run = save  # type: ignore[method-assign]
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, 120)
    assert at.store.get("s/transcript.txt").data


def test_a_report_that_cannot_be_written_is_told_and_the_run_is_settled(at: Stage) -> None:
    ready(at)

    def unwritable(_run: Run) -> None:
        raise MisconfiguredError("the reports folder cannot be written")

    ticked = tick(replace(at.world, report=unwritable), at.config)
    assert ticked.runs[0].outcome is Outcome.COMPLETED
    assert isinstance(ticked.errors[0], MisconfiguredError)
    assert at.notes.messages[-1].title.endswith("completed")


def test_a_tick_that_fails_tells_people_but_not_at_every_tick(at: Stage) -> None:
    ready(at)

    def broken(method: str, _key: str) -> None:
        if method == "list":
            raise StoreUnavailableError("the store did not answer")

    at.store.before = broken
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            tick(at.world, at.config)
    assert [message.title for message in at.notes.messages] == ["batchscribe: the tick failed"]


def test_a_run_whose_instance_is_gone_for_good_is_closed_by_a_persons_word(at: Stage) -> None:
    ready(at)
    run = midway(at)
    closed = forget_run(at.world, run.id)
    assert (closed.state, closed.outcome) == (RunState.SETTLED, Outcome.INSTANCE_LOST)
    assert closed.cost.micros > 0
    assert closed.abandoned_gpu
    assert at.ledger.open_runs() == ()
    with pytest.raises(ObjectNotFoundError):
        forget_run(at.world, run.id)


def test_what_was_tried_in_a_run_is_not_tried_again_in_it(at: Stage) -> None:
    names = ready(at)
    at.worker.skips = frozenset(names[100:])
    at.worker.seconds_each = 6
    at.clock.at(30, lambda: at.upload(40, session="later"))
    (run,) = tick(at.world, at.config).runs
    first, second = (given(at, key) for key in run.manifests)
    assert not {chunk.key for chunk in first.chunks} & {chunk.key for chunk in second.chunks}
    assert (run.outcome, run.chunks_done) == (Outcome.INCOMPLETE, 140)


def given(at: Stage, key: str) -> Manifest:
    return wire.decode(at.store.get(key).data, Manifest)


def test_a_worker_that_outlived_its_launching_controller_is_followed(at: Stage) -> None:
    names = ready(at)
    launch = at.launcher.launch

    def killed(*arguments: object) -> None:
        launch(*arguments)  # type: ignore[arg-type]
        raise _KilledError

    at.launcher.launch = killed  # type: ignore[method-assign, assignment]
    with contextlib.suppress(_KilledError):
        tick(at.world, at.config)
    at.launcher.launch = launch  # type: ignore[method-assign]
    at.clock.sleep(130)
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, len(names))
    assert state(at) is InstanceState.STOPPED


def test_no_pass_waits_and_a_minute_timer_brings_the_run_to_its_end(at: Stage) -> None:
    names = ready(at)
    before = at.clock.monotonic()
    ticked = tick(at.world, at.config, wait=False)
    assert at.clock.monotonic() == before
    assert isinstance(ticked.decision, Launch)
    assert at.store.get(ticked.runs[0].manifests[0]).data, "the host finds its work at its first look"
    for _ in range(12):
        at.clock.sleep(60)
        watch(at.world, at.config)
    assert at.ledger.open_runs() == ()
    assert sorted(at.worker.published) == names
    assert state(at) is InstanceState.STOPPED


def test_a_manifest_that_is_not_ours_is_not_worked_on(at: Stage) -> None:
    ready(at)
    at.store.create(keys.manifest("20261123-121000-000000", 0), b"{}")
    ticked = tick(at.world, at.config)
    assert ticked.runs[0].outcome is Outcome.START_FAILED
    assert [call for call, _ in at.compute.calls if call == "start"] == []
    assert "was not written by this scheduler" in str(ticked.errors[0])


def test_the_decision_is_reported_before_its_run_is_followed(at: Stage) -> None:
    ready(at)
    shown: list[tuple[str, bool]] = []

    def show(ticked: Ticked) -> None:
        shown.append((ticked.decision.reason.sentence, at.ledger.open_runs()[0].open))

    ticked = tick(at.world, at.config, on_decision=show)
    assert shown == [(ticked.decision.reason.sentence, True)]
    assert not ticked.runs[0].open


def test_an_engine_that_cannot_run_is_not_recorded_as_the_last_one(at: Stage) -> None:
    at.upload(1)
    at.clock.sleep(600)
    config = replace(at.config, find_limits=lambda spec: f"no engine {spec.engine}")
    with pytest.raises(MisconfiguredError, match="no engine"):
        tick(at.world, config)
    assert at.ledger.get(ENGINE) is None
