"""What AWS answers about an account, as far as moto does not play it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.stub import Stubber

from batchscribe.adapters.aws.account import AwsAccount
from batchscribe.core.run.cloud_account import MachineType, PortAccess, Quota
from batchscribe.errors import (
    BatchscribeError,
    CredentialsError,
    MisconfiguredError,
    MissingRightError,
    ObjectNotFoundError,
)
from batchscribe.wiring.init import open_account
from support.s3 import REGION, aws_environment
from support.values import INSTANCE


@pytest.fixture
def account() -> Iterator[AwsAccount]:
    with aws_environment():
        yield AwsAccount(region=REGION)


def answering(client: Any, *answers: tuple[str, dict[str, Any]]) -> Stubber:
    stubber = Stubber(client)
    for method, answer in answers:
        stubber.add_response(method, answer)
    stubber.activate()
    return stubber


@pytest.mark.parametrize(
    "date", ["Mon, 23 Nov 2026 12:00:00 GMT", "Mon, 23 Nov 2026 12:00:00 -0000", "soon", ""]
)
def test_the_caller_comes_with_the_clouds_time(account: AwsAccount, date: str) -> None:
    answer = {
        "Account": "123456789012",
        "Arn": "arn:aws:iam::123456789012:user/me",
        "UserId": "AIDA",
        "ResponseMetadata": {"HTTPHeaders": {"date": date} if date else {}},
    }
    answering(account._api("sts").client, ("get_caller_identity", answer))
    caller = account.caller()
    assert caller.account == "123456789012"
    assert caller.answered == (datetime(2026, 11, 23, 12, tzinfo=UTC) if "2026" in date else None)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("g4dn.xlarge", "L-DB2E81BA"), ("vt1.3xlarge", "L-DB2E81BA"), ("p4d.24xlarge", "L-417A185B")],
)
def test_the_quota_is_that_of_the_family(account: AwsAccount, kind: str, code: str) -> None:
    stubber = Stubber(account._api("service-quotas").client)
    asked = {"ServiceCode": "ec2", "QuotaCode": code}
    stubber.add_response("get_service_quota", {"Quota": {"Value": 8.0}}, asked)
    with stubber:
        assert account.quota(kind) == Quota(code=code, vcpus=8)


def test_a_type_of_no_known_family_has_no_quota(account: AwsAccount) -> None:
    with pytest.raises(ObjectNotFoundError, match="the family of t3"):
        account.quota("t3.nano")


def test_a_type_without_gpu_says_so(account: AwsAccount) -> None:
    found = {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 2}}]}
    answering(account._api("ec2").client, ("describe_instance_types", found))
    assert account.machine_type("t3.nano") == MachineType(name="t3.nano", vcpus=2)


RULES = [
    {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.7/32"}]},
    {"IpProtocol": "tcp", "FromPort": 20, "ToPort": 30, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
    {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-scheduler"}]},
    {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]},
    {"IpProtocol": "udp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.0/24"}]},
    {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "IpRanges": [{"CidrIp": "203.0.113.0/24"}]},
]


def test_the_port_is_open_to_the_sources_of_the_rules_that_cover_it(account: AwsAccount) -> None:
    seen = {"InstanceId": INSTANCE, "SecurityGroups": [{"GroupId": "sg-1", "GroupName": "gpu"}]}
    answering(
        account._api("ec2").client,
        ("describe_instances", {"Reservations": [{"Instances": [seen]}]}),
        ("describe_security_groups", {"SecurityGroups": [{"GroupId": "sg-1", "IpPermissions": RULES}]}),
    )
    found = PortAccess(groups=("sg-1",), sources=("192.0.2.7/32", "::/0", "sg-scheduler"))
    assert account.port_access(INSTANCE, 22) == found


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDeniedException", MissingRightError),
        ("UnrecognizedClientException", CredentialsError),
        ("NoSuchResourceException", ObjectNotFoundError),
        ("IllegalArgumentException", MisconfiguredError),
    ],
)
def test_a_refused_quota_is_told_apart(account: AwsAccount, code: str, kind: type[BatchscribeError]) -> None:
    with Stubber(account._api("service-quotas").client) as stubber:
        stubber.add_client_error("get_service_quota", code, http_status_code=400)
        with pytest.raises(kind) as caught:
            account.quota("g5.xlarge")
    assert type(caught.value) is kind


def test_a_group_that_is_not_there_is_no_error(account: AwsAccount) -> None:
    with Stubber(account._api("scheduler").client) as stubber:
        stubber.add_client_error("get_schedule_group", "ResourceNotFoundException", http_status_code=404)
        assert account.schedule_group() == ""


def test_no_credentials_are_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_environment():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with pytest.raises(CredentialsError, match=r"Unable to locate credentials\. Check"):
            AwsAccount(region=REGION).caller()


def test_no_region_is_a_setting_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_environment():
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(MisconfiguredError, match="AWS_REGION"):
            AwsAccount(region=None).machine_type("g5.xlarge")


def test_init_waits_longer_than_a_check() -> None:
    checking = AwsAccount(region=REGION, attempts=1, connect_timeout=2.0, read_timeout=5.0)
    with aws_environment():
        found = [reads._api("ec2").client.meta.config for reads in (checking, open_account(REGION).reads)]
    bounds = [(each.retries["total_max_attempts"], each.connect_timeout, each.read_timeout) for each in found]
    assert bounds == [(1, 2.0, 5.0), (2, 3.0, 10.0)]
