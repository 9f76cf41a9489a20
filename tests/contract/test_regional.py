"""Machines and stop orders of several regions: the suites, and what one region must not hide of another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result

from batchscribe.adapters.aws.eventbridge import EventBridgeGuard
from batchscribe.adapters.aws.fleet import FleetCapacity
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.adapters.regional import RegionalCapacity, RegionalGuard
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MACHINE_TAG, Claim, Instance, InstanceState
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError, NoCapacityError
from batchscribe.protocols import Guard
from batchscribe.testing.capacity_suite import DEADLINE, CreatedCapacityCase, CreatedCapacitySuite
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import Fault
from batchscribe.testing.fleet import FakeFleet
from batchscribe.testing.guard import ROLE, FakeGuard
from batchscribe.testing.guard_suite import GuardSuite
from support.aws import make_launch_template, make_schedule_group
from support.s3 import REGION, aws_client, aws_environment, moto_server
from support.values import RATE

WEST = "us-west-2"
REGIONS = (REGION, WEST)
NUMBERS = itertools.count(1)
SPOT = Offer(provider="fleet", instance_type="g5.xlarge", market=Market.SPOT, rate=RATE)
ON_DEMAND = replace(SPOT, market=Market.ON_DEMAND)
NO_ANSWER = Fault(ComputeUnavailableError("the region does not answer"))


def fresh_claim() -> Claim:
    run = f"20300102-120000-{next(NUMBERS):06x}"
    return Claim(instance=f"{run}-0", run=run, deadline=DEADLINE)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        make_launch_template(endpoint, "home")
        make_launch_template(endpoint, "west", region=WEST)
        for region in REGIONS:
            make_schedule_group(endpoint, region)
        yield endpoint


def make_fleet(endpoint: str, template: str, region: str) -> FleetCapacity:
    return FleetCapacity(
        provider="fleet",
        template=template,
        types=("g6.xlarge", "g5.xlarge"),
        markets=(Market.SPOT, Market.ON_DEMAND),
        rate_of=lambda *_offer: RATE,
        region=region,
        endpoint=endpoint,
    )


def make_fleets(endpoint: str) -> RegionalCapacity:
    return RegionalCapacity(
        {"": make_fleet(endpoint, "home", REGION), WEST: make_fleet(endpoint, "west", WEST)}
    )


def list_states(endpoint: str, machine: str, region: str) -> list[str]:
    filters: Any = [{"Name": f"tag:{MACHINE_TAG}", "Values": [machine]}]
    found = aws_client(endpoint, "ec2", region).describe_instances(Filters=filters)["Reservations"]
    return [row["State"]["Name"] for group in found for row in group["Instances"]]


class TestFleetsOfEc2(CreatedCapacitySuite):
    @pytest.fixture
    def case(self, endpoint: str) -> CreatedCapacityCase:
        claim = fresh_claim()
        return CreatedCapacityCase(
            capacity=make_fleets(endpoint),
            instance=claim.instance,
            missing=f"{claim.run}-1",
            run=claim.run,
            sleep=lambda _seconds: None,
        )


@dataclass
class Doubles:
    """Two regions in memory."""

    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.home = FakeFleet(self.clock, (SPOT, ON_DEMAND))
        self.west = FakeFleet(self.clock, (SPOT, ON_DEMAND), zones=("w",))
        self.both = RegionalCapacity({"": self.home, WEST: self.west})

    def create(self, fleet: FakeFleet, claim: Claim) -> None:
        (seen,) = fleet.poll((claim.instance,))
        fleet.acquire(claim, SPOT, seen)
        self.clock.sleep(60)


@pytest.fixture
def at() -> Doubles:
    return Doubles()


class TestFleetsInMemory(CreatedCapacitySuite):
    @pytest.fixture
    def case(self, at: Doubles) -> CreatedCapacityCase:
        claim = fresh_claim()
        return CreatedCapacityCase(
            capacity=at.both,
            instance=claim.instance,
            missing=f"{claim.run}-1",
            run=claim.run,
            sleep=at.clock.sleep,
        )


# Offers.


def test_a_further_region_is_offered_after_every_offer_of_the_first(at: Doubles) -> None:
    offers = at.both.offers(at.both.poll((fresh_claim().instance,))[0])
    assert [(offer.market, offer.region) for offer in offers] == [
        (Market.SPOT, ""),
        (Market.ON_DEMAND, ""),
        (Market.SPOT, WEST),
        (Market.ON_DEMAND, WEST),
    ]
    assert [offer.name for offer in offers][2:] == ["g5.xlarge spot us-west-2", "g5.xlarge us-west-2"]


def test_a_machine_in_a_further_region_is_offered_first_as_it_is(at: Doubles) -> None:
    claim = fresh_claim()
    at.create(at.west, claim)
    offers = at.both.offers(at.both.poll((claim.instance,))[0])
    assert [(offer.market, offer.region) for offer in offers] == [
        (Market.SPOT, WEST),
        (Market.SPOT, ""),
        (Market.ON_DEMAND, ""),
        (Market.ON_DEMAND, WEST),
    ]


def test_a_further_region_without_a_price_is_left_out(at: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_seen: object) -> tuple[Offer, ...]:
        raise MisconfiguredError("no price")

    (nothing,) = at.both.poll((fresh_claim().instance,))
    monkeypatch.setattr(at.west, "offers", refuse)
    assert {offer.region for offer in at.both.offers(nothing)} == {""}
    monkeypatch.setattr(at.home, "offers", refuse)
    with pytest.raises(MisconfiguredError, match="no price"):
        at.both.offers(nothing)


# Polls.


def test_a_machine_is_not_absent_while_a_region_does_not_answer(at: Doubles) -> None:
    claim = fresh_claim()
    for fleet in (at.home, at.west):
        fleet.fail("poll", NO_ANSWER)
        with pytest.raises(ComputeUnavailableError, match="does not answer"):
            at.both.poll((claim.instance,))
    assert at.both.poll((claim.instance,))[0].state is InstanceState.STOPPED


@pytest.mark.parametrize("silent", ["home", "west"])
def test_an_ended_machine_is_not_proved_ended_while_a_region_does_not_answer(
    at: Doubles, silent: str
) -> None:
    claim = fresh_claim()
    there = at.west if silent == "home" else at.home
    at.create(there, claim)
    there.teardown(claim.instance)
    at.clock.sleep(60)
    getattr(at, silent).fail("poll", NO_ANSWER)
    with pytest.raises(ComputeUnavailableError):
        at.both.poll((claim.instance,))
    assert at.both.poll((claim.instance,))[0].state is InstanceState.TERMINATED


def test_a_machine_that_is_up_is_shown_while_another_region_does_not_answer(at: Doubles) -> None:
    claim = fresh_claim()
    at.create(at.west, claim)
    at.home.fail("poll", NO_ANSWER)
    (seen,) = at.both.poll((claim.instance,))
    assert (seen.state, seen.region) == (InstanceState.RUNNING, WEST)


def test_a_further_region_is_not_polled_for_machines_that_are_up(at: Doubles) -> None:
    first, second = fresh_claim(), fresh_claim()
    at.create(at.home, first)
    at.west.calls.clear()
    at.both.poll((first.instance,))
    assert at.west.calls == []
    at.both.poll((first.instance, second.instance))
    assert at.west.calls == [("poll", second.instance)]


def test_an_unknown_region_of_a_machine_proves_nothing(endpoint: str) -> None:
    lost = RegionalCapacity(
        {"": make_fleet(endpoint, "home", REGION), WEST: make_fleet(endpoint, "other", WEST)}
    )
    claim = fresh_claim()
    (seen,) = lost.poll((claim.instance,))
    assert seen.state is InstanceState.MISSING
    assert f"there is no launch template other in {WEST}" in seen.state_reason
    usual = make_fleets(endpoint)
    usual.acquire(claim, replace(SPOT, region=WEST), seen)
    usual.teardown(claim.instance)
    assert lost.poll((claim.instance,))[0].state is InstanceState.TERMINATED, "it was there, and ended"


def test_a_request_whose_reply_was_lost_in_a_further_region_is_found(at: Doubles) -> None:
    claim = fresh_claim()
    (seen,) = at.both.poll((claim.instance,))
    at.home.fail("acquire", Fault(NoCapacityError("none")))
    with pytest.raises(NoCapacityError):
        at.both.acquire(claim, SPOT, seen)
    at.west.fail("acquire", Fault(ComputeUnavailableError("no answer"), applied=True))
    with pytest.raises(ComputeUnavailableError):
        at.both.acquire(claim, replace(SPOT, region=WEST), seen)
    at.clock.sleep(60)
    (seen,) = at.both.poll((claim.instance,))
    assert (seen.state, seen.region, seen.run) == (InstanceState.RUNNING, WEST, claim.run)
    assert at.home.machines == {}


# Ends.


def test_a_name_is_ended_in_every_region(endpoint: str) -> None:
    claim, capacity = fresh_claim(), make_fleets(endpoint)
    (nothing,) = capacity.poll((claim.instance,))
    for region in ("", WEST):
        capacity.acquire(claim, replace(SPOT, region=region), nothing)
    assert [list_states(endpoint, claim.instance, region) for region in REGIONS] == [["running"]] * 2
    assert [seen.id for seen in capacity.list_created()].count(claim.instance) == 1
    capacity.teardown(claim.instance)
    assert [list_states(endpoint, claim.instance, region) for region in REGIONS] == [["terminated"]] * 2


@pytest.mark.parametrize("call", ["teardown", "release"])
def test_a_region_that_fails_prevents_no_end_in_another(at: Doubles, call: str) -> None:
    claim = fresh_claim()
    at.create(at.west, claim)
    at.home.fail(call, NO_ANSWER)
    with pytest.raises(ComputeUnavailableError):
        getattr(at.both, call)(claim.instance)
    at.clock.sleep(60)
    assert at.both.poll((claim.instance,))[0].state is InstanceState.TERMINATED


def test_machines_of_one_region_are_listed_while_another_fails(at: Doubles) -> None:
    claim = fresh_claim()
    at.create(at.west, claim)
    at.home.fail("list_created", NO_ANSWER)
    listed = at.both.list_created()
    assert next(listed) == replace(at.both.poll((claim.instance,))[0], region=WEST)
    with pytest.raises(ComputeUnavailableError):
        next(listed)


@pytest.mark.parametrize("stopped", ["home", "west"])
def test_a_stopped_machine_of_one_region_hides_none_that_runs_in_another(
    at: Doubles, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    claim, up = fresh_claim(), "" if stopped == "west" else WEST
    at.create(at.home, claim)
    at.create(at.west, claim)
    (seen,) = getattr(at, stopped).list_created()
    halted = replace(seen, state=InstanceState.STOPPED)
    monkeypatch.setattr(getattr(at, stopped), "list_created", lambda: (halted,))
    (found,) = at.both.list_created()
    assert (found.state, found.region) == (InstanceState.RUNNING, up)


# The guard.


def make_guards(endpoint: str) -> RegionalGuard:
    return RegionalGuard(
        tuple(EventBridgeGuard(role=ROLE, region=region, endpoint=endpoint) for region in REGIONS)
    )


def fake_guards() -> tuple[FakeGuard, FakeGuard]:
    clock = FakeClock(DEADLINE - timedelta(hours=2))
    return FakeGuard(clock, lambda _name: None), FakeGuard(clock, lambda _name: None)


class TestGuards(GuardSuite):
    @pytest.fixture(params=["doubles", "eventbridge"])
    def guard(self, request: pytest.FixtureRequest) -> Guard:
        doubles = request.param == "doubles"
        return RegionalGuard(fake_guards()) if doubles else make_guards(request.getfixturevalue("endpoint"))


def test_an_order_is_armed_in_every_region(endpoint: str) -> None:
    guard, claim = make_guards(endpoint), fresh_claim()

    def list_orders(region: str) -> list[str]:
        client = aws_client(endpoint, "scheduler", region)
        found = client.list_schedules(GroupName=GROUP, NamePrefix=claim.instance)["Schedules"]
        return [order["Name"] for order in found]

    guard.arm(claim)
    assert [list_orders(region) for region in REGIONS] == [[f"{claim.instance}.{claim.run}"]] * 2
    guard.disarm(claim.instance, claim.run)
    assert [list_orders(region) for region in REGIONS] == [[], []]


def test_an_order_that_a_region_refuses_is_not_armed() -> None:
    home, west = fake_guards()
    claim = fresh_claim()
    west.fail("arm", NO_ANSWER)
    with pytest.raises(ComputeUnavailableError):
        RegionalGuard((home, west)).arm(claim)


def test_an_order_in_any_region_counts_and_one_that_stays_prevents_no_other() -> None:
    home, west = fake_guards()
    guard, claim = RegionalGuard((home, west)), fresh_claim()
    guard.arm(claim)
    home.fail("disarm", NO_ANSWER)
    with pytest.raises(ComputeUnavailableError):
        guard.disarm(claim.instance, claim.run)
    assert west.standing(claim.instance) == frozenset()
    assert guard.armed(claim.instance) == {claim.run}


# Commands.


@pytest.fixture
def fleet_settings() -> dict[str, str]:
    return {"GPU_LAUNCH_TEMPLATE": "home", "GPU_FURTHER_REGIONS": f"{WEST} west"}


@pytest.mark.parametrize("words", ["gpu stop --force", "reconcile"])
def test_a_command_ends_the_machines_of_every_region(
    command: Callable[..., Result], endpoint: str, words: str
) -> None:
    capacity = make_fleets(endpoint)
    claims = [replace(fresh_claim(), deadline=DEADLINE.replace(year=2026, month=1)) for _ in REGIONS]
    for claim, region in zip(claims, ("", WEST), strict=True):
        capacity.acquire(claim, replace(SPOT, region=region), capacity.poll((claim.instance,))[0])
    for _ in range(3):
        command(*words.split())
    states = [list_states(endpoint, claim.instance, at) for claim, at in zip(claims, REGIONS, strict=True)]
    assert states == [["terminated"]] * 2


@pytest.mark.parametrize("words", ["gpu status", "gpu status --json", "gpu stop --force"])
def test_a_region_without_an_answer_is_no_success(
    command: Callable[..., Result], endpoint: str, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The machine of the other region is shown, or ended, first."""
    capacity, claim = make_fleets(endpoint), fresh_claim()
    capacity.acquire(claim, SPOT, capacity.poll((claim.instance,))[0])
    list_machines = FleetCapacity.list_created

    def refuse_west(fleet: FleetCapacity) -> tuple[Instance, ...]:
        if fleet._api.client.meta.region_name == WEST:
            raise ComputeUnavailableError(f"{WEST} does not answer")
        return list_machines(fleet)

    with monkeypatch.context() as patched:
        patched.setattr(FleetCapacity, "list_created", refuse_west)
        done = command(*words.split())
    assert claim.instance in done.stdout
    assert done.exit_code == 1
    assert f"{WEST} does not answer" in (str(done.exception) if "--json" not in words else done.stdout)
    assert list_states(endpoint, claim.instance, REGION) == ["terminated" if "stop" in words else "running"]
    capacity.teardown(claim.instance)
