"""What a run puts down outside itself, and what becomes of it when the way to it is blocked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe.controller.external_state import NOTED, disarm_settled, retry_clean_up
from batchscribe.controller.recovery import recover
from batchscribe.controller.tick import reconcile, tick
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.run.host import ClaimLaunch, HostClaim, InstanceRecord
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import decode
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import RunState
from batchscribe.errors import (
    ComputeUnavailableError,
    CredentialsError,
    MisconfiguredError,
    NoCapacityError,
    QuotaError,
    StoreUnavailableError,
)
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import Fault
from batchscribe.testing.store import MemoryStore
from support.world import INSTANCE, Stage, once, stage

NO_CAPACITY = NoCapacityError("no capacity")
OTHERS = ("g5.xlarge", "g6.xlarge")
PRICES = {"g4dn.xlarge": "0.526", "g5.xlarge": "1.006", "g6.xlarge": "0.8048"}


def ready(at: Stage, count: int = 120) -> None:
    at.upload(count)
    at.clock.sleep(600)


def price(instance_type: str) -> Rate:
    if instance_type not in PRICES:
        raise MisconfiguredError(f"no price is known for {instance_type}")
    return Rate(per_hour=Usd.parse(PRICES[instance_type]), source="test")


def set_up(at: Stage, *, boots: bool = True, claim: HostClaim | None = None) -> None:
    record = InstanceRecord(
        instance=INSTANCE, release="1", at=at.clock.now(), boots=boots, shows_tags=True, claim=claim
    )
    at.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))


def record(at: Stage) -> InstanceRecord:
    return decode(at.store.get(keys.instance(INSTANCE)).data, InstanceRecord)


def tags(at: Stage) -> str | None:
    return at.compute.describe(INSTANCE).run


def test_an_order_that_cannot_be_taken_back_does_not_keep_the_run_open_and_is_not_forgotten(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(at)
    whole = at.guard.disarm
    monkeypatch.setattr(at.guard, "disarm", _raise(ComputeUnavailableError("throttled")))
    (run,) = tick(at.world, at.config).runs
    assert (run.state, run.outcome) == (RunState.SETTLED, Outcome.COMPLETED)
    assert at.guard.armed(INSTANCE) == {run.id}
    monkeypatch.setattr(at.guard, "disarm", whole)
    tick(at.world, at.config)
    assert at.guard.armed(INSTANCE) == frozenset()
    assert at.ledger.facts("outside/") == {}


def test_tags_that_cannot_be_emptied_are_emptied_later(at: Stage) -> None:
    ready(at)
    at.compute.fail("release", Fault(MisconfiguredError("no right to tag")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, tags(at)) == (Outcome.COMPLETED, run.id)
    tick(at.world, at.config)
    assert tags(at) is None


def test_a_note_about_a_run_that_was_never_recorded_is_dropped(at: Stage) -> None:
    at.ledger.put(f"{NOTED}never-recorded", "1")
    retry_clean_up(at.world, at.config)
    assert not at.ledger.facts(NOTED)


def test_a_broken_way_back_breaks_nothing_else(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(at)
    monkeypatch.setattr(at.guard, "disarm", _raise(ValueError("a mistake of ours")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, tags(at)) == (Outcome.COMPLETED, None)


def test_nothing_is_started_while_the_guard_cannot_be_armed(at: Stage) -> None:
    ready(at)
    at.guard.fail("arm", Fault(MisconfiguredError("no such role")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.started) == (Outcome.START_FAILED, False)
    assert "start" not in {call for call, _ in at.compute.calls}


def test_an_arming_that_may_succeed_later_is_tried_for_a_while_only(at: Stage) -> None:
    ready(at)
    at.guard.fail("arm", *[Fault(ComputeUnavailableError("EventBridge did not answer"))] * 200)
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.started) == (Outcome.ABANDONED, False)
    assert at.guard.calls.count(("arm", INSTANCE)) > 1
    assert at.clock.now() - run.created < timedelta(minutes=12)


def test_a_host_that_boots_finds_its_claim_before_the_start_and_none_after_it(at: Stage) -> None:
    ready(at)
    set_up(at)
    seen: list[tuple[InstanceState, HostClaim | None]] = []
    whole = at.compute.start

    def start(claim: Claim) -> None:
        seen.append((at.compute.describe(INSTANCE).state, record(at).claim))
        whole(claim)

    at.compute.start = start  # type: ignore[method-assign]
    (run,) = tick(at.world, at.config).runs
    ((state, claim),) = seen
    assert state is InstanceState.STOPPED
    assert claim == HostClaim(
        run=run.id, created=run.created, deadline=run.deadline, output=at.store.url, launch=ClaimLaunch.BOOT
    )
    assert (run.launch, record(at).claim) == ("boot", None)


@pytest.mark.parametrize(
    ("boots", "launch", "way"),
    [(True, "auto", "boot"), (True, "ssh", "ssh"), (True, "held", "held"), (False, "auto", "ssh")],
)
def test_how_the_workers_are_started_is_decided_once_and_left_in_the_claim(
    tmp_path: Path, boots: bool, launch: str, way: str
) -> None:
    at = stage(tmp_path, launch=launch)
    ready(at)
    set_up(at, boots=boots)
    left: list[str] = []
    at.clock.at(30, lambda: left.append(claimed(at)))
    (run,) = tick(at.world, at.config).runs
    assert (run.launch, left, record(at).claim) == (way, [way], None)
    at.ledger.close()


def claimed(at: Stage) -> str:
    """How the workers of the run that claims the instance are started."""
    claim = record(at).claim
    return claim.launch.value if claim else ""


@pytest.mark.parametrize("edited", [False, True], ids=["with the same settings", "with another output"])
def test_a_claim_that_cannot_be_taken_back_is_taken_back_later(
    at: Stage, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    ready(at)
    set_up(at)
    whole = at.store.replace

    def replace_(key: str, data: bytes) -> None:
        if key == keys.instance(INSTANCE) and b'"claim":null' in data:
            raise StoreUnavailableError("503")
        whole(key, data)

    monkeypatch.setattr(at.store, "replace", replace_)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    left = record(at).claim
    assert left is not None
    assert left.run == run.id
    monkeypatch.setattr(at.store, "replace", whole)
    world, another = at.world, MemoryStore(at.clock, url="memory://another")
    if edited:
        there = replace(world, source=another, output=another, home=another)
        world = replace(there, elsewhere=lambda _world, _run: at.world)
    tick(world, at.config)
    assert record(at).claim is None


def test_a_lost_ledger_forgets_neither_order_nor_claim(at: Stage, tmp_path: Path) -> None:
    ready(at)
    set_up(at)
    once(at)
    once(at)
    assert at.guard.armed(INSTANCE)
    fresh = Ledger(tmp_path / "another.sqlite")
    world = replace(at.world, ledger=fresh)
    at.clock.sleep(3600)
    reconcile(world, at.config)
    assert at.guard.armed(INSTANCE) == frozenset()
    assert record(at).claim is None
    fresh.close()


def test_a_lost_ledger_still_knows_how_the_host_came_to_its_work(at: Stage, tmp_path: Path) -> None:
    ready(at)
    set_up(at)
    once(at)
    (run,) = once(at).runs
    fresh = Ledger(tmp_path / "another.sqlite")
    recover(replace(at.world, ledger=fresh), at.config)
    (recovered,) = fresh.open_runs()
    assert recovered.launch == run.launch == ClaimLaunch.BOOT
    fresh.close()


def test_a_lost_ledger_finds_the_order_of_a_run_that_was_settled(
    at: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(at)
    whole = at.guard.disarm
    monkeypatch.setattr(at.guard, "disarm", _raise(ComputeUnavailableError("throttled")))
    tick(at.world, at.config)
    monkeypatch.setattr(at.guard, "disarm", whole)
    assert at.guard.armed(INSTANCE)
    fresh = Ledger(tmp_path / "another.sqlite")
    tick(replace(at.world, ledger=fresh), at.config)
    assert at.guard.armed(INSTANCE) == frozenset()
    fresh.close()


def test_a_lost_ledger_finds_a_tag_that_was_left_behind_long_ago(
    at: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(at)
    with monkeypatch.context() as patch:
        patch.setattr(at.compute, "release", _raise(ComputeUnavailableError("throttled")))
        (run,) = tick(at.world, at.config).runs
    assert at.compute.describe(INSTANCE).run == run.id
    at.clock.sleep(48 * 3600)
    fresh = Ledger(tmp_path / "another.sqlite")
    reconcile(replace(at.world, ledger=fresh), at.config)
    assert at.compute.describe(INSTANCE).released
    assert not fresh.facts("outside/")
    fresh.close()


def test_the_claim_of_another_run_stays(at: Stage) -> None:
    ready(at)
    set_up(at)
    now = at.clock.now()
    other = HostClaim(run="another", created=now, deadline=now, output=at.store.url, launch=ClaimLaunch.BOOT)
    at.clock.at(120, lambda: set_up(at, claim=other))
    tick(at.world, at.config)
    assert record(at).claim == other


def test_a_stale_order_of_a_settled_run_is_found(at: Stage) -> None:
    ready(at)
    (run,) = tick(at.world, at.config).runs
    for name in (run.id, "another-schedulers"):
        at.guard.arm(Claim(instance=INSTANCE, run=name, deadline=run.deadline))
    disarm_settled(at.world, INSTANCE)
    assert at.guard.armed(INSTANCE) == {"another-schedulers"}


def test_with_no_capacity_the_instance_becomes_the_next_type_and_gets_its_own_back(tmp_path: Path) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.compute.fail("start", Fault(NO_CAPACITY), Fault(NO_CAPACITY))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.instance_type) == (Outcome.COMPLETED, "g6.xlarge")
    assert run.tried_types == ("g4dn.xlarge", "g5.xlarge")
    assert run.rate == price("g6.xlarge")
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    at.ledger.close()


def test_a_type_the_instance_cannot_have_is_passed_over(tmp_path: Path) -> None:
    at = stage(tmp_path, types=("t9.unknown", *OTHERS), rate_of=price)
    ready(at)
    at.compute.fail("start", Fault(NO_CAPACITY))
    at.compute.fail("change_type", Fault(MisconfiguredError("needs ENA")))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.instance_type) == (Outcome.COMPLETED, "g6.xlarge")
    at.ledger.close()


def test_a_type_that_would_pass_the_budget_is_passed_over(tmp_path: Path) -> None:
    policy = Policy(daily_budget=Usd.parse("0.05"))
    at = stage(tmp_path, types=OTHERS, rate_of=price, policy=policy)
    ready(at)
    at.compute.fail("start", Fault(NO_CAPACITY))
    (run,) = tick(at.world, at.config).runs
    estimate = run.planned_seconds / 3600
    assert 0.526 * estimate < 0.05 < 0.8048 * estimate, "the batch fits the first type only"
    assert (run.outcome, run.instance_type) == (Outcome.NO_CAPACITY, "g4dn.xlarge")
    at.ledger.close()


def test_with_no_capacity_anywhere_each_type_is_tried_once(tmp_path: Path) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.compute.fail("start", *[Fault(NO_CAPACITY)] * 9)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.NO_CAPACITY
    assert [call for call, _ in at.compute.calls].count("start") == 3
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    assert all(name in run.detail for name in PRICES)
    at.ledger.close()


def test_a_type_that_was_just_given_back_is_not_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look before the next run is older than the change back."""
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.compute.fail("start", *[Fault(NO_CAPACITY)] * 5)
    tick(at.world, at.config)
    whole, fresh = at.compute.describe, at.clock.now() + timedelta(seconds=30)

    def describe(instance: str) -> Instance:
        seen = whole(instance)
        return replace(seen, type="g6.xlarge") if at.clock.now() < fresh else seen

    monkeypatch.setattr(at.compute, "describe", describe)
    (run,) = tick(at.world, at.config).runs
    assert run.own_type == "g4dn.xlarge"
    at.clock.sleep(120)
    reconcile(at.world, at.config)
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    at.ledger.close()


def test_a_person_s_session_does_not_get_another_type(tmp_path: Path) -> None:
    """It went off over its run, and a person started it as it was: its own type comes back after that."""
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.worker.seconds_each = 1e6
    at.compute.fail("start", Fault(NO_CAPACITY))
    for _ in range(60):
        once(at)
        at.clock.sleep(5)
    at.compute.stop(INSTANCE)
    at.clock.sleep(600)
    at.compute.start_unclaimed(INSTANCE)
    at.clock.sleep(60)
    (run,) = reconcile(at.world, at.config)
    assert run.abandoned_gpu
    assert ("change_type", INSTANCE) not in at.compute.calls[-20:]
    assert at.compute.describe(INSTANCE).released
    at.compute.stop(INSTANCE)
    at.clock.sleep(600)
    reconcile(at.world, at.config)
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    assert not at.ledger.facts("outside/")
    at.ledger.close()


@pytest.mark.parametrize("last", [MisconfiguredError("Unsupported"), CredentialsError("expired")])
def test_its_own_type_is_given_back_where_the_last_that_was_wanted_never_came_about(
    tmp_path: Path, last: MisconfiguredError
) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.compute.fail("start", *[Fault(NO_CAPACITY)] * 3)
    at.compute.fail("change_type", None, Fault(last))
    (run,) = tick(at.world, at.config).runs
    assert (run.instance_type, run.rate) == ("g5.xlarge", price("g5.xlarge")), (
        "what it is, not what it was to be"
    )
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    at.ledger.close()


@pytest.mark.parametrize("running", [True, False])
def test_a_lost_ledger_prices_the_type_that_runs_and_gives_it_back(tmp_path: Path, running: bool) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at, 400)
    at.compute.fail("start", Fault(NO_CAPACITY))
    while at.compute.describe(INSTANCE).state is not InstanceState.RUNNING:
        once(at)
        at.clock.sleep(10)
    (run,) = at.ledger.open_runs()
    if not running:
        at.compute.stop(INSTANCE)
        at.clock.sleep(60)
    fresh = Ledger(tmp_path / "another.sqlite")
    tick(replace(at.world, ledger=fresh), at.config)
    back = fresh.run(run.id)
    assert back is not None
    assert (back.instance_type, back.rate) == ("g5.xlarge", price("g5.xlarge"))
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    fresh.close()
    at.ledger.close()


def test_a_lost_ledger_gives_a_settled_run_s_type_back(tmp_path: Path) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=price)
    ready(at)
    at.compute.fail("start", Fault(NO_CAPACITY))
    at.compute.fail("change_type", None, Fault(ComputeUnavailableError("throttled")))
    (run,) = tick(at.world, at.config).runs
    assert (run.state, at.compute.describe(INSTANCE).type) == (RunState.SETTLED, "g5.xlarge")
    fresh = Ledger(tmp_path / "another.sqlite")
    tick(replace(at.world, ledger=fresh), at.config)
    back = fresh.run(run.id)
    assert back is not None
    assert (back.instance_type, back.cost) == ("g5.xlarge", run.cost)
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"
    fresh.close()
    at.ledger.close()


def test_a_type_that_somebody_else_gave_it_stays(tmp_path: Path) -> None:
    at = stage(tmp_path, types=OTHERS, rate_of=lambda _type: price("g5.xlarge"))
    ready(at)
    once(at)
    once(at)
    at.compute.change_type(INSTANCE, "m7i.large")
    fresh = Ledger(tmp_path / "another.sqlite")
    reconcile(replace(at.world, ledger=fresh), at.config)
    assert at.compute.describe(INSTANCE).type == "m7i.large"
    fresh.close()
    at.ledger.close()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NO_CAPACITY, Outcome.NO_CAPACITY),
        (QuotaError("quota"), Outcome.QUOTA),
        (CredentialsError("expired"), Outcome.CREDENTIALS),
        (ComputeUnavailableError("RequestLimitExceeded"), Outcome.THROTTLED),
    ],
)
def test_every_trouble_with_a_start_has_a_name_and_is_told_once(
    at: Stage, error: MisconfiguredError, outcome: Outcome
) -> None:
    ready(at)
    for _check in range(4):
        at.compute.fail("start", *[Fault(error)] * 200)
        run = tick(at.world, at.config).runs[-1]
        assert run.outcome is outcome
        assert str(error) in run.detail
        assert run.cost == Usd(0)
        at.clock.sleep(3600)
        at.compute._faults.clear()
    told = [message for message in at.notes.messages if outcome.value in message.title]
    assert len(told) == 1
    at.clock.sleep(3600)
    assert tick(at.world, at.config).runs[-1].outcome is Outcome.COMPLETED


def test_a_failed_start_alerts_before_the_longest_wait_is_missed(tmp_path: Path) -> None:
    at = stage(tmp_path, policy=Policy(threshold=1000, max_wait=timedelta(hours=3)))
    ready(at, 5)
    at.clock.sleep(1.9 * 3600)
    at.compute.fail("start", Fault(NO_CAPACITY))
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.NO_CAPACITY
    (alert,) = [message for message in at.notes.messages if "wait too long" in message.title]
    assert "no-capacity" in alert.body
    at.ledger.close()


def test_a_failed_start_with_time_left_alerts_nobody_of_waits(at: Stage) -> None:
    ready(at)
    at.compute.fail("start", Fault(NO_CAPACITY))
    tick(at.world, at.config)
    assert not [message for message in at.notes.messages if "wait too long" in message.title]


def test_a_cloud_that_cannot_be_looked_at_after_a_start_is_not_waited_for_for_hours(
    at: Stage,
) -> None:
    ready(at)
    whole = at.compute.start

    def start(claim: Claim) -> None:
        whole(claim)
        at.compute.fail("describe", *[Fault(ComputeUnavailableError("blind"))] * 150)

    at.compute.start = start  # type: ignore[method-assign]
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.THROTTLED
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert at.clock.now() < run.deadline


def _raise(error: Exception) -> object:
    def act(*_arguments: object) -> None:
        raise error

    return act


def test_tags_of_an_instance_that_another_owner_has_just_started_stay(at: Stage) -> None:
    """Its tags show later than its state, so ours may be gone already."""
    ready(at)
    at.compute.fail("release", Fault(MisconfiguredError("no right to tag")))
    (run,) = tick(at.world, at.config).runs
    at.clock.sleep(3600)
    at.compute.start_unclaimed(INSTANCE)
    retry_clean_up(at.world, at.config)
    assert tags(at) == run.id
    at.clock.sleep(120)
    retry_clean_up(at.world, at.config)
    assert tags(at) is None
