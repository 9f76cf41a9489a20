"""A run on two machines: each works, ends, is billed and is stopped by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from batchscribe.controller.advance import PassResult, advance_all
from batchscribe.controller.commands.overview import overview
from batchscribe.controller.records import read_progress
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.errors import ComputeUnavailableError, LaunchError, MisconfiguredError, NoCapacityError
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import Fault
from batchscribe.testing.guard import FakeGuard
from support.world import INSTANCE, Stage, advanced, stage

SECOND = "i-0fedcba9876543210"
BOTH = (INSTANCE, SECOND)
CHUNKS = 30


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    """A backlog that is too long for one machine: its estimate is 50 s a chunk, in a run of 20 min."""
    policy = Policy(name=PolicyName.NOW, max_runtime=timedelta(minutes=20))
    made = stage(tmp_path, policy=policy, instances=BOTH, priors=Priors(speed=0.2))
    made.compute.add(SECOND, instance_type="g4dn.xlarge")
    guard = FakeGuard(made.clock, made.compute.stop, plan=made.clock.at)
    made.world = replace(made.world, guard=guard)
    made.worker.seconds_each = 20.0
    for number in range(CHUNKS):
        made.upload(1, session=f"s{number:02}")
    made.clock.sleep(600)
    yield made
    made.ledger.close()


def advanced_to(at: Stage, state: RunState, *, workers: int = 0) -> Run:
    """The open run once it has that state, and so many workers were launched."""
    tick(at.world, at.config, wait=False)
    return advanced(
        at, lambda run: run.state is state and sum(worker.launched for worker in run.workers) >= workers
    )


def finished_after(at: Stage) -> Run:
    """A run from its start to its end."""
    tick(at.world, at.config, wait=False)
    return finished(at)


def finished(at: Stage) -> Run:
    """The run after all of its passes."""
    (run,) = at.ledger.open_runs()
    for _ in range(500):
        at.clock.sleep(5)
        advance_all(at.world, at.config, PassResult())
        if (found := at.ledger.run(run.id)) is not None and not found.open:
            return found
    raise AssertionError("the run was never settled")


def states(at: Stage) -> set[InstanceState]:
    return {at.compute.describe(instance).state for instance in BOTH}


def worker_of(run: Run, instance: str) -> tuple[str, int]:
    number = run.last_worker_on(instance)
    assert number is not None
    return run.id, number


def test_each_machine_works_and_is_billed_and_stopped(at: Stage) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    assert {worker.machine for worker in run.workers} == set(BOTH)
    run = finished(at)
    assert (run.outcome, run.chunks_done, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS, CHUNKS)
    assert states(at) == {InstanceState.STOPPED}
    bills = [run.billed_seconds_of(machine) for machine in run.machines]
    truth = [at.compute.billed_seconds(instance) for instance in BOTH]
    assert all(billed >= true > 0 for billed, true in zip(bills, truth, strict=True))
    assert run.billed_seconds == sum(bills)


def test_each_machine_has_a_stop_order_until_it_is_stopped(at: Stage) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    assert [at.world.guard.armed(instance) for instance in BOTH] == [{run.id}, {run.id}]
    finished(at)
    assert [at.world.guard.armed(instance) for instance in BOTH] == [set(), set()]
    assert [at.compute.describe(instance).run for instance in BOTH] == [None, None]


@pytest.mark.parametrize("lost", BOTH)
def test_a_lost_worker_does_not_end_the_others(at: Stage, lost: str) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    other = next(instance for instance in BOTH if instance != lost)
    at.clock.sleep(50)
    at.worker.started[worker_of(run, lost)].die()
    run = finished(at)
    numbers = [number for number, worker in enumerate(run.workers) if worker.machine == other]
    given = [at.worker.started[run.id, number].manifest for number in numbers]
    assert {chunk.key for manifest in given for chunk in manifest.chunks} <= set(at.worker.published)
    assert run.machine(lost).outcome is Outcome.WORKER_LOST
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS), "its rest was returned"
    assert states(at) == {InstanceState.STOPPED}


def test_a_worker_that_is_lost_last_does_not_fail_the_run(at: Stage) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    run = advanced(at, lambda run: run.machine(SECOND).over)
    at.worker.started[worker_of(run, INSTANCE)].die()
    run = finished(at)
    outcomes = [machine.outcome for machine in run.machines]
    assert (outcomes, run.outcome) == ([Outcome.WORKER_LOST, None], Outcome.INCOMPLETE)


def test_a_host_that_does_not_answer_does_not_delay_the_other(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = at.launcher.probe

    def probe_first(instance: Instance) -> str:
        if instance.id == SECOND:
            raise LaunchError("ssh to 1.2.3.4:22: connection timed out")
        return probe(instance)

    monkeypatch.setattr(at.launcher, "probe", probe_first)
    advanced_to(at, RunState.DISPATCHING, workers=1)
    run = advanced(at, lambda run: len(run.workers_on(INSTANCE)) > 1)
    assert not run.machine(SECOND).over


def test_a_run_has_failed_if_every_machine_has(at: Stage) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    for instance in BOTH:
        at.worker.started[worker_of(run, instance)].die()
    assert finished(at).outcome is Outcome.WORKER_LOST


def test_a_machine_without_capacity_leaves_the_work_to_the_other(at: Stage) -> None:
    at.compute.fail("start", None, Fault(NoCapacityError("no capacity")))
    advanced_to(at, RunState.TRANSCRIBING, workers=1)
    run = finished(at)
    assert run.machine(SECOND).outcome is Outcome.NO_CAPACITY
    assert (run.billed_seconds_of(run.machine(SECOND)), at.compute.billed_seconds(SECOND)) == (0, 0)
    assert run.chunks_done > 0


def test_the_type_is_not_changed_once_a_machine_was_started(at: Stage) -> None:
    """All machines of a run have one rate."""
    at.world = replace(at.world, capacity=replace(at.capacity, types=("g5.xlarge",)))
    at.compute.fail("start", None, Fault(NoCapacityError("no capacity")))
    run = finished_after(at)
    assert {call for call, _ in at.compute.calls} & {"change_type"} == set()
    assert [machine.outcome for machine in run.machines] == [None, Outcome.NO_CAPACITY]


def test_a_host_that_cannot_work_leaves_the_work_to_the_other(at: Stage) -> None:
    at.launcher.fail("probe", None, MisconfiguredError("the host key has changed"))
    advanced_to(at, RunState.TRANSCRIBING, workers=1)
    run = finished(at)
    assert run.machine(SECOND).outcome is Outcome.LAUNCH_FAILED
    assert {worker.machine for worker in run.workers if worker.launched} == {INSTANCE}
    assert states(at) == {InstanceState.STOPPED}


def test_a_machine_that_was_stopped_from_outside_does_not_end_the_other(at: Stage) -> None:
    advanced_to(at, RunState.TRANSCRIBING, workers=2)
    at.compute.stop(INSTANCE)
    run = finished(at)
    assert run.machine(INSTANCE).outcome is Outcome.INSTANCE_LOST
    assert run.chunks_done > 10


def test_teardown_waits_for_every_machine(at: Stage) -> None:
    advanced_to(at, RunState.TRANSCRIBING, workers=2)
    at.compute.hold(SECOND)
    run = advanced_to(at, RunState.RELEASING)
    while at.compute.describe(INSTANCE).state is not InstanceState.STOPPED:
        at.clock.sleep(5)
        advance_all(at.world, at.config, PassResult())
    advance_all(at.world, at.config, PassResult())
    (run,) = at.ledger.open_runs()
    assert [machine.released for machine in run.machines] == [True, False]
    calls = len(at.compute.calls)
    advance_all(at.world, at.config, PassResult())
    assert {instance for _, instance in at.compute.calls[calls:]} == {SECOND}
    at.compute.hold(SECOND, stuck=False)
    assert finished(at).state is RunState.SETTLED
    assert states(at) == {InstanceState.STOPPED}


@pytest.mark.parametrize("error", [ComputeUnavailableError("throttled"), TypeError("a bug")])
def test_a_stop_that_fails_does_not_prevent_the_next_one(
    at: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    advanced_to(at, RunState.TRANSCRIBING, workers=2)
    whole = at.compute.stop

    def stop(instance: str, *, force: bool = False) -> None:
        if instance == INSTANCE:
            raise error
        whole(instance, force=force)

    with capture_logs(), monkeypatch.context() as patch:
        patch.setattr(at.compute, "stop", stop)
        while at.compute.describe(SECOND).state is not InstanceState.STOPPED:
            at.clock.sleep(5)
            advance_all(at.world, at.config, PassResult())
    assert at.compute.describe(INSTANCE).state is InstanceState.RUNNING
    finished(at)
    assert states(at) == {InstanceState.STOPPED}


def test_a_lost_ledger_ends_no_work(at: Stage, tmp_path: Path) -> None:
    """The store shows which worker belongs to which machine."""
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world, at.ledger = replace(at.world, ledger=ledger), ledger
        assert reconcile(at.world, at.config) == ()
        (found,) = ledger.open_runs()
        assert [worker.machine for worker in found.workers] == [worker.machine for worker in run.workers]
        run = finished(at)
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)
    assert states(at) == {InstanceState.STOPPED}


def test_two_machines_take_no_more_than_the_limit(at: Stage) -> None:
    at.config = replace(at.config, policy=replace(at.config.policy, limit=3))
    run = finished_after(at)
    assert (run.outcome, sorted(at.worker.published)) == (
        Outcome.COMPLETED,
        [f"s{number:02}/chunk-001.webm" for number in range(3)],
    )


def test_an_abandoned_run_is_adopted_with_its_machines(at: Stage, tmp_path: Path) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    at.clock.sleep((run.deadline - at.clock.now()).total_seconds() + 301)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        other = replace(at.world, ledger=ledger, secret="another")
        (closed,) = reconcile(other, replace(at.config, scheduler="another"))
    assert (closed.instances, closed.outcome) == (BOTH, Outcome.TIMED_OUT)
    assert states(at) == {InstanceState.STOPPED}


def test_the_status_sums_the_progress_of_all_workers(at: Stage) -> None:
    run = advanced_to(at, RunState.TRANSCRIBING, workers=2)
    at.clock.sleep(70)
    (now,) = overview(at.world, at.config).runs
    reported = [read_progress(at.world, run.name_of(number)) for number in (0, 1)]
    counts = [(each.total, each.tally.done) for each in reported if each]
    assert len([done for _total, done in counts if done]) == 2
    assert (now.total, now.done) == (CHUNKS, sum(done for _total, done in counts)), "portions follow"
    assert now.id == run.id
