"""Reads what an AWS account has: identity, buckets, GPU instances, vCPU quota. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from batchscribe.adapters.aws.account import AwsAccount
from batchscribe.adapters.aws.clients import Api, Meaning, open_client
from batchscribe.errors import MisconfiguredError

GPU_FAMILIES = ("g4dn", "g5", "g6", "g6e", "g6f", "p3", "p3dn", "p4d", "p4de", "p5", "p5e", "p5en")
_ABSENT: Meaning = (MisconfiguredError, "there is no {subject} in {region}")
_MEANINGS: dict[str, Meaning] = {
    "InvalidInstanceID.NotFound": _ABSENT,
    "InvalidInstanceID.Malformed": (MisconfiguredError, "{subject} is not an instance ID"),
    "NoSuchBucket": (MisconfiguredError, "there is no bucket {subject}"),
}


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance with a GPU, as the account lists it."""

    id: str
    type: str
    state: str
    name: str
    """Its tag `Name`; empty if it has none."""
    key_name: str
    """The EC2 key pair it was created with."""


@dataclass(frozen=True, slots=True)
class VcpuQuota:
    """vCPUs that one instance of a type needs, and that the account may run of its family."""

    needed: int
    allowed: int


class Inventory:
    """Bounded reads of one account in one region. Each raises our errors, also for a missing right."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._client = cache(partial(open_client, region=region))
        self._account = AwsAccount(region=region)

    def identity(self) -> str:
        """ARN of these credentials."""
        return self._account.caller().arn

    def buckets(self) -> tuple[str, ...]:
        with self._convert_errors("S3", "s3:ListAllMyBuckets", "this account"):
            return tuple(row["Name"] for row in self._client("s3").list_buckets()["Buckets"])

    def bucket_region(self, bucket: str) -> str:
        with self._convert_errors("S3", "s3:GetBucketLocation", bucket):
            answer = self._client("s3").get_bucket_location(Bucket=bucket)
        return answer.get("LocationConstraint") or "us-east-1"

    def gpu_instances(self) -> tuple[FoundInstance, ...]:
        """Instances of GPU families that are not terminated."""
        states = ["pending", "running", "stopping", "stopped"]
        filters = [{"Name": "instance-state-name", "Values": states}]
        with self._convert_errors("EC2", "ec2:DescribeInstances", "this account"):
            pages = self._client("ec2").get_paginator("describe_instances").paginate(Filters=filters)
            found = list(_list_instances(pages))
        return tuple(each for each in found if each.type.partition(".")[0] in GPU_FAMILIES)

    def instance(self, instance: str) -> FoundInstance:
        with self._convert_errors("EC2", "ec2:DescribeInstances", instance):
            answer = self._client("ec2").describe_instances(InstanceIds=[instance])
        return next(_list_instances([answer]))

    def quota(self, instance_type: str) -> VcpuQuota:
        """Quota of the type's family in vCPUs."""
        needed = self._account.machine_type(instance_type).vcpus
        return VcpuQuota(needed=needed, allowed=self._account.quota(instance_type).vcpus)

    def has_schedule_group(self, name: str) -> bool:
        with self._convert_errors("EventBridge Scheduler", "scheduler:ListScheduleGroups", name):
            answer = self._client("scheduler").list_schedule_groups(NamePrefix=name)
        return any(group["Name"] == name for group in answer["ScheduleGroups"])

    def _convert_errors(self, service: str, right: str, subject: str) -> AbstractContextManager[None]:
        api = Api(service=service, region=self._region, meanings=_MEANINGS)
        return api.convert_errors(right, subject)


def _list_instances(pages: Any) -> Iterator[FoundInstance]:
    for page in pages:
        for group in page["Reservations"]:
            for row in group["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
                yield FoundInstance(
                    id=row["InstanceId"],
                    type=row["InstanceType"],
                    state=row["State"]["Name"],
                    name=tags.get("Name", ""),
                    key_name=row.get("KeyName", ""),
                )
