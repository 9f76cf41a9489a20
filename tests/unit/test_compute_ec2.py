"""EC2 when it does not behave: every reply has one meaning, and every wait an end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import main_thread
from typing import Any

import pytest

from batchscribe.adapters.aws.ec2 import Ec2Compute, _has_fixed_address, to_instance
from batchscribe.adapters.machine.clock import Interrupts
from batchscribe.core.decide.fixed import ParkedParts
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    InterruptedRunError,
    MisconfiguredError,
    MissingRightError,
    NoCapacityError,
    QuotaError,
)
from support.aws import make_stopped_instance
from support.faults import Drop, Fault, FaultProxy, Hang, Refusal, fault_proxy
from support.s3 import REGION, aws_client, aws_environment, moto_server


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws_environment(), moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def shared(endpoint: str) -> Iterator[tuple[FaultProxy, Ec2Compute]]:
    with fault_proxy() as proxy:
        yield proxy, patient(proxy, attempts=1)


@pytest.fixture
def proxy(shared: tuple[FaultProxy, Ec2Compute]) -> FaultProxy:
    shared[0].forget()
    return shared[0]


@pytest.fixture
def compute(shared: tuple[FaultProxy, Ec2Compute]) -> Ec2Compute:
    """One try for each call."""
    return shared[1]


@pytest.fixture
def instance(endpoint: str) -> str:
    return make_stopped_instance(endpoint)


def patient(proxy: FaultProxy, *, attempts: int, read_timeout: float = 10.0) -> Ec2Compute:
    return Ec2Compute(region=REGION, endpoint=proxy.endpoint, attempts=attempts, read_timeout=read_timeout)


def claim(instance: str) -> Claim:
    return Claim(instance=instance, run="run-1", deadline=datetime(2026, 1, 1, tzinfo=UTC))


def test_the_claim_is_written_before_the_start(compute: Ec2Compute, proxy: FaultProxy, instance: str) -> None:
    compute.start(claim(instance))
    assert proxy.calls == ["CreateTags", "StartInstances"]


def test_no_start_without_the_claim(compute: Ec2Compute, proxy: FaultProxy, instance: str) -> None:
    proxy.plan("CreateTags", Refusal("RequestLimitExceeded", 503))
    with pytest.raises(ComputeUnavailableError):
        compute.start(claim(instance))
    assert "StartInstances" not in proxy.calls


def test_a_lost_reply_to_a_start_is_unknown_and_the_next_look_shows_what_it_did(
    compute: Ec2Compute, proxy: FaultProxy, instance: str
) -> None:
    proxy.plan("StartInstances", Drop.AFTER)
    with pytest.raises(ComputeUnavailableError, match="may have been done"):
        compute.start(claim(instance))
    seen = compute.describe(instance)
    assert (seen.state, seen.run) == (InstanceState.RUNNING, "run-1")


def test_a_request_that_never_arrived_starts_nothing(
    compute: Ec2Compute, proxy: FaultProxy, instance: str
) -> None:
    proxy.plan("StartInstances", Drop.BEFORE)
    with pytest.raises(ComputeUnavailableError):
        compute.start(claim(instance))
    assert compute.describe(instance).state is InstanceState.STOPPED


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refusal("InsufficientInstanceCapacity", 500), (NoCapacityError, "GPU_INSTANCE_TYPES")),
        (Refusal("InsufficientInstanceCapacity", 400), (NoCapacityError, "next check")),
        (Refusal("Unsupported", 400), (NoCapacityError, "GPU_INSTANCE_TYPES")),
        (Refusal("VcpuLimitExceeded", 400), (QuotaError, "Service Quotas")),
        (Refusal("InstanceLimitExceeded", 400), (QuotaError, "Service Quotas")),
        (Refusal("RequestLimitExceeded", 503), (ComputeUnavailableError, "try again")),
        (Refusal("InternalError", 500), (ComputeUnavailableError, "try again")),
        (Refusal("NeverHeardOf", 502), (ComputeUnavailableError, "try again")),
        (Refusal("IncorrectInstanceState", 400), (ComputeUnavailableError, "try again")),
        (Refusal("UnauthorizedOperation", 403), (MissingRightError, "ec2:StartInstances")),
        (Refusal("AuthFailure", 401), (CredentialsError, "renew")),
        (Refusal("RequestExpired", 400), (CredentialsError, "renew")),
        (Refusal("InvalidInstanceID.Malformed", 400), (MisconfiguredError, "GPU_INSTANCE_ID")),
        (Refusal("NeverHeardOf", 400), (MisconfiguredError, "NeverHeardOf")),
    ],
)
def test_every_refusal_has_its_meaning(
    compute: Ec2Compute,
    proxy: FaultProxy,
    instance: str,
    refusal: Refusal,
    expected: tuple[type[BatchscribeError], str],
) -> None:
    kind, says = expected
    proxy.plan("StartInstances", refusal)
    with pytest.raises(kind, match=says) as caught:
        compute.start(claim(instance))
    assert caught.type is kind
    assert "\n" not in str(caught.value)


def test_missing_capacity_is_not_asked_for_again_by_itself(proxy: FaultProxy, instance: str) -> None:
    proxy.plan("StartInstances", *[Refusal("InsufficientInstanceCapacity", 500)] * 4)
    with pytest.raises(NoCapacityError):
        patient(proxy, attempts=4).start(claim(instance))
    assert proxy.calls.count("StartInstances") == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("IncorrectInstanceState", (ComputeUnavailableError, "try again")),
        ("InvalidParameterValue", (MisconfiguredError, "GPU_INSTANCE_TYPES")),
        ("Unsupported", (MisconfiguredError, "GPU_INSTANCE_TYPES")),
        ("UnauthorizedOperation", (MissingRightError, "ec2:ModifyInstanceAttribute")),
    ],
)
def test_a_type_that_cannot_be_had_has_its_meaning(
    compute: Ec2Compute,
    proxy: FaultProxy,
    instance: str,
    code: str,
    expected: tuple[type[BatchscribeError], str],
) -> None:
    kind, says = expected
    proxy.plan("ModifyInstanceAttribute", Refusal(code))
    with pytest.raises(kind, match=says):
        compute.change_type(instance, "g6.xlarge")


@pytest.mark.parametrize(
    ("force", "expected"), [(False, {}), (True, {"Force": True, "SkipOsShutdown": True})]
)
def test_only_a_forced_stop_skips_the_operating_system(
    endpoint: str, instance: str, force: bool, expected: dict[str, bool]
) -> None:
    compute, sent = Ec2Compute(region=REGION, endpoint=endpoint), []

    def seen(params: dict[str, Any], **_event: object) -> None:
        sent.append(dict(params))

    compute._api.client.meta.events.register("provide-client-params.ec2.StopInstances", seen)
    compute.stop(instance, force=force)
    assert sent == [{"InstanceIds": [instance]} | expected]
    assert compute.describe(instance).state is InstanceState.STOPPED


def test_a_throttle_is_tried_again_and_not_for_ever(
    proxy: FaultProxy, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _seconds: None)
    throttle = Refusal("RequestLimitExceeded", 503)
    proxy.plan("DescribeInstances", throttle, throttle)
    assert patient(proxy, attempts=4).describe(instance).state is InstanceState.STOPPED
    proxy.calls.clear()
    proxy.plan("DescribeInstances", *[throttle] * 4)
    with pytest.raises(ComputeUnavailableError):
        patient(proxy, attempts=4).describe(instance)
    assert len(proxy.calls) == 4


def test_a_stop_that_hangs_ends_in_doubt(proxy: FaultProxy, instance: str, compute: Ec2Compute) -> None:
    compute.start(claim(instance))
    proxy.plan("StopInstances", Hang(), Hang(done=True))
    hasty = patient(proxy, attempts=2, read_timeout=0.2)
    with pytest.raises(ComputeUnavailableError, match="ec2:StopInstances"):
        hasty.stop(instance)
    assert compute.describe(instance).state is InstanceState.STOPPED


def test_nobody_at_the_address_is_no_answer(instance: str) -> None:
    silent = Ec2Compute(region=REGION, endpoint="http://127.0.0.1:9", attempts=1, connect_timeout=0.5)
    with pytest.raises(ComputeUnavailableError, match="did not answer"):
        silent.describe(instance)


def test_an_error_is_never_a_missing_instance(compute: Ec2Compute, proxy: FaultProxy, instance: str) -> None:
    proxy.plan("DescribeInstances", Refusal("UnauthorizedOperation", 403))
    with pytest.raises(MisconfiguredError, match="ec2:DescribeInstances"):
        compute.describe(instance)


def test_no_region_or_no_credentials_is_a_setting_to_mend(
    proxy: FaultProxy, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(MisconfiguredError, match="AWS_REGION"):
        Ec2Compute(region=None).describe(instance)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(MisconfiguredError, match="credentials"):
        Ec2Compute(region=REGION, endpoint=proxy.endpoint).describe(instance)


def test_credentials_that_cannot_be_had_right_now_are_asked_for_again(
    proxy: FaultProxy, instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, config = tmp_path / "program", tmp_path / "config"
    program.write_text("#!/bin/sh\necho canary-secret >&2\nexit 1\n")
    program.chmod(0o700)
    config.write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    compute = patient(proxy, attempts=1)
    with pytest.raises(ComputeUnavailableError, match="ec2:DescribeInstances") as caught:
        compute.describe(instance)
    assert "canary" not in str(caught.value)
    answer = '{"Version": 1, "AccessKeyId": "testing", "SecretAccessKey": "testing"}'
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    assert compute.describe(instance).state is InstanceState.STOPPED


def test_no_instance_named_is_a_setting_to_mend(compute: Ec2Compute) -> None:
    with pytest.raises(MisconfiguredError, match="GPU_INSTANCE_ID"):
        compute.describe("")


def test_the_request_to_end_is_not_taken_for_network_trouble(endpoint: str, instance: str) -> None:
    def ended(_fault: Fault) -> None:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)

    with fault_proxy(on_call=ended) as proxy:
        proxy.plan("DescribeInstances", *[Hang()] * 4)
        with Interrupts(), pytest.raises(InterruptedRunError):
            patient(proxy, attempts=4, read_timeout=30.0).describe(instance)
        assert proxy.calls == ["DescribeInstances"]


def test_the_console_gives_the_fingerprints_of_the_host_keys(compute: Ec2Compute, instance: str) -> None:
    assert compute.host_key_fingerprints(instance) == frozenset()


def test_what_becomes_of_it_when_it_powers_itself_off_is_told(compute: Ec2Compute, instance: str) -> None:
    assert compute.shutdown_behaviour(instance) == "stop"
    with pytest.raises(MisconfiguredError, match="GPU_INSTANCE_ID"):
        compute.shutdown_behaviour("i-0ffffffffffffffff")


def test_the_parts_that_are_billed_while_it_is_stopped_are_read(
    compute: Ec2Compute, endpoint: str, instance: str
) -> None:
    client = aws_client(endpoint, "ec2")
    zone = client.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["Placement"]
    before = compute.parked_parts(instance)
    volume = client.create_volume(Size=30, AvailabilityZone=zone["AvailabilityZone"])["VolumeId"]
    client.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/sdf")
    assert compute.parked_parts(instance) == ParkedParts(disk_gigabytes=before.disk_gigabytes + 30)


@pytest.mark.parametrize(
    ("cards", "fixed"),
    [
        ([{"Association": {"IpOwnerId": "amazon"}}], False),
        ([{}], False),
        ([{}, {"Association": {"IpOwnerId": "123456789012"}}], True),
    ],
)
def test_an_address_of_the_account_is_a_fixed_one(cards: list[dict[str, Any]], fixed: bool) -> None:
    assert _has_fixed_address({"NetworkInterfaces": cards}) is fixed


@pytest.mark.parametrize(
    ("reason", "at"),
    [
        ("User initiated (2026-11-29 18:10:20 GMT)", datetime(2026, 11, 29, 18, 10, 20, tzinfo=UTC)),
        ("User initiated (2026-11-29 18:10:20 UTC)", datetime(2026, 11, 29, 18, 10, 20, tzinfo=UTC)),
        ("", None),
        ("Server.SpotInstanceTermination", None),
    ],
)
def test_the_time_of_a_stop_is_read_from_its_reason(reason: str, at: datetime | None) -> None:
    row = {"InstanceId": "i-1", "State": {"Name": "stopped"}, "StateTransitionReason": reason}
    assert to_instance(row).stopped_at == at


def test_an_instance_that_ec2_leaves_out_of_its_answer_is_missing(
    compute: Ec2Compute, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute._api.client, "describe_instances", lambda **_named: {"Reservations": []})
    assert compute.describe(instance).state is InstanceState.MISSING
    for read in (compute.shows_tags, compute.parked_parts):
        with pytest.raises(MisconfiguredError, match="fix GPU_INSTANCE_ID"):
            read(instance)
