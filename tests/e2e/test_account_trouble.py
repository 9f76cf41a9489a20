"""The cloud says no: through the command line, each no has a name, a way out, a bound, and no alarm loop."""

from __future__ import annotations

from typing import Any

import pytest

from support.emulated import Case
from support.faults import Pretend, Refusal

pytestmark = pytest.mark.e2e
CHECKS = 3
ALWAYS = 50
CAPACITY = Refusal("InsufficientInstanceCapacity", 500)
LANDS = 0.2


def checked(case: Case, **names: str) -> list[tuple[int, Any]]:
    """(exit code, document) of one check after another, as a schedule makes them."""
    ended = [case.tick(lands=LANDS, **names) for _ in range(CHECKS)]
    return [(each.code, each.document) for each in ended]


def untouched(case: Case) -> bool:
    """Nothing runs, and nothing was left behind."""
    return not [*case._of_the_cloud(), *case._of_the_ledger()]


@pytest.mark.parametrize(
    ("refusal", "outcome", "code", "way_out"),
    [
        (CAPACITY, "no-capacity", 1, "GPU_INSTANCE_TYPES"),
        (Refusal("VcpuLimitExceeded", 400), "quota", 1, "Service Quotas"),
        (Refusal("RequestExpired", 400), "credentials", 2, "renew them"),
        (Refusal("UnauthorizedOperation", 403), "start-failed", 2, "iam-policy"),
        (Pretend(), "stayed-stopped", 1, "started but is stopped"),
    ],
)
def test_a_start_that_is_refused(
    case: Case, refusal: Refusal | Pretend, outcome: str, code: int, way_out: str
) -> None:
    case.aws.proxy.plan("StartInstances", *[refusal] * ALWAYS)
    told = checked(case)
    assert [each for each, _ in told] == [code] * CHECKS
    for _, document in told:
        (run,) = document["runs"]
        assert run["status"] == outcome
        assert way_out in run["detail"]
        assert run["gpu"]["cost"] == 0
        assert run["transcription"]["done"] == 0
    assert case.aws.proxy.calls.count("StartInstances") == CHECKS, "one try for each check"
    (message,) = case.messages
    assert outcome in message["title"]
    assert way_out in message["body"]
    assert untouched(case)


def test_after_the_trouble_the_next_check_does_the_work(case: Case) -> None:
    case.aws.proxy.plan("StartInstances", CAPACITY, CAPACITY)
    told = checked(case)
    assert [document["runs"][0]["status"] for _, document in told] == [
        "no-capacity",
        "no-capacity",
        "completed",
    ]
    assert not case.problems()


def test_without_capacity_the_instance_becomes_another_type_and_itself_again(case: Case) -> None:
    case.aws.proxy.plan("StartInstances", CAPACITY, CAPACITY)
    (run,) = case.tick(GPU_INSTANCE_TYPES="g4dn.2xlarge,g5.xlarge").document["runs"]
    assert run["status"] == "completed"
    assert (run["gpu"]["type"], run["gpu"]["tried"]) == ("g5.xlarge", ["g4dn.xlarge", "g4dn.2xlarge"])
    assert run["gpu"]["rate"] == 1.006
    assert case.described()["InstanceType"] == "g4dn.xlarge"
    assert not case.problems()


def test_killed_with_another_type_the_next_tick_gives_the_own_one_back(case: Case) -> None:
    case.aws.proxy.plan("StartInstances", CAPACITY)
    case.killed_at("compute.change_type:after", GPU_INSTANCE_TYPES="g5.xlarge")
    assert case.described()["InstanceType"] == "g5.xlarge"
    (run,) = case.tick(GPU_INSTANCE_TYPES="g5.xlarge").document["runs"]
    assert (run["status"], run["gpu"]["type"]) == ("completed", "g5.xlarge")
    assert case.described()["InstanceType"] == "g4dn.xlarge"
    assert not case.problems()


def test_a_burst_of_throttling_is_waited_out(case: Case) -> None:
    burst = [Refusal("RequestLimitExceeded", 503)] * 4
    for name in ("CreateSchedule", "StartInstances", "StopInstances"):
        case.aws.proxy.plan(name, *burst)
    case.aws.proxy.plan("DeleteSchedule", burst[0])  # once for each tick: nobody waits for it
    case.aws.proxy.plan("DescribeInstances", None, None, *burst)
    told = [case.tick()]
    if case.problems():
        told.append(case.tick())
    assert not case.problems(), told
    assert told[0].document["runs"][0]["status"] == "completed"
    assert len(case.intents) == 1


@pytest.mark.parametrize("name", ["DescribeInstances", "GET "])
def test_credentials_that_end_before_anything_starts(case: Case, name: str) -> None:
    name = name if name != "GET " else f"GET {case.bucket}"
    case.aws.proxy.plan(name, *[Refusal("ExpiredToken", 403)] * ALWAYS)
    told = checked(case)
    assert [code for code, _ in told] == [2] * CHECKS
    assert all("credentials" in document["error"] for _, document in told), told
    assert len(case.messages) == 1
    assert "StartInstances" not in case.aws.proxy.calls


def test_a_start_that_nothing_outside_would_guard_is_told_once(case: Case) -> None:
    case.aws.proxy.plan("CreateSchedule", *[Refusal("ExpiredTokenException", 403)] * ALWAYS)
    told = checked(case)
    assert "StartInstances" not in case.aws.proxy.calls
    assert [code for code, _ in told] == [2] * CHECKS
    assert {document["runs"][0]["status"] for _, document in told} == {"credentials"}
    assert len(case.messages) == 1
