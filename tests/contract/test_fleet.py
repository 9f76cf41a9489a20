"""The suite of a capacity that creates machines, on EC2 Fleet as moto plays it, and its refusals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.stub import Stubber
from click.testing import Result

from batchscribe.adapters.aws.fleet import FleetCapacity
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MACHINE_TAG, RUN_TAG, Claim, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    MissingRightError,
    NoCapacityError,
    QuotaError,
    RefusedError,
)
from batchscribe.testing.capacity_suite import DEADLINE, CreatedCapacityCase, CreatedCapacitySuite
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.fleet import FakeFleet
from support.aws import AMAZON_IMAGE, make_launch_template
from support.faults import Drop, FaultProxy, Refusal, fault_proxy
from support.s3 import REGION, aws_client, aws_environment, moto_server
from support.values import RATE

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

TYPES = ("g6.xlarge", "g5.xlarge")
NUMBERS = itertools.count(1)
SPOT_OFFER = Offer(provider="fleet", instance_type="g5.xlarge", market=Market.SPOT, rate=RATE)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        make_launch_template(endpoint)
        yield endpoint


@pytest.fixture(scope="module")
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    with fault_proxy() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def fresh(proxy: FaultProxy) -> None:
    proxy.forget()


def make_fleet(endpoint: str, **otherwise: Any) -> FleetCapacity:
    chosen: dict[str, Any] = {
        "provider": "fleet",
        "template": "gpu",
        "types": TYPES,
        "markets": (Market.SPOT, Market.ON_DEMAND),
        "rate_of": lambda *_offer: RATE,
        "region": REGION,
        "endpoint": endpoint,
    }
    return FleetCapacity(**(chosen | otherwise))


@pytest.fixture
def fleet(proxy: FaultProxy) -> FleetCapacity:
    return make_fleet(proxy.endpoint, attempts=1)


def fresh_claim() -> Claim:
    run = f"20300101-120000-{next(NUMBERS):06x}"
    return Claim(instance=f"{run}-0", run=run, deadline=DEADLINE)


def client(endpoint: str) -> EC2Client:
    made: EC2Client = aws_client(endpoint, "ec2")
    return made


def instances_of(endpoint: str, machine: str) -> list[Any]:
    filters: Any = [{"Name": f"tag:{MACHINE_TAG}", "Values": [machine]}]
    answer = client(endpoint).describe_instances(Filters=filters)
    return [row for group in answer["Reservations"] for row in group["Instances"]]


class TestEc2Fleet(CreatedCapacitySuite):
    @pytest.fixture
    def case(self, endpoint: str) -> CreatedCapacityCase:
        claim = fresh_claim()
        return CreatedCapacityCase(
            capacity=make_fleet(endpoint),
            instance=claim.instance,
            missing=f"{claim.run}-1",
            run=claim.run,
            sleep=FakeClock().sleep,
        )


class TestDouble(CreatedCapacitySuite):
    @pytest.fixture
    def case(self) -> CreatedCapacityCase:
        clock = FakeClock()
        return CreatedCapacityCase(
            capacity=FakeFleet(clock, (SPOT_OFFER, replace(SPOT_OFFER, market=Market.ON_DEMAND))),
            instance="run-1-0",
            missing="run-1-1",
            sleep=clock.sleep,
        )


# The request.


def sent_by(fleet: FleetCapacity) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    fleet._api.client.meta.events.register(
        "provide-client-params.ec2.CreateFleet", lambda params, **_event: sent.append(dict(params))
    )
    return sent


def test_one_machine_is_requested_in_one_subnet_of_each_zone(fleet: FleetCapacity, endpoint: str) -> None:
    claim, sent = fresh_claim(), sent_by(fleet)
    fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    (request,) = sent
    (config,) = request["LaunchTemplateConfigs"]
    subnets = [each["SubnetId"] for each in config["Overrides"]]
    rows = client(endpoint).describe_subnets(SubnetIds=subnets)["Subnets"]
    assert len({row["AvailabilityZone"] for row in rows}) == len(subnets) > 1
    assert {each["InstanceType"] for each in config["Overrides"]} == {"g5.xlarge"}
    assert request["TargetCapacitySpecification"] == {
        "TotalTargetCapacity": 1,
        "DefaultTargetCapacityType": "spot",
    }
    assert (request["Type"], request["SpotOptions"]) == (
        "instant",
        {"AllocationStrategy": "price-capacity-optimized"},
    )
    (tags,) = request["TagSpecifications"]
    assert {each["Key"]: each["Value"] for each in tags["Tags"]} == claim.tags | {MACHINE_TAG: claim.instance}
    assert request["ClientToken"] == f"{claim.instance}-spot-g5.xlarge"


def test_of_two_subnets_in_a_zone_the_emptier_one_is_used(endpoint: str) -> None:
    ec2 = client(endpoint)
    (default,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    block = default["CidrBlock"].rsplit(".", 2)[0]
    small, large = (
        ec2.create_subnet(VpcId=default["VpcId"], CidrBlock=f"{block}.{cidr}", AvailabilityZone=f"{REGION}a")
        for cidr in ("240.0/28", "241.0/26")
    )
    ids = tuple(each["Subnet"]["SubnetId"] for each in (large, small))
    fleet, claim = make_fleet(endpoint, subnets=ids), fresh_claim()
    sent = sent_by(fleet)
    fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    (config,) = sent[0]["LaunchTemplateConfigs"]
    assert [each["SubnetId"] for each in config["Overrides"]] == [ids[0]]


def test_the_subnet_of_a_template_stays(endpoint: str) -> None:
    subnet = client(endpoint).describe_subnets()["Subnets"][0]["SubnetId"]
    cards = [{"DeviceIndex": 0, "SubnetId": subnet}]
    make_launch_template(endpoint, "with-subnet", NetworkInterfaces=cards)
    fleet, claim = make_fleet(endpoint, template="with-subnet"), fresh_claim()
    sent = sent_by(fleet)
    fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    assert sent[0]["LaunchTemplateConfigs"][0]["Overrides"] == [{"InstanceType": "g5.xlarge"}]


def test_offers_are_in_the_order_of_markets_then_types(fleet: FleetCapacity) -> None:
    offers = fleet.offers(fleet.poll((fresh_claim().instance,))[0])
    spot, on_demand = Market.SPOT, Market.ON_DEMAND
    expected = [(market, each) for market in (spot, on_demand) for each in TYPES]
    assert [(offer.market, offer.instance_type) for offer in offers] == expected


def test_a_machine_has_the_rate_of_its_zone_and_an_offer_the_highest(endpoint: str) -> None:
    asked: list[tuple[str, Market, str]] = []

    def rate_of(*offer: Any) -> Rate:
        asked.append(offer)
        return Rate(per_hour=Usd(1), source="a test's")

    fleet, claim = make_fleet(endpoint, rate_of=rate_of), fresh_claim()
    fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    (seen,) = fleet.poll((claim.instance,))
    assert seen.zone.startswith(REGION)
    fleet.offers(seen)
    assert asked[0] == ("g5.xlarge", Market.SPOT, seen.zone)
    assert all(zone == "" for _type, _market, zone in asked[1:])


def test_an_offer_without_a_price_is_left_out_unless_it_is_the_first(endpoint: str) -> None:
    def rate_of(instance_type: str, *_offer: Any) -> Rate:
        if instance_type == "g5.xlarge":
            raise MisconfiguredError("no price")
        return RATE

    nothing = make_fleet(endpoint).poll((fresh_claim().instance,))[0]
    found = make_fleet(endpoint, rate_of=rate_of).offers(nothing)
    assert [offer.instance_type for offer in found] == ["g6.xlarge", "g6.xlarge"]
    with pytest.raises(MisconfiguredError, match="no price"):
        make_fleet(endpoint, rate_of=rate_of, types=("g5.xlarge",)).offers(nothing)


# What EC2 refuses.


@pytest.mark.parametrize(
    ("codes", "expected", "says"),
    [
        (("InsufficientInstanceCapacity",), NoCapacityError, "no capacity for g5.xlarge spot"),
        (("UnfulfillableCapacity",), NoCapacityError, "GPU_INSTANCE_TYPES"),
        (("SpotMaxPriceTooLow",), NoCapacityError, "no capacity"),
        (("InvalidFleetConfiguration",), NoCapacityError, "no capacity"),
        (("MaxSpotInstanceCountExceeded",), QuotaError, "Service Quotas"),
        (("VcpuLimitExceeded",), QuotaError, "Service Quotas"),
        (("UnauthorizedOperation",), MissingRightError, "ec2:RunInstances"),
        (("InvalidAMIID.NotFound",), MisconfiguredError, "launch template"),
        (("AuthFailure.ServiceLinkedRoleCreationNotPermitted",), MisconfiguredError, "service-linked-role"),
        (("RequestLimitExceeded",), ComputeUnavailableError, "try again"),
        (("InvalidAMIID.NotFound", "InsufficientInstanceCapacity"), NoCapacityError, "no capacity"),
        ((), NoCapacityError, "no reason given"),
    ],
)
def test_a_reply_without_a_machine_has_its_meaning(
    fleet: FleetCapacity, codes: tuple[str, ...], expected: type[BatchscribeError], says: str
) -> None:
    claim = fresh_claim()
    (seen,) = fleet.poll((claim.instance,))
    fleet._list_places()  # read before: the stub below answers one call only
    errors = [{"ErrorCode": code, "ErrorMessage": "no"} for code in codes]
    with Stubber(fleet._api.client) as stub:
        stub.add_response("create_fleet", {"FleetId": "fleet-1", "Errors": errors, "Instances": []})
        with pytest.raises(expected, match=says) as caught:
            fleet.acquire(claim, SPOT_OFFER, seen)
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("InsufficientInstanceCapacity", NoCapacityError),
        ("VcpuLimitExceeded", QuotaError),
        ("UnauthorizedOperation", MissingRightError),
        ("IdempotentParameterMismatch", ComputeUnavailableError),
    ],
)
def test_a_refused_request_has_its_meaning(
    fleet: FleetCapacity, proxy: FaultProxy, code: str, expected: type[BatchscribeError]
) -> None:
    claim = fresh_claim()
    proxy.plan("CreateFleet", Refusal(code))
    with pytest.raises(expected):
        fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])


def test_missing_capacity_is_not_requested_again_by_itself(proxy: FaultProxy) -> None:
    fleet, claim = make_fleet(proxy.endpoint), fresh_claim()
    proxy.plan("CreateFleet", *[Refusal("InsufficientInstanceCapacity", 500)] * 3)
    with pytest.raises(NoCapacityError) as caught:
        fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    assert proxy.calls.count("CreateFleet") == 1
    assert "calling the CreateFleet operation" in str(caught.value.__cause__)


# Lost replies, and machines under one name.


def test_a_lost_reply_is_unknown_and_the_next_poll_shows_the_machine(
    fleet: FleetCapacity, proxy: FaultProxy, endpoint: str
) -> None:
    claim = fresh_claim()
    (seen,) = fleet.poll((claim.instance,))
    proxy.plan("CreateFleet", Drop.AFTER)
    with pytest.raises(ComputeUnavailableError, match="may have been"):
        fleet.acquire(claim, SPOT_OFFER, seen)
    (seen,) = fleet.poll((claim.instance,))
    assert (seen.state, seen.run) == (InstanceState.RUNNING, claim.run)
    assert fleet.acquire(claim, SPOT_OFFER, seen)
    assert len(instances_of(endpoint, claim.instance)) == 1


def test_two_instances_of_one_name_are_one_machine_and_both_end(fleet: FleetCapacity, endpoint: str) -> None:
    claim = fresh_claim()
    (nothing,) = fleet.poll((claim.instance,))
    for _ in range(2):
        fleet.acquire(claim, SPOT_OFFER, nothing)
    first, second = instances_of(endpoint, claim.instance)
    client(endpoint).terminate_instances(InstanceIds=[first["InstanceId"]])
    (seen,) = fleet.poll((claim.instance,))
    assert (seen.id, seen.state) == (claim.instance, InstanceState.RUNNING)
    (other,) = seen.beside
    assert (other.id, other.state) == (first["InstanceId"], InstanceState.TERMINATED)
    assert other.market == seen.market
    assert other.launched_at
    fleet.acquire(claim, SPOT_OFFER, nothing)
    fleet.teardown(claim.instance)
    states = [row["State"]["Name"] for row in instances_of(endpoint, claim.instance)]
    assert (states, second["State"]["Name"]) == (["terminated"] * 3, "running")


def test_a_machine_that_only_stopped_is_ended_at_its_release(fleet: FleetCapacity, endpoint: str) -> None:
    claim = fresh_claim()
    offer = Offer(provider="fleet", instance_type="g5.xlarge", market=Market.ON_DEMAND, rate=RATE)
    fleet.acquire(claim, offer, fleet.poll((claim.instance,))[0])
    (row,) = instances_of(endpoint, claim.instance)
    client(endpoint).stop_instances(InstanceIds=[row["InstanceId"]])
    assert fleet.poll((claim.instance,))[0].state is InstanceState.STOPPED
    fleet.release(claim.instance)
    assert fleet.poll((claim.instance,))[0].state is InstanceState.TERMINATED


def test_a_wildcard_in_a_tag_ends_that_machine_alone(fleet: FleetCapacity) -> None:
    usual, odd = fresh_claim(), replace(fresh_claim(), instance="2*")
    for claim in (usual, odd):
        fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    fleet.teardown(odd.instance)
    states = [seen.state for seen in fleet.poll((usual.instance, odd.instance))]
    assert states == [InstanceState.RUNNING, InstanceState.TERMINATED]


def test_a_manifest_of_a_machine_that_does_not_show_yet_is_not_announced(fleet: FleetCapacity) -> None:
    with pytest.raises(ComputeUnavailableError, match="was not announced"):
        fleet.announce(fresh_claim().instance, "a" * 64)


def test_no_instance_without_our_tag_is_touched(fleet: FleetCapacity, endpoint: str) -> None:
    made = client(endpoint).run_instances(
        ImageId=AMAZON_IMAGE,
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": RUN_TAG, "Value": "run-1"}, {"Key": "Name", "Value": "x"}],
            }
        ],
    )
    instance = made["Instances"][0]["InstanceId"]
    fleet.teardown("run-1")
    fleet.teardown(instance)
    assert instance not in {seen.id for seen in fleet.list_created()}
    rows = client(endpoint).describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    assert rows[0]["State"]["Name"] == "running"


# Absence is proof only in the right account and region.


@pytest.mark.parametrize(
    ("otherwise", "says"),
    [
        ({"template": "other"}, "there is no launch template other"),
        ({"template": "lt-0123456789abcdef0"}, "there is no launch template"),
        ({"template": ""}, "GPU_LAUNCH_TEMPLATE is not set"),
        ({"region": "eu-west-1"}, "in eu-west-1"),
    ],
)
def test_without_its_template_absence_proves_nothing(
    endpoint: str, otherwise: dict[str, Any], says: str
) -> None:
    fleet, claim = make_fleet(endpoint, **otherwise), fresh_claim()
    (seen,) = fleet.poll((claim.instance,))
    assert seen.state is InstanceState.MISSING
    assert says in seen.state_reason


def test_without_its_template_a_machine_is_still_found_and_ended(endpoint: str) -> None:
    claim, usual, lost = fresh_claim(), make_fleet(endpoint), make_fleet(endpoint, template="", types=())
    usual.acquire(claim, SPOT_OFFER, usual.poll((claim.instance,))[0])
    assert claim.instance in {seen.id for seen in lost.list_created()}
    lost.teardown(claim.instance)
    assert lost.poll((claim.instance,))[0].state is InstanceState.TERMINATED


@pytest.mark.parametrize("call", ["DescribeInstances", "DescribeLaunchTemplateVersions"])
def test_an_error_is_never_a_stopped_machine(fleet: FleetCapacity, proxy: FaultProxy, call: str) -> None:
    proxy.plan(call, Drop.BEFORE)
    with pytest.raises(ComputeUnavailableError):
        fleet.poll((fresh_claim().instance,))


def test_the_proof_is_read_once(fleet: FleetCapacity, proxy: FaultProxy) -> None:
    for _ in range(3):
        fleet.poll((fresh_claim().instance,))
    assert proxy.calls == ["DescribeInstances", "DescribeLaunchTemplateVersions", *["DescribeInstances"] * 2]


def test_instances_are_counted_over_every_page(fleet: FleetCapacity, endpoint: str) -> None:
    claim = fresh_claim()
    fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    (row,) = instances_of(endpoint, claim.instance)
    filters = [{"Name": f"tag:{MACHINE_TAG}", "Values": [claim.instance]}]
    with Stubber(fleet._api.client) as stub:
        stub.add_response(
            "describe_instances", {"Reservations": [], "NextToken": "more"}, {"Filters": filters}
        )
        page = {"Reservations": [{"Instances": [row]}]}
        stub.add_response("describe_instances", page, {"Filters": filters, "NextToken": "more"})
        assert fleet.poll((claim.instance,))[0].state is InstanceState.RUNNING


# The way out: commands that need nothing but provider and region.


def overdue_claim() -> Claim:
    return replace(fresh_claim(), deadline=datetime.now(UTC) - timedelta(hours=1))


def end_all(endpoint: str) -> None:
    fleet = make_fleet(endpoint)
    for seen in fleet.list_created():
        fleet.teardown(seen.id)


def test_gpu_stop_ends_overdue_machines_and_leaves_those_at_work(
    command: Callable[..., Result], endpoint: str
) -> None:
    end_all(endpoint)
    fleet, late, working = make_fleet(endpoint), overdue_claim(), fresh_claim()
    for claim in (late, working):
        fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    listed = json.loads(command("gpu", "status", "--json").stdout)
    assert {each["instance"] for each in listed["machines"]} == {late.instance, working.instance}
    done = command("gpu", "stop")
    assert isinstance(done.exception, RefusedError)
    assert working.run in str(done.exception)
    assert f"{late.instance} is terminated (observed)" in done.stdout
    assert [seen.id for seen in fleet.list_created()] == [working.instance]
    assert command("gpu", "stop", "--force").exit_code == 0
    assert fleet.list_created() == ()
    assert "no machine of a run exists" in command("gpu", "stop").stdout


def test_reconcile_ends_the_machines_of_a_run_whose_scheduler_is_gone(
    command: Callable[..., Result], endpoint: str
) -> None:
    end_all(endpoint)
    fleet, late, working = make_fleet(endpoint), overdue_claim(), fresh_claim()
    second = replace(late, instance=f"{late.run}-1")
    for claim in (late, second, working):
        fleet.acquire(claim, SPOT_OFFER, fleet.poll((claim.instance,))[0])
    for _ in range(3):
        command("reconcile")
    assert [seen.id for seen in fleet.list_created()] == [working.instance]
    end_all(endpoint)


@pytest.mark.parametrize("words", ["gpu start", "gpu check", "gpu setup", "gpu ssh true", "rehearse"])
def test_no_created_machine_is_controlled_manually(command: Callable[..., Result], words: str) -> None:
    done = command(*words.split())
    assert isinstance(done.exception, MisconfiguredError)
    assert "creates its" in str(done.exception)
