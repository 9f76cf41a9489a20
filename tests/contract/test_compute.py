"""The suite of a Capacity, on the double, the simulator's cloud, this machine, and EC2 as moto plays it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchscribe.adapters.aws.ec2 import Ec2Compute
from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.local.compute import LocalCompute
from batchscribe.controller.commands.manual_control import ManualCompute
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.run.instances import InstanceState
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Compute
from batchscribe.testing.capacity_suite import CapacityCase, CapacitySuite
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import Cloud, FakeCompute
from simulation.cloud import CloudApi
from simulation.gate import Gate
from simulation.timeline import Timeline
from simulation.trace import Trace
from support.aws import make_stopped_instance
from support.s3 import REGION, aws_environment, moto_server
from support.values import RATE

MISSING = "i-0123456789abcdef0"


def case_of(compute: Compute, instance: str, sleep: Callable[[float], None]) -> CapacityCase:
    capacity = ExistingInstances(
        compute=compute, provider="test", rate_of=lambda _type: RATE, types=("g6.xlarge", "g5.xlarge")
    )
    return CapacityCase(capacity=capacity, instance=instance, missing=MISSING, sleep=sleep)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        yield endpoint


class TestDouble(CapacitySuite):
    @pytest.fixture
    def case(self) -> CapacityCase:
        clock = FakeClock()
        fake = FakeCompute(clock)
        fake.add("i-0fake")
        return case_of(fake, "i-0fake", clock.sleep)


class TestSimulated(CapacitySuite):
    @pytest.fixture
    def case(self) -> CapacityCase:
        line = Timeline()
        cloud = Cloud(line)
        cloud.add("i-0simulated")
        api = CloudApi(cloud, line, Gate(random.Random(1), line, Trace(line)))
        return case_of(api, "i-0simulated", line.sleep)


class TestThisMachine(CapacitySuite):
    @pytest.fixture
    def case(self, tmp_path: Path) -> CapacityCase:
        clock = FakeClock()
        local = LocalCompute(tmp_path / "state", clock, instance_type="g5.xlarge")
        capacity = ExistingInstances(compute=local, provider="local", rate_of=lambda _type: RATE)
        return CapacityCase(
            capacity=capacity, instance=LOCAL, missing=MISSING, sleep=clock.sleep, has_tags=False
        )


class TestEc2(CapacitySuite):
    @pytest.fixture
    def case(self, endpoint: str) -> CapacityCase:
        ec2 = Ec2Compute(region=REGION, endpoint=endpoint)
        return case_of(ec2, make_stopped_instance(endpoint), FakeClock().sleep)


# Manual control.


@pytest.fixture(params=["double", "ec2"])
def manual(request: pytest.FixtureRequest) -> tuple[ManualCompute, CapacityCase]:
    clock = FakeClock()
    if request.param == "ec2":
        endpoint: str = request.getfixturevalue("endpoint")
        ec2 = Ec2Compute(region=REGION, endpoint=endpoint)
        return ec2, case_of(ec2, make_stopped_instance(endpoint), clock.sleep)
    fake = FakeCompute(clock)
    fake.add("i-0fake")
    return fake, case_of(fake, "i-0fake", clock.sleep)


def test_a_manual_start_claims_nothing(manual: tuple[ManualCompute, CapacityCase]) -> None:
    compute, case = manual
    compute.start_unclaimed(case.instance)
    assert case.await_state(InstanceState.RUNNING).run is None


def test_this_machine_is_not_started_manually(tmp_path: Path) -> None:
    local = LocalCompute(tmp_path, FakeClock())
    with pytest.raises(MisconfiguredError, match="nothing to start"):
        local.start_unclaimed(LOCAL)
    # Version 0.1 recorded manual starts, and then held.
    (tmp_path / "local-instance.json").write_text('{"at": "2026-01-01T00:00:00Z", "tags": {}}')
    assert local.describe(LOCAL).state is InstanceState.STOPPED


def test_this_machine_has_one_type(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="GPU_INSTANCE_TYPES"):
        LocalCompute(tmp_path / "state", FakeClock()).change_type(LOCAL, "g6.xlarge")


def test_an_instance_that_does_not_exist_gets_no_type(endpoint: str) -> None:
    with pytest.raises(MisconfiguredError):
        Ec2Compute(region=REGION, endpoint=endpoint).change_type(MISSING, "g6.xlarge")


def test_an_instance_shows_its_tags_once_it_is_told_to(endpoint: str) -> None:
    ec2 = Ec2Compute(region=REGION, endpoint=endpoint)
    instance = make_stopped_instance(endpoint)
    assert not ec2.shows_tags(instance)
    ec2.show_tags(instance)
    assert ec2.shows_tags(instance)
