"""The double of the guard refuses what EventBridge refuses, and fires."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from batchscribe.adapters.aws.schedules import extract_run, make_order
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.errors import ComputeUnavailableError, MisconfiguredError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute, Fault
from batchscribe.testing.eventbridge import refusals
from batchscribe.testing.guard import ROLE, FakeGuard

INSTANCE = "i-0123456789abcdef0"
HOUR = timedelta(hours=1)
MINUTES = 60.0


def claim_on(clock: FakeClock, run: str = "20261123-120000-abcdef", *, ahead: timedelta = HOUR) -> Claim:
    return Claim(instance=INSTANCE, run=run, deadline=clock.now() + ahead)


def running(clock: FakeClock) -> FakeCompute:
    compute = FakeCompute(clock)
    compute.add(INSTANCE)
    compute.start_unclaimed(INSTANCE)
    return compute


def test_an_order_stops_the_instance_ten_minutes_after_the_deadline_and_is_gone_after_three_tries() -> None:
    clock = FakeClock()
    compute = running(clock)
    guard = FakeGuard(clock, compute.stop, plan=clock.at)
    deadline = claim_on(clock).deadline
    guard.arm(claim_on(clock))
    clock.sleep(69 * MINUTES)
    assert compute.describe(INSTANCE).state is InstanceState.RUNNING
    clock.sleep(2 * MINUTES)
    assert compute.describe(INSTANCE).state is InstanceState.STOPPED
    assert guard.standing(INSTANCE) == {"20261123-120000-abcdef"}
    clock.sleep(20 * MINUTES)
    assert [each.at - deadline for each in guard.fired] == [timedelta(minutes=m) for m in (10, 15, 20)]
    assert guard.standing(INSTANCE) == frozenset()
    assert guard.next_due() is None


def test_a_try_that_falls_into_pending_fails_once_and_the_next_one_stops() -> None:
    clock = FakeClock()
    compute = running(clock)
    guard = FakeGuard(clock, compute.stop, plan=clock.at)
    guard.arm(claim_on(clock))
    clock.sleep(60 * MINUTES)
    compute.stop(INSTANCE)
    clock.at(10 * MINUTES - 5, lambda: compute.start_unclaimed(INSTANCE))
    clock.sleep(16 * MINUTES)
    assert [type(each.error) for each in guard.fired] == [ComputeUnavailableError, type(None)]
    assert compute.describe(INSTANCE).state is InstanceState.STOPPED


def test_a_disarmed_order_never_fires() -> None:
    clock = FakeClock()
    stopped: list[str] = []
    guard = FakeGuard(clock, stopped.append)
    guard.arm(claim_on(clock))
    guard.disarm(INSTANCE, "20261123-120000-abcdef")
    clock.sleep(100 * MINUTES)
    guard.fire_due()
    assert stopped == []


def test_another_deadline_for_the_same_run_replaces_the_order() -> None:
    clock = FakeClock()
    guard = FakeGuard(clock, lambda _instance: None)
    guard.arm(claim_on(clock))
    guard.arm(claim_on(clock, ahead=2 * HOUR))
    assert guard.next_due() == clock.now() + timedelta(minutes=130)


@pytest.mark.parametrize("applied", [True, False])
def test_a_fault_has_its_effect_or_not(applied: bool) -> None:
    clock = FakeClock()
    guard = FakeGuard(clock, lambda _instance: None)
    guard.fail("arm", Fault(ComputeUnavailableError("lost"), applied))
    with pytest.raises(ComputeUnavailableError):
        guard.arm(claim_on(clock))
    assert bool(guard.standing(INSTANCE)) is applied


def test_a_lost_try_is_remembered() -> None:
    clock = FakeClock()
    stopped: list[str] = []
    guard = FakeGuard(clock, stopped.append, plan=clock.at)
    guard.fail("fire", Fault(ComputeUnavailableError("nobody home")))
    guard.arm(claim_on(clock))
    clock.sleep(76 * MINUTES)
    assert stopped == [INSTANCE]
    assert [bool(each.error) for each in guard.fired] == [True, False]


def test_an_account_without_the_group_or_a_late_deadline_is_refused() -> None:
    clock = FakeClock()
    bare = FakeGuard(clock, lambda _instance: None, groups=frozenset())
    with pytest.raises(MisconfiguredError, match="batchscribe does not exist"):
        bare.arm(claim_on(clock))
    late = FakeGuard(clock, lambda _instance: None)
    with pytest.raises(MisconfiguredError, match="5 minutes ago"):
        late.arm(claim_on(clock, ahead=timedelta(minutes=-16)))
    assert bare.standing(INSTANCE) | late.standing(INSTANCE) == frozenset()


def test_the_name_of_an_order_says_instance_and_run() -> None:
    order = make_order(claim_on(FakeClock(), "hand-20261123-120000-abcdef"))
    assert order.name == f"{INSTANCE}.hand-20261123-120000-abcdef"
    assert extract_run(order.name, INSTANCE) == order.run


def test_what_we_ask_for_is_accepted() -> None:
    clock = FakeClock()
    assert refusals(make_order(claim_on(clock)).request(ROLE), clock.now()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Name": "run/7"}, "Name"),
        ({"Name": "x" * 65}, "Name"),
        ({"GroupName": "another"}, "does not exist"),
        ({"ScheduleExpression": "rate(0 minutes)"}, "Invalid Schedule Expression"),
        ({"ScheduleExpression": "every 5 minutes"}, "Invalid Schedule Expression"),
        ({"StartDate": FakeClock().now() - HOUR}, "5 minutes ago"),
        ({"EndDate": FakeClock().now() - HOUR}, "in the past"),
        ({"EndDate": FakeClock().now().replace(tzinfo=None)}, "with a zone"),
        ({"FlexibleTimeWindow": {"Mode": "off"}}, "neither OFF nor FLEXIBLE"),
        ({"FlexibleTimeWindow": {"Mode": "OFF", "MaximumWindowInMinutes": 5}}, "MaximumWindowInMinutes"),
        ({"State": "ON"}, "State"),
        ({"ActionAfterCompletion": "REMOVE"}, "ActionAfterCompletion"),
        ({"Description": "x" * 513}, "512"),
    ],
)
def test_what_eventbridge_refuses_is_refused(changes: dict[str, Any], said: str) -> None:
    clock = FakeClock()
    request = make_order(claim_on(clock)).request(ROLE) | changes
    assert said in "; ".join(refusals(request, clock.now()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Arn": "arn:aws:lambda:us-east-1:123456789012:function:x"}, "universal target"),
        ({"RoleArn": "batchscribe-guard"}, "RoleArn"),
        ({"RetryPolicy": {"MaximumEventAgeInSeconds": 30}}, "MaximumEventAgeInSeconds"),
        ({"RetryPolicy": {"MaximumRetryAttempts": 186}}, "MaximumRetryAttempts"),
        ({"Input": "i-0123456789abcdef0"}, "Input"),
        ({"Input": '{"InstanceIds": ["GPU"]}'}, "Input"),
    ],
)
def test_what_eventbridge_refuses_of_a_target_is_refused(changes: dict[str, Any], said: str) -> None:
    clock = FakeClock()
    request = make_order(claim_on(clock)).request(ROLE)
    assert isinstance(request["Target"], dict)
    request["Target"] |= changes
    assert said in "; ".join(refusals(request, clock.now()))


def test_a_role_that_is_none_is_refused_when_the_order_is_given() -> None:
    clock = FakeClock()
    guard = FakeGuard(clock, lambda _instance: None, role="")
    with pytest.raises(MisconfiguredError, match="RoleArn"):
        guard.arm(replace(claim_on(clock), run="r"))
