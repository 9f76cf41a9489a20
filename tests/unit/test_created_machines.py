"""A run that creates its machines: how many, of which offers, and what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.no_guard import NoGuard
from batchscribe.adapters.regional import RegionalCapacity
from batchscribe.controller import recovery
from batchscribe.controller.advance import PassResult, advance_all
from batchscribe.controller.commands.overview import overview
from batchscribe.controller.context import RunConfig, World, read_moment
from batchscribe.controller.external_state import NOTED
from batchscribe.controller.observe import observe
from batchscribe.controller.records import read_settlement
from batchscribe.controller.rehearsal_place import find_run_world
from batchscribe.controller.tick import forget_run, reconcile, tick, watch
from batchscribe.core import keys
from batchscribe.core.bounds import LATEST
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Policy, PolicyName, ReasonCode
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Launch, decide
from batchscribe.core.run.cloud_account import FurtherRegion
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import DEADLINE_TAG, MACHINE_TAG, RUN_TAG, Instance, InstanceState
from batchscribe.core.run.manifest import Manifest, WorkerEnd
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.core.run.waiting import find_wait
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    MissingRightError,
    NoCapacityError,
    NotStoppedError,
    QuotaError,
    RefusedError,
    StoreUnavailableError,
    TransientError,
)
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import CloudMachine, Fault
from batchscribe.testing.fleet import FakeFleet, show_named
from batchscribe.testing.worker import ChunkFate
from batchscribe.wiring.scheduler import HANG_SECONDS
from support.world import Stage, advanced, stage

IMAGE = "template"
CHUNKS = 48
SPOT = Offer(
    provider="fleet",
    instance_type="g4dn.xlarge",
    market=Market.SPOT,
    rate=Rate(per_hour=Usd.parse("0.20"), source="test"),
)
ON_DEMAND = replace(SPOT, market=Market.ON_DEMAND, rate=Rate(per_hour=Usd.parse("0.526"), source="test"))


class Fleet(Stage):
    """A stage whose cloud creates machines."""

    cloud: FakeFleet

    def of(self, run: Run, number: int) -> list[CloudMachine]:
        """Cloud machines that have this machine's name."""
        return self.cloud.list_named(f"{run.id}-{number}")

    def states(self) -> set[InstanceState]:
        return {machine.state for machine in self.cloud.machines.values()}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Fleet]:
    """48 chunks of 50 s of work each: 40 minutes, in runs of at most 30."""
    yield from fleet(tmp_path, machines=4)


def fleet(folder: Path, *, machines: int) -> Iterator[Fleet]:
    policy = Policy(name=PolicyName.NOW, max_runtime=timedelta(minutes=30))
    made = stage(
        folder,
        policy=policy,
        instances=(),
        max_machines=machines,
        image=IMAGE,
        provider="fleet",
        priors=Priors(speed=0.2, setup_seconds=60.0, setup_p95_seconds=120.0),
    )
    made.__class__ = Fleet
    assert isinstance(made, Fleet)
    made.cloud = FakeFleet(made.clock, (SPOT, ON_DEMAND))
    made.world = replace(made.world, capacity=made.cloud, guard=NoGuard("none"))
    made.worker.seconds_each = 20.0
    record = InstanceRecord(
        instance=IMAGE, release=__version__, at=made.clock.now(), boots=True, shows_tags=True
    )
    made.store.place(keys.instance(IMAGE), msgspec.json.encode(record))
    for number in range(CHUNKS):
        made.upload(1, session=f"s{number:02}")
    made.clock.sleep(600)
    yield made
    made.ledger.close()


def started(at: Fleet, *, at_work: int) -> Run:
    """The open run once so many machines are at work."""
    tick(at.world, at.config, wait=False)
    return advanced(at, lambda run: sum(map(run.is_at_work, run.machines)) >= at_work)


def finished(at: Fleet) -> Run:
    tick(at.world, at.config, wait=False)
    return settled(at)


def settled(at: Fleet) -> Run:
    (run,) = at.ledger.open_runs()
    return advanced_to_end(at, run)


def test_a_run_creates_as_many_machines_as_its_time_needs(at: Fleet) -> None:
    run = finished(at)
    assert run.instances == (f"{run.id}-0", f"{run.id}-1")
    assert "2 machines for one run within the longest wait" in run.reason
    assert (run.outcome, sorted(at.worker.published)) == (Outcome.COMPLETED, sorted(set(at.worker.published)))
    assert len(at.worker.published) == CHUNKS
    assert at.states() == {InstanceState.TERMINATED}
    assert [key for key, _ in ((info.key, 0) for info in at.store.list(keys.INSTANCES))] == [
        keys.instance(IMAGE)
    ]


def test_each_machine_is_billed_at_its_own_rate(at: Fleet) -> None:
    at.cloud.fail("acquire", None, Fault(NoCapacityError("no spot capacity")))
    run = finished(at)
    first, second = run.machines
    assert (first.market, second.market) == ("spot", "on-demand")
    assert (first.rate, second.rate) == (SPOT.rate, ON_DEMAND.rate)
    assert run.cost == run.bill_of(first) + run.bill_of(second)
    truth = [sum(at.cloud.billed_seconds(each.id) for each in at.of(run, number)) for number in (0, 1)]
    assert all(run.billed_seconds_of(m) >= true > 0 for m, true in zip(run.machines, truth, strict=True))
    bills = build(run).gpu.machines
    assert [bill.rate for bill in bills] == [0.2, 0.526]
    assert sum(bill.cost_micros for bill in bills) == run.cost.micros


def test_the_first_portions_are_half_of_the_work(at: Fleet) -> None:
    run = started(at, at_work=2)
    given = [len(at.worker.started[run.id, number].manifest.chunks) for number in (0, 1)]
    assert given == [CHUNKS // 4, CHUNKS // 4]


def test_a_lost_reply_of_a_create_call_creates_nothing_twice(at: Fleet) -> None:
    at.cloud.fail("acquire", Fault(ComputeUnavailableError("no answer"), applied=True))
    run = finished(at)
    assert [len(at.of(run, number)) for number in (0, 1)] == [1, 1]
    assert run.outcome is Outcome.COMPLETED


def test_a_machine_without_any_capacity_leaves_its_work_to_the_others(at: Fleet) -> None:
    at.cloud.fail("acquire", None, Fault(NoCapacityError("none")), Fault(QuotaError("too many vCPUs")))
    run = finished(at)
    assert [machine.outcome for machine in run.machines] == [None, Outcome.QUOTA]
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)
    assert run.billed_seconds_of(run.machines[1]) == 0


@pytest.mark.parametrize("power_off", [False, True])
def test_a_second_machine_of_one_name_is_ended_and_billed_too(at: Fleet, *, power_off: bool) -> None:
    run = started(at, at_work=2)
    name = f"{run.id}-0"
    second = at.cloud.create(name, "g4dn.xlarge", "spot", "a", {**at.of(run, 0)[0].tags})
    if power_off:  # by its agent, since the claim is the first one's
        at.clock.at(300, lambda: at.cloud.terminate(second.id))
    run = advanced_to_end(at, run)
    named = [m for m in at.cloud.machines.values() if m.tags[MACHINE_TAG] == name]
    ran = sum(at.cloud.billed_seconds(each.id) for each in named)
    assert len(named) == 2
    assert at.states() == {InstanceState.TERMINATED}
    assert run.outcome is Outcome.COMPLETED
    assert ran <= run.billed_seconds_of(run.machine(name)) < ran + 120
    assert run.cost == run.bill()


@pytest.mark.parametrize("dear_first", [False, True])
def test_machines_of_one_name_are_billed_at_the_dearest_one_s_price(at: Fleet, *, dear_first: bool) -> None:
    """The second request was for another offer: which instance a poll shows does not matter."""
    run = started(at, at_work=2)
    name = f"{run.id}-0"
    (first,) = at.of(run, 0)
    second = at.cloud.create(name, "g4dn.xlarge", "on-demand", "a", {**first.tags})
    at.clock.at(300, lambda: at.cloud.terminate((second if dear_first else first).id))
    before = run.machine(name).rate
    run = advanced_to_end(at, run)
    dear = run.machine(name).rate
    assert before is not None
    assert dear is not None
    assert dear.per_hour > before.per_hour
    assert run.cost == run.bill()


def advanced_to_end(at: Fleet, run: Run) -> Run:
    for _ in range(400):
        at.clock.sleep(10)
        advance_all(at.world, at.config, PassResult())
        if (found := at.ledger.run(run.id)) is not None and not found.open:
            return found
    raise AssertionError("the run was never settled")


def test_an_idle_machine_is_ended_while_the_other_works(at: Fleet) -> None:
    at.worker.slow = {1: 90.0}
    started(at, at_work=2)
    run = advanced(at, lambda run: any(machine.over for machine in run.machines))
    run = advanced(at, lambda run: any(machine.released for machine in run.machines))
    assert run.state is RunState.TRANSCRIBING
    assert at.states() == {InstanceState.RUNNING, InstanceState.TERMINATED}


def test_a_slow_worker_shares_its_rest(at: Fleet) -> None:
    """The idle machine takes a part of it, once the worker has ended; no chunk is done twice."""
    run = started(at, at_work=2)
    slow = at.worker.started[run.id, 1]
    at.worker.slow = {1: 400.0}
    run = advanced_to_end(at, run)
    assert slow.ended
    assert run.workers[1].revoked
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)
    assert len(set(at.worker.published)) == CHUNKS


def test_no_rest_is_given_while_its_worker_works(at: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request to end does not reach the slow worker: its chunks stay with it."""
    run = started(at, at_work=2)
    at.worker.slow = {1: 400.0}
    monkeypatch.setattr(at.world.launcher, "cancel", lambda *_request, **_force: None)
    run = advanced(at, lambda run: run.workers[1].revoked)
    run = advanced_to_end(at, run)
    given = [chunk.key for worker in at.worker.started.values() for chunk in worker.manifest.chunks]
    assert len(given) == len(set(given))


def test_the_rest_of_an_interrupted_machine_is_done_by_the_other(at: Fleet) -> None:
    run = started(at, at_work=2)
    at.clock.sleep(100)
    at.cloud.terminate(at.of(run, 1)[0].id)
    at.worker.started[run.id, 1].die()
    run = advanced_to_end(at, run)
    assert run.machines[1].outcome is Outcome.SPOT_INTERRUPTED
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)


def test_a_chunk_that_killed_its_worker_ends_no_other_machine(
    at: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer, fate = "s03/chunk-001.webm", at.worker._fate

    def fate_of(manifest: Manifest, key: str) -> ChunkFate:
        return ChunkFate.KILLER if key == killer else fate(manifest, key)

    monkeypatch.setattr(at.worker, "_fate", fate_of)
    run = finished(at)
    assert [machine.outcome for machine in run.machines] == [Outcome.WORKER_LOST, None]
    assert (run.outcome, len(at.worker.published)) == (Outcome.INCOMPLETE, CHUNKS - 1)
    given = [worker.manifest.chunks for worker in at.worker.started.values()]
    assert sum(killer in {chunk.key for chunk in chunks} for chunks in given) == 1


def test_after_an_interruption_the_next_check_starts_at_once(at: Fleet) -> None:
    at.config = replace(at.config, max_machines=1)
    run = started(at, at_work=1)
    at.clock.sleep(130)
    at.worker.started[run.id, 0].end(WorkerEnd.STOPPED, "the cloud interrupts this spot machine")
    at.cloud.terminate(at.of(run, 0)[0].id)
    run = advanced_to_end(at, run)
    assert run.outcome is Outcome.SPOT_INTERRUPTED
    assert run.chunks_done
    policy = replace(at.config.policy, name=PolicyName.THRESHOLD, threshold=1000)
    config = replace(at.config, policy=policy)
    decision = decide(observe(at.world, config), policy)
    assert isinstance(decision, Launch)
    assert decision.reason.code is ReasonCode.INTERRUPTED
    assert run.id in decision.reason.sentence


def test_a_lost_ledger_ends_no_work(at: Fleet, tmp_path: Path) -> None:
    run = started(at, at_work=2)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world, at.ledger = replace(at.world, ledger=ledger), ledger
        reconcile(at.world, at.config)
        (found,) = ledger.open_runs()
        assert [worker.machine for worker in found.workers] == [worker.machine for worker in run.workers]
        assert [machine.market for machine in found.machines] == ["spot", "spot"]
        run = advanced_to_end(at, run)
    assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)
    assert at.states() == {InstanceState.TERMINATED}


@pytest.mark.parametrize("number", [0, 1])
def test_an_unreadable_manifest_ends_no_other_machine(at: Fleet, tmp_path: Path, number: int) -> None:
    """Its chunks are unknown if the ledger is lost: the other machine works on whatever is pending."""
    run = started(at, at_work=2)
    at.store.place(keys.manifest(run.id, number), b"damaged")
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world, at.ledger = replace(at.world, ledger=ledger), ledger
        reconcile(at.world, at.config)
        (found,) = ledger.open_runs()
        assert [worker.machine for worker in found.workers] == [worker.machine for worker in run.workers]
        run = advanced_to_end(at, run)
    assert [machine.outcome for machine in run.machines] == [None, None]
    assert len(set(at.worker.published)) == len(at.worker.published) == CHUNKS
    assert "manifests that could not be read: 1" in run.detail
    assert at.states() == {InstanceState.TERMINATED}


def test_a_machine_that_never_ran_is_ended_if_the_ledger_is_lost(at: Fleet, tmp_path: Path) -> None:
    tick(at.world, at.config, wait=False)
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.PROVISIONING
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world, at.ledger = replace(at.world, ledger=ledger), ledger
        tick(at.world, at.config, wait=False)
        run = advanced_to_end(at, run)
    assert run.outcome is Outcome.INTERRUPTED
    assert at.states() == {InstanceState.TERMINATED}


def test_chunks_that_no_machine_got_in_time_are_left(at: Fleet) -> None:
    at.worker.seconds_each = 100.0
    run = finished(at)
    assert len(at.worker.published) < CHUNKS
    assert run.outcome is Outcome.TIMED_OUT or "that were left for the next run" in run.detail
    assert run.outcome is not Outcome.COMPLETED


def test_the_timer_lists_nothing_while_no_run_is_open(at: Fleet) -> None:
    assert watch(at.world, at.config).found == "no run is open"


def test_a_run_that_creates_machines_is_finished_in_the_present_world(at: Fleet) -> None:
    run = started(at, at_work=2)
    assert find_run_world(at.world, at.config, run) is at.world


def test_machines_that_are_up_are_not_reported_as_starting(at: Fleet) -> None:
    run = replace(started(at, at_work=2), worker_since=None)
    wait = find_wait(run, read_moment(at.world), up=600.0, reach=300.0)
    assert wait is not None
    assert wait.text == "waiting for the first worker of 2 machines"


def test_the_status_has_a_sentence_for_each_machine(at: Fleet) -> None:
    run = started(at, at_work=2)
    (now,) = overview(at.world, at.config).runs
    assert now.machines[0].startswith(
        f"{run.id}-0 (g4dn.xlarge spot, $0.20 an hour) is at work, at most $0.00"
    )
    assert now.total == CHUNKS


def passes(at: Fleet, act: Callable[[], object]) -> None:
    for _ in range(20):
        at.clock.sleep(60)
        act()


def test_the_progress_counts_all_workers_of_a_run(at: Fleet) -> None:
    """Those with other portions too, and that of a machine that died."""
    run = started(at, at_work=2)
    at.clock.sleep(100)
    at.cloud.terminate(at.of(run, 1)[0].id)
    at.worker.started[run.id, 1].die()
    advanced_to_end(at, run)
    shown = at.notes.shown
    assert {progress.total for progress in shown} == {CHUNKS}
    done = [progress.tally.done for progress in shown]
    assert done == sorted(done)
    assert done[-1] >= CHUNKS - 1


@pytest.mark.parametrize("act", [reconcile, watch])
def test_a_machine_of_a_settled_run_is_ended_and_billed(
    at: Fleet, act: Callable[[World, RunConfig], object]
) -> None:
    run = started(at, at_work=2)
    closed = forget_run(at.world, run.id)
    at.clock.sleep(1200)
    passes(at, lambda: act(at.world, at.config))
    assert at.states() == {InstanceState.TERMINATED}
    late = at.ledger.run(run.id)
    assert late is not None
    true = [sum(at.cloud.billed_seconds(each.id) for each in at.of(run, number)) for number in (0, 1)]
    assert all(late.billed_seconds_of(m) >= t for m, t in zip(late.machines, true, strict=True))
    assert late.cost == late.bill() > closed.cost
    assert [note.title for note in at.notes.messages].count("batchscribe: a machine of a settled run") == 2


@pytest.mark.parametrize("act", [reconcile, watch])
def test_the_stored_settlement_has_the_higher_bill_of_a_machine_that_showed_late(
    at: Fleet, act: Callable[[World, RunConfig], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the store fails at first; a ledger that is lost later recovers that bill."""
    run = finished(at)
    name, tags = run.instances[0], {RUN_TAG: run.id, DEADLINE_TAG: run.deadline.isoformat()}
    at.cloud.create(name, "g4dn.xlarge", "spot", "a", tags)
    reports, replace_object = len(at.notes.reports), at.store.replace

    def fail(key: str, data: bytes) -> None:
        monkeypatch.setattr(at.store, "replace", replace_object)
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(at.store, "replace", fail)
    at.clock.sleep(1200)
    passes(at, lambda: act(at.world, at.config))
    late = at.ledger.run(run.id)
    assert late is not None
    assert late.cost > run.cost
    assert read_settlement(at.world, run) == late
    assert [report.cost for report in at.notes.reports[reports:]] == [late.cost]
    assert not at.ledger.facts(NOTED)


def test_a_watchdog_whose_ledger_was_lost_continues_the_run(at: Fleet, tmp_path: Path) -> None:
    started(at, at_work=2)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        at.world, at.ledger = replace(at.world, ledger=ledger), ledger
        passes(at, lambda: watch(at.world, at.config))
    assert at.states() == {InstanceState.TERMINATED}


def test_an_overdue_machine_without_a_price_prevents_nothing(
    at: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended, too, and the next decision is about the backlog."""
    offers = at.cloud.offers

    def offers_with_a_price(seen: Instance) -> tuple[Offer, ...]:
        if seen.type == "m4.large":
            raise MisconfiguredError("no price for m4.large")
        return offers(seen)

    monkeypatch.setattr(at.cloud, "offers", offers_with_a_price)
    for run, kind in (("20200101-000000-aaaaaa", "m4.large"), ("20200102-000000-bbbbbb", "g4dn.xlarge")):
        tags = {RUN_TAG: run, DEADLINE_TAG: at.clock.now().isoformat()}
        at.cloud.create(f"{run}-0", kind, "spot", "a", tags)
    at.clock.sleep(400)
    passes(at, lambda: reconcile(at.world, at.config))
    assert {machine.state for machine in at.cloud.machines.values() if machine.tags[RUN_TAG] < "2021"} == {
        InstanceState.TERMINATED
    }
    assert isinstance(tick(at.world, at.config, wait=False).decision, Launch)


def test_of_two_schedulers_only_one_creates_machines(at: Fleet, tmp_path: Path) -> None:
    """The second one gives way if it decided at the same time, and holds from then on."""
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:

        def first() -> None:
            tick(at.world, at.config, wait=False)

        other = replace(at.world, ledger=ledger, secret="another", preflight=first)
        config = replace(at.config, scheduler="another")
        (abandoned,) = tick(other, config, wait=False).runs
        assert abandoned.outcome is Outcome.ABANDONED
        held = tick(replace(other, preflight=lambda: None), config, wait=False).decision
        assert held.reason.code is ReasonCode.GPU_IN_USE
    (run,) = at.ledger.open_runs()
    assert {machine.tags[RUN_TAG] for machine in at.cloud.machines.values()} == {run.id}


def forge_record(at: Fleet, **fields: object) -> Run:
    """Stores the unsealed record of a run that creates machines for this source, of any scheduler."""
    forged = Run(
        id="20991231-000000-ffffff",
        scheduler="forged",
        provider="fleet",
        machines=(Machine(id="20991231-000000-ffffff-0"),),
        source=at.store.url,
        output=at.store.url,
        policy="now",
        reason="forged",
        created=at.clock.now(),
        deadline=LATEST,
        rate=SPOT.rate,
    )
    record = replace(forged, **fields)  # type: ignore[arg-type]
    at.store.place(keys.intent(record.id), encode_run(record))
    return record


def test_a_forged_record_holds_starts_back_for_some_days_and_with_alerts(at: Fleet) -> None:
    """Only the scheduler that it names can check its seal."""
    forge_record(at)
    held = tick(at.world, at.config, wait=False).decision
    assert held.reason.code is ReasonCode.GPU_IN_USE
    at.clock.sleep(timedelta(days=6).total_seconds())
    tick(at.world, at.config, wait=False)
    titles = [note.title for note in at.notes.messages]
    assert "batchscribe: two schedulers on one source" in titles
    assert "batchscribe: chunks wait too long" in titles
    at.clock.sleep(timedelta(days=1).total_seconds())
    assert isinstance(tick(at.world, at.config, wait=False).decision, Launch)


def test_a_forged_record_in_the_name_of_this_scheduler_holds_nothing_back(at: Fleet) -> None:
    forge_record(at, scheduler=at.config.scheduler, host=at.config.host)
    ticked = tick(at.world, at.config, wait=False)
    assert isinstance(ticked.decision, Launch)
    assert "batchscribe: a control object is not ours" in [note.title for note in at.notes.messages]
    (run,) = at.ledger.open_runs()
    assert run.state is not RunState.RELEASING


@pytest.mark.parametrize("days", [-8, 8])
def test_a_record_of_another_time_holds_nothing_back(at: Fleet, days: int) -> None:
    forge_record(at, created=at.clock.now() + timedelta(days=days))
    assert isinstance(tick(at.world, at.config, wait=False).decision, Launch)


@pytest.mark.parametrize("machines", [1, 2])
def test_a_clock_that_was_set_back_extends_no_run(tmp_path: Path, machines: int) -> None:
    for at in fleet(tmp_path, machines=machines):
        run, began = started(at, at_work=machines), at.clock.monotonic()
        at.worker.seconds_each = 300.0
        at.clock.jump(-3 * 3600)
        run = advanced_to_end(at, run)
        assert run.outcome is Outcome.TIMED_OUT
        assert at.clock.monotonic() - began < at.config.policy.max_runtime.total_seconds() + 300


@pytest.mark.parametrize("machines", [1, 3])
def test_one_machine_works_like_an_existing_one(tmp_path: Path, machines: int) -> None:
    for at in fleet(tmp_path, machines=machines):
        at.config = replace(at.config, policy=replace(at.config.policy, max_runtime=timedelta(hours=2)))
        run = finished(at)
        assert (len(run.machines), len(run.workers)) == (1, 1)
        assert (run.outcome, len(at.worker.published)) == (Outcome.COMPLETED, CHUNKS)
        assert at.states() == {InstanceState.TERMINATED}


def test_a_machine_that_a_user_only_stopped_is_terminated(at: Fleet) -> None:
    run = started(at, at_work=2)
    (machine,) = at.of(run, 1)
    at.cloud._move(machine, InstanceState.STOPPED)
    at.worker.started[run.id, 1].die()
    advanced_to_end(at, run)
    at.clock.sleep(60)
    assert at.states() == {InstanceState.TERMINATED}


@pytest.mark.parametrize("machines", [1, 2])
def test_a_long_outage_of_the_store_is_reported_with_any_number_of_machines(
    at: Fleet, monkeypatch: pytest.MonkeyPatch, machines: int
) -> None:
    def fail(*_key: object, **_limit: object) -> None:
        raise StoreUnavailableError("the store does not answer")

    at.config = replace(at.config, max_machines=machines)
    run = started(at, at_work=machines)
    monkeypatch.setattr(at.store, "get", fail)
    for _ in range(int(at.config.waits.unreachable / 5) + 2):
        at.clock.sleep(5)
        advance_all(at.world, at.config, PassResult())
    assert [note.title for note in at.notes.messages] == ["batchscribe: a run cannot be followed"]
    (run,) = at.ledger.open_runs()
    assert (run.state, run.trouble) == (RunState.TRANSCRIBING, "the store does not answer")


def test_a_machine_that_lost_its_name_is_not_observed_stopped(at: Fleet) -> None:
    """A user removed its tag: it runs on, and no request by its name ends it."""
    run = started(at, at_work=2)
    at.cloud._named[f"{run.id}-1"].clear()
    at.worker.started[run.id, 1].die()
    lost = advanced_to_end(at, run)
    assert lost.machines[1].outcome is Outcome.INSTANCE_LOST
    assert InstanceState.RUNNING in at.states()
    assert "batchscribe: a GPU may still be running" in [note.title for note in at.notes.messages]


def test_a_spot_machine_that_a_user_terminated_was_not_interrupted_by_the_cloud(at: Fleet) -> None:
    run = started(at, at_work=2)
    (machine,) = at.of(run, 1)
    machine.reason = "Client.UserInitiatedShutdown: User initiated shutdown"
    at.cloud.terminate(machine.id)
    at.worker.started[run.id, 1].die()
    assert advanced_to_end(at, run).machines[1].outcome is Outcome.INSTANCE_LOST


def test_a_machine_that_cannot_be_ended_is_reported_while_the_other_works(
    at: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_name: str, *, force: bool = False) -> None:
        raise MisconfiguredError("termination protection")

    monkeypatch.setattr(at.cloud, "teardown", refuse)
    at.worker.slow = {1: 100.0}
    run = started(at, at_work=2)
    at.worker.started[run.id, 0].die()
    advanced(at, lambda run: run.machines[0].over)
    for _ in range(int(at.config.waits.stop / 5) + 2):
        at.clock.sleep(5)
        advance_all(at.world, at.config, PassResult())
    (run,) = at.ledger.open_runs()
    assert run.state is RunState.TRANSCRIBING
    assert [note.title for note in at.notes.messages] == ["batchscribe: a GPU may still be running"]


@pytest.mark.parametrize("repeated", [None, Fault(NoCapacityError("no spot capacity"))])
def test_after_a_lost_reply_another_offer_creates_no_second_machine(
    at: Fleet, monkeypatch: pytest.MonkeyPatch, repeated: Fault | None
) -> None:
    """Polls are older than the request, and the other machine finds no capacity."""
    cloud, refused = at.cloud, Fault(NoCapacityError("no spot capacity"))

    def poll(names: tuple[str, ...]) -> tuple[Instance, ...]:
        return tuple(show_named(name, cloud.list_named(name), at.clock.seconds - 20) for name in names)

    monkeypatch.setattr(cloud, "poll", poll)
    lost = Fault(ComputeUnavailableError("no answer"), applied=True)
    cloud.fail("acquire", lost, refused, repeated)
    run = finished(at)
    assert [len(at.of(run, number)) for number in (0, 1)] == [1, 1]
    assert [machine.market for machine in run.machines] == ["spot", "on-demand"]
    assert run.outcome is Outcome.COMPLETED


def test_a_machine_of_an_unknown_run_without_a_deadline_is_reported_and_left(at: Fleet) -> None:
    tags = {RUN_TAG: "20200101-000000-aaaaaa", DEADLINE_TAG: "soon"}
    at.cloud.create("20200101-000000-aaaaaa-0", "g4dn.xlarge", "spot", "a", tags)
    passes(at, lambda: reconcile(at.world, at.config))
    assert at.states() == {InstanceState.RUNNING}
    assert [note.title for note in at.notes.messages] == ["batchscribe: a machine without a deadline"]


# A further region.

WEST = "us-west-2"
NOT_HOME = Fault(NoCapacityError("no capacity"))


NOTHING = Instance(id="", state=InstanceState.STOPPED)


class TwoRegions(Fleet):
    west: FakeFleet


@pytest.fixture
def regions(at: Fleet) -> TwoRegions:
    """Machines are created in a second region, for half of the price, if the first has no capacity."""
    at.__class__ = TwoRegions
    assert isinstance(at, TwoRegions)
    cheap = Rate(per_hour=Usd.parse("0.10"), source="test west")
    at.west = FakeFleet(at.clock, (replace(SPOT, rate=cheap), replace(ON_DEMAND, rate=cheap)), zones=("w",))
    at.world = replace(at.world, capacity=RegionalCapacity({"": at.cloud, WEST: at.west}))
    at.config = replace(at.config, further_regions=(FurtherRegion(name=WEST, template="lt-west"),))
    return at


def count_requests(cloud: FakeFleet) -> int:
    return [call for call, _ in cloud.calls].count("acquire")


def test_a_lower_price_in_a_further_region_is_no_reason_to_go_there(regions: TwoRegions) -> None:
    run = finished(regions)
    assert run.outcome is Outcome.COMPLETED
    assert (len(regions.cloud.machines), len(regions.west.machines)) == (2, 0)
    assert {machine.region for machine in run.machines} == {""}


def test_the_next_region_is_used_once_the_first_has_no_capacity_for_any_offer(regions: TwoRegions) -> None:
    regions.cloud.fail("acquire", None, NOT_HOME, NOT_HOME)
    run = finished(regions)
    assert run.outcome is Outcome.COMPLETED
    assert run.tried_types == ("g4dn.xlarge spot", "g4dn.xlarge")
    first, second = run.machines
    assert [machine.offer for machine in (first, second)] == [
        ("g4dn.xlarge", "spot", ""),
        ("g4dn.xlarge", "spot", WEST),
    ]
    assert [machine.rate for machine in (first, second)] == [SPOT.rate, regions.west.offers(NOTHING)[0].rate]
    assert run.cost == run.bill_of(first) + run.bill_of(second)
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}


@pytest.mark.parametrize("applied", [True, False])
def test_a_request_without_a_reply_is_repeated_in_its_region(regions: TwoRegions, applied: bool) -> None:
    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    regions.west.fail("acquire", Fault(ComputeUnavailableError("no answer"), applied=applied))
    run = finished(regions)
    assert run.outcome is Outcome.COMPLETED
    assert [len(regions.west.list_named(name)) for name in run.instances] == [1, 1]
    assert (regions.cloud.machines, count_requests(regions.cloud)) == ({}, 2)


def test_a_machine_that_shows_in_another_region_than_recorded_has_its_price(regions: TwoRegions) -> None:
    """The reply of the first region came too late, and the second one was asked meanwhile."""
    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    run = started(regions, at_work=2)
    (name, _) = run.instances
    (machine,) = regions.west.list_named(name)
    regions.west.terminate(machine.id)
    regions.cloud.create(name, machine.type, machine.market, "a", machine.tags)
    run = advanced(regions, lambda run: run.machine(name).region == "")
    assert run.machine(name).rate == SPOT.rate


def test_a_region_that_does_not_answer_ends_no_work_and_proves_no_end(
    regions: TwoRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_names: tuple[str, ...]) -> tuple[Instance, ...]:
        raise ComputeUnavailableError("the region does not answer")

    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    started(regions, at_work=2)
    with monkeypatch.context() as patch:
        patch.setattr(regions.cloud, "poll", refuse)
        run = advanced(regions, lambda run: run.in_teardown)
        for _ in range(20):
            regions.clock.sleep(5)
            advance_all(regions.world, regions.config, PassResult())
        assert len(set(regions.worker.published)) == CHUNKS
        assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}
        assert regions.ledger.open_runs(), "its end is not proved"
    run = settled(regions)
    assert (run.outcome, all(machine.released for machine in run.machines)) == (Outcome.COMPLETED, True)


@pytest.mark.parametrize("now", [(), (FurtherRegion(name=WEST, template="lt-other"),)])
def test_a_run_is_ended_in_the_regions_that_it_was_opened_with(
    regions: TwoRegions, now: tuple[FurtherRegion, ...]
) -> None:
    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    run = started(regions, at_work=2)
    assert find_run_world(regions.world, regions.config, run) is regions.world
    opened: list[tuple[FurtherRegion, ...]] = []

    def elsewhere(world: World, of: Run) -> World:
        opened.append(of.further_regions)
        return regions.world

    present = replace(regions.world, capacity=regions.cloud, elsewhere=elsewhere)
    advance_all(present, replace(regions.config, further_regions=now), PassResult())
    assert set(opened) == {regions.config.further_regions}


@pytest.mark.parametrize("act", [reconcile, watch])
def test_an_abandoned_machine_in_a_further_region_is_ended(
    regions: TwoRegions, act: Callable[[World, RunConfig], object]
) -> None:
    run = "20200101-000000-aaaaaa"
    tags = {RUN_TAG: run, DEADLINE_TAG: regions.clock.now().isoformat()}
    regions.west.create(f"{run}-0", "g4dn.xlarge", "spot", "w", tags)
    passes(regions, lambda: act(regions.world, regions.config))
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}
    found = regions.ledger.run(run)
    assert found is not None
    assert found.further_regions == regions.config.further_regions


def test_the_status_of_a_machine_names_its_further_region(regions: TwoRegions) -> None:
    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    run = started(regions, at_work=2)
    (now,) = overview(regions.world, regions.config).runs
    assert now.machines[0].startswith(f"{run.id}-0 (g4dn.xlarge spot {WEST}, $0.10 an hour) is at work")


@pytest.mark.parametrize("changed", ["region", "further_regions"])
def test_a_lost_ledger_and_changed_settings_end_no_work_in_a_further_region(
    regions: TwoRegions, tmp_path: Path, changed: str
) -> None:
    regions.cloud.fail("acquire", *[NOT_HOME] * 2)
    run = started(regions, at_work=2)
    both = regions.world.capacity
    now: dict[str, Any] = {"region": "eu-west-1"} if changed == "region" else {"further_regions": ()}
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        regions.ledger, regions.config = ledger, replace(regions.config, **now)
        regions.world = replace(
            regions.world,
            ledger=ledger,
            capacity=FakeFleet(regions.clock, (SPOT, ON_DEMAND)),
            elsewhere=lambda world, _run: replace(world, capacity=both),
        )
        reconcile(regions.world, regions.config)
        (found,) = ledger.open_runs()
        assert [machine.region for machine in found.machines] == [WEST, WEST]
        run = advanced_to_end(regions, run)
    assert (run.outcome, len(regions.worker.published)) == (Outcome.COMPLETED, CHUNKS)
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}


@contextmanager
def silent(cloud: FakeFleet, error: type[BatchscribeError] = ComputeUnavailableError) -> Iterator[None]:
    """A region that answers to nothing, or refuses everything."""
    with pytest.MonkeyPatch.context() as patch:
        for call in ("poll", "list_created", "acquire", "announce", "teardown", "release"):
            patch.setattr(cloud, call, Mock(side_effect=error("the region does not answer")))
        yield


@pytest.mark.parametrize("error", [ComputeUnavailableError, MissingRightError])
def test_an_ended_machine_hides_no_other_one_while_a_region_does_not_answer(
    regions: TwoRegions, error: type[BatchscribeError]
) -> None:
    run = started(regions, at_work=2)
    (ended,) = regions.of(run, 1)
    with silent(regions.west, error):
        regions.cloud.terminate(ended.id)
        run = advanced(regions, lambda run: run.in_teardown)
        for _ in range(30):
            regions.clock.sleep(5)
            advance_all(regions.world, regions.config, PassResult())
        assert regions.states() == {InstanceState.TERMINATED}
        assert regions.ledger.open_runs(), "its end is not proved"
    run = settled(regions)
    assert all(machine.released for machine in run.machines)


def attempt(at: Fleet, act: Callable[[World, RunConfig], object]) -> None:
    with suppress(TransientError, NotStoppedError, MissingRightError):
        act(at.world, at.config)


@pytest.mark.parametrize("act", [reconcile, watch])
def test_a_machine_that_shows_after_its_abandoned_run_was_taken_over_is_ended(
    regions: TwoRegions, act: Callable[[World, RunConfig], object]
) -> None:
    run = "20200101-000000-aaaaaa"
    tags = {RUN_TAG: run, DEADLINE_TAG: regions.clock.now().isoformat()}
    regions.cloud.create(f"{run}-0", "g4dn.xlarge", "spot", "a", tags)
    regions.west.create(f"{run}-1", "g4dn.xlarge", "spot", "w", tags)
    with silent(regions.west):
        passes(regions, lambda: attempt(regions, act))
        assert regions.states() == {InstanceState.TERMINATED}
    passes(regions, lambda: attempt(regions, act))
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}
    found = regions.ledger.run(run)
    assert found is not None
    assert found.instances == (f"{run}-0", f"{run}-1")
    assert found.cost == found.bill_of(found.machines[0]) + found.bill_of(found.machines[1])
    ((span,),) = (machine.spans for machine in regions.west.machines.values())
    assert span.end is not None
    assert found.billed_seconds_of(found.machines[1]) >= span.end - span.begin


@pytest.mark.parametrize("error", [ComputeUnavailableError, MissingRightError])
def test_a_run_in_a_silent_region_is_not_reported_as_absent(
    regions: TwoRegions, error: type[BatchscribeError]
) -> None:
    run, tags = "20200101-000000-aaaaaa", {RUN_TAG: "another", DEADLINE_TAG: LATEST.isoformat()}
    regions.cloud.create("another-0", "g4dn.xlarge", "spot", "a", tags)
    regions.west.create(f"{run}-0", "g4dn.xlarge", "spot", "w", {**tags, RUN_TAG: run})
    with silent(regions.west, error), pytest.raises(error):
        recovery.adopt_run(regions.world, regions.config, run, Outcome.INTERRUPTED, "by a user")
    with pytest.raises(RefusedError, match="another-0 with another"):
        recovery.adopt_run(regions.world, regions.config, "other", Outcome.INTERRUPTED, "by a user")


@pytest.mark.parametrize("error", [ComputeUnavailableError, MissingRightError])
def test_a_silent_region_is_an_error_of_each_pass_beside_machines_of_another(
    regions: TwoRegions, error: type[BatchscribeError]
) -> None:
    regions.cloud.create("another-0", "g4dn.xlarge", "spot", "a", {RUN_TAG: "another"})
    with silent(regions.west, error):
        with pytest.raises(error):
            reconcile(regions.world, regions.config)
        made = tick(regions.world, regions.config, wait=False)
        assert {type(each) for each in made.errors} == {error}
    assert isinstance(made.decision, Launch)


def test_a_silent_region_beside_an_unclaimed_machine_is_in_the_watchdog_s_result(regions: TwoRegions) -> None:
    regions.cloud.create("another-0", "g4dn.xlarge", "spot", "a", {RUN_TAG: ""})
    with silent(regions.west):
        found = watch(regions.world, regions.config).found
    assert found.startswith("no run is open, and another-0 is pending, and ")


@pytest.mark.parametrize("error", [ComputeUnavailableError, MissingRightError])
def test_a_lost_ledger_and_a_silent_region_prevent_no_end_after_the_deadline(
    regions: TwoRegions, tmp_path: Path, error: type[BatchscribeError]
) -> None:
    regions.cloud.fail("acquire", None, *[NOT_HOME] * 2)
    regions.worker.seconds_each = 1e6
    run = started(regions, at_work=2)
    with Ledger(tmp_path / "new" / "ledger.sqlite") as ledger:
        regions.ledger, regions.world = ledger, replace(regions.world, ledger=ledger)
        with silent(regions.west, error):
            attempt(regions, reconcile)
            assert regions.states() == {InstanceState.RUNNING}
            regions.clock.sleep((run.deadline - regions.clock.now()).total_seconds())
            passes(regions, lambda: attempt(regions, reconcile))
            assert regions.states() == {InstanceState.TERMINATED}
        passes(regions, lambda: attempt(regions, reconcile))
        found = ledger.run(run.id)
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}
    assert found is not None
    assert found.instances == run.instances


def test_a_run_that_cannot_be_polled_hides_no_error_of_a_machine(
    at: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(at, at_work=2)
    monkeypatch.setattr(recovery, "_recover_run", Mock(side_effect=ComputeUnavailableError("no answer")))
    monkeypatch.setattr(recovery, "_end_unneeded", Mock(side_effect=NotStoppedError("it is up")))
    with (
        Ledger(tmp_path / "new" / "ledger.sqlite") as ledger,
        pytest.raises(NotStoppedError, match="no answer; it is up"),
    ):
        recovery.recover(replace(at.world, ledger=ledger), at.config)


def test_a_slow_region_does_not_end_the_process_during_the_clean_up(regions: TwoRegions) -> None:
    """Each machine has its own time: many of them take longer than a process that hangs may."""
    gaps, last = [0.0], [0.0]

    def keep_alive() -> None:
        gaps.append(regions.clock.monotonic() - last[0])
        last[0] = regions.clock.monotonic()

    def wait(*_claim: object) -> None:
        regions.clock.sleep(0.6 * HANG_SECONDS)
        raise ComputeUnavailableError("the region does not answer")

    run = started(regions, at_work=2)
    last[0] = regions.clock.monotonic()
    regions.world = replace(regions.world, keep_alive=keep_alive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoGuard, "disarm", wait)
        advanced_to_end(regions, run)
        keep_alive()
    assert 0.6 * HANG_SECONDS <= max(gaps) < HANG_SECONDS


def test_a_late_machine_is_billed_if_a_region_does_not_answer_to_its_end(regions: TwoRegions) -> None:
    run = finished(regions)
    tags = {RUN_TAG: run.id, DEADLINE_TAG: run.deadline.isoformat()}
    regions.west.create(f"{run.id}-0", "g4dn.xlarge", "spot", "w", tags)
    regions.clock.sleep(3600)
    with silent(regions.cloud):
        attempt(regions, watch)
    passes(regions, lambda: attempt(regions, watch))
    assert {machine.state for machine in regions.west.machines.values()} == {InstanceState.TERMINATED}
    found = regions.ledger.run(run.id)
    assert found is not None
    assert found.cost >= run.cost + Usd.parse("0.10"), "an hour at the price of the further region"
    assert "batchscribe: a machine of a settled run" in {note.title for note in regions.notes.messages}
