"""Reads facts of an AWS account that a start depends on. Changes nothing; one short attempt per call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

from batchscribe.adapters.aws.clients import Api, Meaning, open_client
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.account import Caller, MachineType, PortAccess, Quota
from batchscribe.errors import ObjectNotFoundError

CONNECT_SECONDS, READ_SECONDS = 2.0, 5.0
QUOTAS = {
    Market.ON_DEMAND: {"g": "L-DB2E81BA", "vt": "L-DB2E81BA", "p": "L-417A185B"},
    Market.SPOT: {"g": "L-3819A6DF", "vt": "L-3819A6DF", "p": "L-7212CCBC"},
}
"""Family -> quota of running vCPUs, by market: `All G and VT instances`, `All P instances`, and their Spot
requests."""
_NONE: Meaning = (ObjectNotFoundError, "{service} has no {subject} in {region}")
_MEANINGS = dict.fromkeys(
    (
        "InvalidInstanceID.NotFound",
        "InvalidInstanceType",
        "NoSuchResourceException",
        "ResourceNotFoundException",
    ),
    _NONE,
)


class AwsAccount:
    """Account, instance types, quotas, security groups and schedule group in one region.

    Every method raises MissingRightError, CredentialsError, MisconfiguredError, ComputeUnavailableError, and
    ObjectNotFoundError if there is no such thing. `endpoint` replaces AWS's address.
    """

    def __init__(self, *, region: str | None, endpoint: str | None = None) -> None:
        self._region = region
        self._client = cache(
            partial(
                open_client,
                region=region,
                endpoint=endpoint,
                attempts=1,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
            )
        )

    def caller(self) -> Caller:
        """Owner of these credentials. Needs no right."""
        with self._convert_errors("STS", "sts:GetCallerIdentity", "these credentials"):
            answer = self._client("sts").get_caller_identity()
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        return Caller(
            account=answer["Account"], arn=answer["Arn"], answered=_parse_date(headers.get("date", ""))
        )

    def machine_type(self, name: str) -> MachineType:
        with self._convert_errors("EC2", "ec2:DescribeInstanceTypes", name):
            (found,) = self._client("ec2").describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
        gpus = [
            f"{gpu['Count']} {gpu.get('Manufacturer', '')} {gpu.get('Name', '')}".strip()
            for gpu in found.get("GpuInfo", {}).get("Gpus", [])
        ]
        return MachineType(name=name, vcpus=found["VCpuInfo"]["DefaultVCpus"], gpus=", ".join(gpus))

    def quota(self, instance_type: str, market: Market = Market.ON_DEMAND) -> Quota:
        """Limit of running vCPUs for the family of a GPU type."""
        family = re.match("[a-z]*", instance_type)
        code = QUOTAS[market].get(family[0] if family else "")
        if code is None:
            raise ObjectNotFoundError(f"no quota is known for the family of {instance_type}")
        right = "servicequotas:GetServiceQuota"
        with self._convert_errors("Service Quotas", right, f"quota {code}"):
            answer = self._client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
        return Quota(code=code, vcpus=int(answer["Quota"]["Value"]))

    def port_access(self, instance: str, port: int) -> PortAccess:
        """The instance's security groups, and from where they admit TCP on `port`."""
        with self._convert_errors("EC2", "ec2:DescribeInstances", instance):
            answer = self._client("ec2").describe_instances(InstanceIds=[instance])
        rows = [row for group in answer["Reservations"] for row in group["Instances"]]
        names = [group["GroupId"] for row in rows for group in row.get("SecurityGroups", [])]
        if not names:
            return PortAccess()
        with self._convert_errors("EC2", "ec2:DescribeSecurityGroups", ", ".join(names)):
            groups = self._client("ec2").describe_security_groups(GroupIds=names)["SecurityGroups"]
        rules = [rule for group in groups for rule in group.get("IpPermissions", [])]
        admitting = [rule for rule in rules if _admits_port(rule, port)]
        sources = dict.fromkeys(source for rule in admitting for source in _list_sources(rule))
        return PortAccess(groups=tuple(names), sources=tuple(sources))

    def schedule_group(self) -> str:
        """State of the schedule group of stop orders; empty if there is none."""
        try:
            with self._convert_errors(
                "EventBridge Scheduler", "scheduler:GetScheduleGroup", f"schedule group {GROUP}"
            ):
                return str(self._client("scheduler").get_schedule_group(Name=GROUP)["State"])
        except ObjectNotFoundError:
            return ""

    def _convert_errors(self, service: str, right: str, subject: str) -> AbstractContextManager[None]:
        api = Api(service=service, region=self._region, meanings=_MEANINGS)
        return api.convert_errors(right, subject)


def _parse_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)  # "-0000" is parsed without a zone


def _admits_port(rule: dict[str, Any], port: int) -> bool:
    """True if the rule admits TCP on that port; protocol -1 is every protocol and port."""
    if rule["IpProtocol"] == "-1":
        return True
    return rule["IpProtocol"] == "tcp" and port in range(rule["FromPort"], rule["ToPort"] + 1)


def _list_sources(rule: dict[str, Any]) -> Iterator[str]:
    fields = (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("PrefixListIds", "PrefixListId"))
    for listed, name in (*fields, ("UserIdGroupPairs", "GroupId")):
        yield from (source[name] for source in rule.get(listed, []))
