"""Reads facts of an AWS account: identity, buckets, instances, quotas, groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

from batchscribe.adapters.aws.clients import Api, Meaning
from batchscribe.adapters.aws.schedules import GROUP
from batchscribe.core.decide.offers import Market
from batchscribe.core.run.cloud_account import Caller, FoundInstance, MachineType, PortAccess, Quota
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError

GPU_FAMILIES = ("g4dn", "g5", "g6", "g6e", "g6f", "p3", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en")
QUOTAS = {
    Market.ON_DEMAND: {"g": "L-DB2E81BA", "vt": "L-DB2E81BA", "p": "L-417A185B"},
    Market.SPOT: {"g": "L-3819A6DF", "vt": "L-3819A6DF", "p": "L-7212CCBC"},
}
"""Family -> quota of running vCPUs, by market: `All G and VT instances`, `All P instances`, and their Spot
requests."""
_NONE: Meaning = (ObjectNotFoundError, "{service} has no {subject} in {region}")
_MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(
        (
            "InvalidInstanceID.NotFound",
            "InvalidInstanceType",
            "NoSuchResourceException",
            "ResourceNotFoundException",
        ),
        _NONE,
    ),
    "InvalidInstanceID.Malformed": (MisconfiguredError, "{subject} is not an instance ID"),
    "NoSuchBucket": (ObjectNotFoundError, "there is no bucket {subject}"),
}


class AwsAccount:
    """Account, buckets, instances, quotas, security groups and schedule group in one region.

    Every method raises MissingRightError, CredentialsError, MisconfiguredError, ComputeUnavailableError, and
    ObjectNotFoundError if there is no such thing. `endpoint` replaces AWS's address; `bounds` are those of a
    client.
    """

    def __init__(self, *, region: str | None, endpoint: str | None = None, **bounds: Any) -> None:
        self._api = cache(partial(Api[Any], region=region, meanings=_MEANINGS, endpoint=endpoint, **bounds))

    def caller(self) -> Caller:
        """Owner of these credentials. Needs no right."""
        with self._api("sts").convert_errors("sts:GetCallerIdentity", "these credentials"):
            answer = self._api("sts").client.get_caller_identity()
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        return Caller(
            account=answer["Account"], arn=answer["Arn"], answered=_parse_date(headers.get("date", ""))
        )

    def buckets(self) -> tuple[str, ...]:
        with self._api("s3").convert_errors("s3:ListAllMyBuckets", "this account"):
            return tuple(row["Name"] for row in self._api("s3").client.list_buckets()["Buckets"])

    def bucket_region(self, bucket: str) -> str:
        with self._api("s3").convert_errors("s3:GetBucketLocation", bucket):
            answer = self._api("s3").client.get_bucket_location(Bucket=bucket)
        return answer.get("LocationConstraint") or "us-east-1"

    def gpu_instances(self) -> tuple[FoundInstance, ...]:
        """Instances of GPU families that are not terminated."""
        states = ["pending", "running", "stopping", "stopped"]
        filters = [{"Name": "instance-state-name", "Values": states}]
        with self._api("ec2").convert_errors("ec2:DescribeInstances", "this account"):
            pages = self._api("ec2").client.get_paginator("describe_instances").paginate(Filters=filters)
            found = [_to_found(row) for page in pages for row in _list_rows(page)]
        return tuple(each for each in found if each.type.partition(".")[0] in GPU_FAMILIES)

    def instance(self, instance: str) -> FoundInstance:
        return _to_found(self._describe_instances(instance)[0])

    def machine_type(self, name: str) -> MachineType:
        with self._api("ec2").convert_errors("ec2:DescribeInstanceTypes", name):
            (found,) = self._api("ec2").client.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
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
        with self._api("service-quotas").convert_errors(right, f"quota {code}"):
            answer = self._api("service-quotas").client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        return Quota(code=code, vcpus=int(answer["Quota"]["Value"]))

    def port_access(self, instance: str, port: int) -> PortAccess:
        """The instance's security groups, and from where they admit TCP on `port`."""
        rows = self._describe_instances(instance)
        names = [group["GroupId"] for row in rows for group in row.get("SecurityGroups", [])]
        if not names:
            return PortAccess()
        with self._api("ec2").convert_errors("ec2:DescribeSecurityGroups", ", ".join(names)):
            groups = self._api("ec2").client.describe_security_groups(GroupIds=names)["SecurityGroups"]
        rules = [rule for group in groups for rule in group.get("IpPermissions", [])]
        admitting = [rule for rule in rules if _admits_port(rule, port)]
        sources = dict.fromkeys(source for rule in admitting for source in _list_sources(rule))
        return PortAccess(groups=tuple(names), sources=tuple(sources))

    def schedule_group(self) -> str:
        """State of the stop orders' schedule group; empty if it is missing."""
        try:
            with self._api("scheduler").convert_errors(
                "scheduler:GetScheduleGroup", f"schedule group {GROUP}"
            ):
                return str(self._api("scheduler").client.get_schedule_group(Name=GROUP)["State"])
        except ObjectNotFoundError:
            return ""

    def _describe_instances(self, instance: str) -> list[dict[str, Any]]:
        with self._api("ec2").convert_errors("ec2:DescribeInstances", instance):
            return _list_rows(self._api("ec2").client.describe_instances(InstanceIds=[instance]))


def _list_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for group in answer["Reservations"] for row in group["Instances"]]


def _to_found(row: dict[str, Any]) -> FoundInstance:
    tags = {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
    return FoundInstance(
        id=row["InstanceId"],
        type=row["InstanceType"],
        state=row["State"]["Name"],
        name=tags.get("Name", ""),
        key_name=row.get("KeyName", ""),
    )


def _parse_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)  # "-0000" is parsed without a zone


def _admits_port(rule: dict[str, Any], port: int) -> bool:
    """True if the rule admits TCP on `port`; protocol -1 means all."""
    if rule["IpProtocol"] == "-1":
        return True
    return rule["IpProtocol"] == "tcp" and port in range(rule["FromPort"], rule["ToPort"] + 1)


def _list_sources(rule: dict[str, Any]) -> Iterator[str]:
    fields = (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6"), ("PrefixListIds", "PrefixListId"))
    for listed, name in (*fields, ("UserIdGroupPairs", "GroupId")):
        yield from (source[name] for source in rule.get(listed, []))
