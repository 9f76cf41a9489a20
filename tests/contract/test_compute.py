"""What every Compute does: one suite on the double, on this machine, and on EC2 as moto plays it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batchscribe.adapters.aws.ec2 import Ec2Compute
from batchscribe.adapters.local.compute import LOCAL_ID, LocalCompute
from batchscribe.core.run.instances import MANIFEST_TAG, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Compute
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from simulation.cloud import Cloud, CloudApi
from simulation.gate import Gate
from simulation.timeline import Timeline
from simulation.trace import Trace
from support.aws import make_stopped_instance
from support.s3 import REGION, aws_environment, moto_server

DEADLINE = datetime(2030, 1, 1, 14, tzinfo=UTC)


@dataclass
class Case:
    compute: Compute
    start_unclaimed: Callable[[str], None]
    instance: str
    clock: FakeClock | Timeline
    missing: str = "i-0123456789abcdef0"
    one_type: bool = False

    def claim(self, run: str = "run-1") -> Claim:
        return Claim(instance=self.instance, run=run, deadline=DEADLINE)

    def until(self, state: InstanceState) -> Instance:
        seen = self.compute.describe(self.instance)
        for _ in range(30):
            if seen.state is state:
                return seen
            self.clock.sleep(5)
            seen = self.compute.describe(self.instance)
        raise AssertionError(f"never {state}: {seen.state}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["double", "simulated", "local", "ec2"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    clock = FakeClock()
    if request.param == "double":
        fake = FakeCompute(clock)
        fake.add("i-0fake")
        return Case(fake, fake.start_unclaimed, "i-0fake", clock)
    if request.param == "simulated":
        line = Timeline()
        cloud = Cloud(line)
        cloud.add("i-0simulated")
        api = CloudApi(cloud, line, Gate(random.Random(1), line, Trace(line)))
        return Case(api, cloud.start_unclaimed, "i-0simulated", line)
    if request.param == "local":
        local = LocalCompute(tmp_path / "state", clock, instance_type="g5.xlarge")
        return Case(local, local.start_unclaimed, LOCAL_ID, clock, one_type=True)
    endpoint: str = request.getfixturevalue("endpoint")
    ec2 = Ec2Compute(region=REGION, endpoint=endpoint)
    return Case(ec2, ec2.start_unclaimed, make_stopped_instance(endpoint), clock)


def test_an_id_that_does_not_exist_is_missing(case: Case) -> None:
    assert case.compute.describe(case.missing).state is InstanceState.MISSING


def test_a_stopped_instance_has_a_type_and_nobody_claims_it(case: Case) -> None:
    seen = case.compute.describe(case.instance)
    assert (seen.id, seen.state, seen.type) == (case.instance, InstanceState.STOPPED, "g5.xlarge")
    assert seen.run is None
    assert seen.public_address is None


def test_a_start_leaves_the_claim_in_the_tags_and_is_seen_running(case: Case) -> None:
    case.compute.start(case.claim())
    seen = case.until(InstanceState.RUNNING)
    assert (seen.run, seen.deadline) == ("run-1", DEADLINE)
    assert seen.public_address
    assert seen.launched_at is not None
    assert seen.launched_at.utcoffset() == timedelta(0)


def test_repeating_a_start_is_harmless(case: Case) -> None:
    case.compute.start(case.claim())
    case.compute.start(case.claim())
    launched = case.until(InstanceState.RUNNING).launched_at
    case.compute.start(case.claim())
    assert case.until(InstanceState.RUNNING).launched_at == launched


def test_a_stop_is_observed_and_repeating_it_is_harmless(case: Case) -> None:
    case.compute.start(case.claim())
    case.until(InstanceState.RUNNING)
    case.compute.stop(case.instance)
    case.compute.stop(case.instance)
    seen = case.until(InstanceState.STOPPED)
    assert seen.public_address is None
    case.compute.stop(case.instance, force=True)
    assert case.until(InstanceState.STOPPED).state.proved_stopped


def test_a_released_claim_is_nobodys(case: Case) -> None:
    case.compute.start(case.claim())
    case.until(InstanceState.RUNNING)
    case.compute.stop(case.instance)
    case.until(InstanceState.STOPPED)
    case.compute.release(case.instance)
    seen = case.compute.describe(case.instance)
    assert (seen.run, seen.deadline) == (None, None)


def test_a_released_instance_can_keep_running(case: Case) -> None:
    case.compute.start(case.claim())
    case.until(InstanceState.RUNNING)
    case.compute.release(case.instance)
    assert case.until(InstanceState.RUNNING).run is None


def test_the_next_claim_replaces_the_last_one(case: Case) -> None:
    case.compute.start(case.claim("run-1"))
    case.until(InstanceState.RUNNING)
    case.compute.start(case.claim("run-2"))
    assert case.until(InstanceState.RUNNING).tags[RUN_TAG] == "run-2"


def test_another_manifest_is_announced_beside_the_claim(case: Case) -> None:
    if case.one_type:
        return  # this machine has no tags that its worker could read
    case.compute.start(replace(case.claim(), manifest="a" * 64))
    assert case.until(InstanceState.RUNNING).tags[MANIFEST_TAG] == "a" * 64
    case.compute.announce(case.instance, "b" * 64)
    case.clock.sleep(60)
    seen = case.compute.describe(case.instance)
    assert (seen.tags[MANIFEST_TAG], seen.run) == ("b" * 64, "run-1")
    case.compute.release(case.instance)
    case.clock.sleep(60)
    assert case.compute.describe(case.instance).tags[MANIFEST_TAG] == ""


def test_a_start_by_hand_claims_nothing(case: Case) -> None:
    case.start_unclaimed(case.instance)
    assert case.until(InstanceState.RUNNING).run is None


def test_starting_what_does_not_exist_is_a_setting_to_mend(case: Case) -> None:
    claim = Claim(instance=case.missing, run="run-1", deadline=DEADLINE)
    with pytest.raises(MisconfiguredError):
        case.compute.start(claim)


def test_a_stopped_instance_gets_another_type_from_its_next_start_on(case: Case) -> None:
    if case.one_type:
        with pytest.raises(MisconfiguredError, match="GPU_INSTANCE_TYPES"):
            case.compute.change_type(case.instance, "g6.xlarge")
        return
    case.compute.change_type(case.instance, "g6.xlarge")
    case.compute.change_type(case.instance, "g6.xlarge")
    assert case.compute.describe(case.instance).type == "g6.xlarge"
    case.compute.start(case.claim())
    assert case.until(InstanceState.RUNNING).type == "g6.xlarge"


def test_what_does_not_exist_gets_no_type(case: Case) -> None:
    with pytest.raises(MisconfiguredError):
        case.compute.change_type(case.missing, "g6.xlarge")


def test_stopping_or_releasing_what_does_not_exist_is_harmless(case: Case) -> None:
    case.compute.stop(case.missing)
    case.compute.release(case.missing)
    assert case.compute.describe(case.missing).state is InstanceState.MISSING


def test_an_instance_shows_its_tags_once_it_is_told_to(endpoint: str) -> None:
    ec2 = Ec2Compute(region=REGION, endpoint=endpoint)
    instance = make_stopped_instance(endpoint)
    assert not ec2.shows_tags(instance)
    ec2.show_tags(instance)
    assert ec2.shows_tags(instance)
