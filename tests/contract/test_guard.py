"""The suite of guards on the double, and on EventBridge Scheduler as moto plays it.

moto stores schedules, looks at none of them and never fires one. What EventBridge would refuse is asked
of the double's own validator, with the request that the adapter really sends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from botocore.validate import validate_parameters

from batchscribe.adapters.aws.eventbridge import EventBridgeGuard
from batchscribe.adapters.aws.fleet import FleetCapacity
from batchscribe.adapters.aws.schedules import GROUP, make_order
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.instances import GUARD_FIRST, GUARD_LAST, Claim, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    MisconfiguredError,
    MissingRightError,
)
from batchscribe.protocols import Guard
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.eventbridge import refusals
from batchscribe.testing.guard import ROLE, FakeGuard
from batchscribe.testing.guard_suite import GuardSuite
from support.aws import fire_order, make_launch_template, make_schedule_group
from support.s3 import REGION, aws_client, aws_environment, moto_server
from support.values import RATE

if TYPE_CHECKING:
    from mypy_boto3_scheduler import EventBridgeSchedulerClient

DEADLINE = GuardSuite.deadline


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        make_schedule_group(endpoint)
        yield endpoint


def real(endpoint: str, *, region: str = REGION, attempts: int = 1) -> EventBridgeGuard:
    return EventBridgeGuard(role=ROLE, region=region, endpoint=endpoint, attempts=attempts)


@pytest.fixture(params=["double", "eventbridge"])
def guard(request: pytest.FixtureRequest) -> Guard:
    if request.param == "double":
        return fake()
    return real(request.getfixturevalue("endpoint"))


def fake(**settings: Any) -> FakeGuard:
    return FakeGuard(FakeClock(DEADLINE - timedelta(hours=2)), lambda _instance: None, **settings)


class TestEveryGuard(GuardSuite):
    """The suite that ships, on the double and on ours."""


@pytest.mark.parametrize("kind", ["double", "eventbridge"])
def test_an_account_without_the_group_has_no_orders(kind: str, endpoint: str) -> None:
    guard = fake(groups=frozenset()) if kind == "double" else real(endpoint, region="eu-west-1")
    instance = fresh_claim().instance
    assert guard.armed(instance) == frozenset()
    guard.disarm(instance, "run-1")


# From here on: the real adapter alone.


def scheduler(endpoint: str) -> EventBridgeSchedulerClient:
    client: EventBridgeSchedulerClient = aws_client(endpoint, "scheduler")
    return client


fresh_claim = GuardSuite().new_claim


def test_what_the_adapter_really_sends_is_what_eventbridge_accepts(endpoint: str) -> None:
    guard, sent = real(endpoint), []

    def seen(params: dict[str, Any], **_event: object) -> None:
        sent.append(dict(params))

    guard._api.client.meta.events.register("provide-client-params.scheduler.CreateSchedule", seen)
    guard._api.client.meta.events.register("provide-client-params.scheduler.UpdateSchedule", seen)
    claim = fresh_claim()
    guard.arm(claim)
    guard.arm(Claim(instance=claim.instance, run=claim.run, deadline=DEADLINE + timedelta(hours=1)))
    created, again, updated = sent
    assert again == updated
    now = DEADLINE - timedelta(hours=2)
    assert [refusals(request, now) for request in (created, updated)] == [[], []]
    assert created["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:ec2:stopInstances"
    assert created["Target"]["Input"] == f'{{"InstanceIds": ["{claim.instance}"]}}'
    assert created["ActionAfterCompletion"] == "DELETE"
    assert created["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"] == 60


CREATED = Claim(instance="20300101-120000-abcdef-0", run="20300101-120000-abcdef", deadline=DEADLINE)


def test_the_order_of_a_created_machine_is_one_that_eventbridge_accepts() -> None:
    request = make_order(CREATED).request(ROLE)
    now = DEADLINE - timedelta(hours=2)
    assert refusals(request, now) == []
    target: Any = request["Target"]
    assert target["Arn"] == "arn:aws:scheduler:::aws-sdk:ssm:startAutomationExecution"
    asked = json.loads(target["Input"])
    assert asked == {
        "DocumentName": "AWS-TerminateEC2Instance",
        "TargetParameterName": "InstanceId",
        "Targets": [{"Key": "tag:batchscribe:machine", "Values": [CREATED.instance]}],
    }
    session: Any = boto3.session.Session()
    model = session.client("ssm", region_name=REGION).meta.service_model
    validate_parameters(asked, model.operation_model("StartAutomationExecution").input_shape)


@pytest.mark.parametrize(
    "wrong",
    [
        {"DocumentName": "AWS-StopEC2Instance"},
        {"TargetParameterName": "InstanceIds"},
        {"Targets": [{"Key": "batchscribe:machine", "Values": ["a"]}]},
        {"Targets": [{"Key": "tag:a", "Values": ["a"]}, {"Key": "tag:b", "Values": ["b"]}]},
        {"InstanceIds": ["i-0123456789abcdef0"]},
    ],
)
def test_systems_manager_refuses_another_request(wrong: dict[str, Any]) -> None:
    request: Any = make_order(CREATED).request(ROLE)
    asked = json.loads(request["Target"]["Input"]) | wrong
    changed = request | {"Target": request["Target"] | {"Input": json.dumps(asked)}}
    assert refusals(changed, DEADLINE - timedelta(hours=2)) != []


def test_an_order_ends_every_instance_of_its_machine_and_no_other(endpoint: str) -> None:
    make_launch_template(endpoint, "guarded")
    fleet = FleetCapacity(
        provider="fleet",
        template="guarded",
        types=("g5.xlarge",),
        markets=(Market.SPOT,),
        rate_of=lambda *_offer: RATE,
        region=REGION,
        endpoint=endpoint,
    )
    claims = [replace(CREATED, instance=f"{CREATED.run}-{number}") for number in (0, 1)]
    for claim in claims:
        (nothing,) = fleet.poll((claim.instance,))
        for _ in range(2):
            fleet.acquire(claim, fleet.offers(nothing)[0], nothing)
    real(endpoint).arm(claims[0])
    name = make_order(claims[0]).name
    kept: Any = scheduler(endpoint).get_schedule(Name=name, GroupName=GROUP)
    assert len(fire_order(endpoint, kept["Target"])) == 2
    states = [seen.state for seen in fleet.poll(tuple(claim.instance for claim in claims))]
    assert states == [InstanceState.TERMINATED, InstanceState.RUNNING]


def test_what_is_kept_is_what_was_asked_for(endpoint: str) -> None:
    claim = fresh_claim()
    real(endpoint).arm(claim)
    kept = scheduler(endpoint).get_schedule(Name=make_order(claim).name, GroupName=GROUP)
    whole = DEADLINE.replace(microsecond=0)
    assert (kept["StartDate"], kept["EndDate"]) == (whole + GUARD_FIRST, whole + GUARD_LAST)
    assert (kept["State"], kept["ScheduleExpression"]) == ("ENABLED", "rate(5 minutes)")


def test_another_deadline_replaces_the_order(endpoint: str) -> None:
    claim = fresh_claim()
    later = Claim(instance=claim.instance, run=claim.run, deadline=DEADLINE + timedelta(hours=1))
    real(endpoint).arm(claim)
    real(endpoint).arm(later)
    kept = scheduler(endpoint).get_schedule(Name=make_order(claim).name, GroupName=GROUP)
    assert kept["StartDate"] == make_order(later).first


def switched_off(endpoint: str, claim: Claim) -> None:
    request: Any = make_order(claim).request(ROLE) | {"State": "DISABLED"}
    scheduler(endpoint).update_schedule(**request)


def test_an_order_that_somebody_switched_off_does_not_stand_and_is_given_anew(endpoint: str) -> None:
    claim, guard = fresh_claim(), real(endpoint)
    guard.arm(claim)
    switched_off(endpoint, claim)
    assert guard.armed(claim.instance) == frozenset()
    guard.arm(claim)
    assert guard.armed(claim.instance) == {claim.run}


def test_orders_are_counted_over_every_page(endpoint: str) -> None:
    guard, instance = real(endpoint), fresh_claim().instance
    page: dict[str, Any] = {"Name": f"{instance}.run-1", "GroupName": GROUP}
    with Stubber(guard._api.client) as stub:
        asked = {"GroupName": GROUP, "NamePrefix": f"{instance}.", "State": "ENABLED"}
        stub.add_response("list_schedules", {"Schedules": [page], "NextToken": "more"}, asked)
        last = {"Schedules": [page | {"Name": f"{instance}.run-2"}]}
        stub.add_response("list_schedules", last, asked | {"NextToken": "more"})
        assert guard.armed(instance) == {"run-1", "run-2"}
        stub.assert_no_pending_responses()


def kept(claim: Claim, **otherwise: object) -> dict[str, Any]:
    request = make_order(claim).request(ROLE)
    return {name: value for name, value in request.items() if name != "ClientToken"} | otherwise


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        ({"State": "DISABLED"}, "State"),
        ({"StartDate": DEADLINE}, "StartDate"),
        ({"EndDate": DEADLINE + timedelta(days=1)}, "EndDate"),
        ({"ScheduleExpression": "rate(5 days)"}, "ScheduleExpression"),
        ({"Target": {"Arn": "x", "RoleArn": ROLE, "Input": "{}"}}, "Arn, Input"),
        ({"Target": {"Arn": "x", "RoleArn": ROLE, "Input": "{"}}, "Arn, Input"),
    ],
)
def test_an_order_that_reads_back_otherwise_does_not_count(
    endpoint: str, otherwise: dict[str, Any], said: str
) -> None:
    guard, claim = real(endpoint), fresh_claim()
    with Stubber(guard._api.client) as stub:
        arn = "arn:aws:scheduler:us-east-1:123456789012:schedule/batchscribe/x"
        stub.add_response("create_schedule", {"ScheduleArn": arn})
        stub.add_response("get_schedule", kept(claim, **otherwise))
        with pytest.raises(ComputeUnavailableError, match=f"a different {said}"):
            guard.arm(claim)


def test_an_order_that_cannot_be_read_back_does_not_count(endpoint: str) -> None:
    guard, claim = real(endpoint), fresh_claim()
    with Stubber(guard._api.client) as stub:
        arn = "arn:aws:scheduler:us-east-1:123456789012:schedule/batchscribe/x"
        stub.add_response("create_schedule", {"ScheduleArn": arn})
        stub.add_client_error("get_schedule", "ResourceNotFoundException", http_status_code=404)
        with pytest.raises(ComputeUnavailableError, match="does not count as armed"):
            guard.arm(claim)


@pytest.mark.parametrize(
    ("code", "status", "expected", "said"),
    [
        ("ResourceNotFoundException", 404, MisconfiguredError, "iam-policy --template"),
        ("ValidationException", 400, MisconfiguredError, "BATCH_CLOUD_GUARD=off"),
        ("AccessDeniedException", 403, MissingRightError, "scheduler:CreateSchedule"),
        ("ServiceQuotaExceededException", 402, MisconfiguredError, "Service Quotas"),
        ("ExpiredTokenException", 403, CredentialsError, "renew"),
        ("ThrottlingException", 429, ComputeUnavailableError, "try again"),
        ("InternalServerException", 500, ComputeUnavailableError, "try again"),
        ("NeverHeardOf", 400, MisconfiguredError, "NeverHeardOf"),
    ],
)
def test_every_refusal_has_its_meaning(
    endpoint: str, code: str, status: int, expected: type[BatchscribeError], said: str
) -> None:
    guard = real(endpoint)
    with Stubber(guard._api.client) as stub:
        stub.add_client_error("create_schedule", code, "no", http_status_code=status)
        with pytest.raises(expected, match=said) as caught:
            guard.arm(fresh_claim())
    assert isinstance(caught.value, expected)
    assert "\n" not in str(caught.value)


def test_a_lost_order_that_is_repeated_is_compared_and_not_doubled(endpoint: str) -> None:
    guard, claim = real(endpoint), fresh_claim()
    with Stubber(guard._api.client) as stub:
        stub.add_client_error("create_schedule", "ConflictException", http_status_code=409)
        stub.add_response("get_schedule", kept(claim), {"Name": ANY, "GroupName": GROUP})
        guard.arm(claim)
        stub.assert_no_pending_responses()


def test_nobody_at_the_address_is_no_answer() -> None:
    with nobody() as guard, pytest.raises(ComputeUnavailableError, match="did not answer"):
        guard.arm(fresh_claim())


@contextmanager
def nobody() -> Iterator[EventBridgeGuard]:
    with aws_environment():
        yield EventBridgeGuard(role=ROLE, region=REGION, endpoint="http://127.0.0.1:9", attempts=1)
