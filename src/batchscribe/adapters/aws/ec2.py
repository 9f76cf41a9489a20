"""Observes, starts and stops EC2 instances; never creates or terminates one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.aws.clients import AGAIN, Api, Meaning
from batchscribe.core.decide.fixed import ParkedParts
from batchscribe.core.run.instances import MANIFEST_TAG, RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import MisconfiguredError, NoCapacityError, QuotaError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef


class MissingInstanceError(MisconfiguredError):
    """There is no such instance."""


CAPACITY: Meaning = (
    NoCapacityError,
    (
        "EC2 has no capacity for {subject} at the moment ({code}): nothing was started; the next check tries "
        "again, or list alternative types in GPU_INSTANCE_TYPES"
    ),
)
QUOTA: Meaning = (
    QuotaError,
    (
        "the account's quota does not let {subject} start ({code}): nothing was started; ask for more vCPUs "
        "under Service Quotas, EC2"
    ),
)
NO_CAPACITY = (
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "Unsupported",
)
EC2_MEANINGS: dict[str, Meaning] = {
    "InvalidInstanceID.NotFound": (
        MissingInstanceError,
        "there is no instance {subject} in {region}: fix GPU_INSTANCE_ID or AWS_REGION",
    ),
    "InvalidInstanceID.Malformed": (
        MisconfiguredError,
        "{subject} is not an instance ID: fix GPU_INSTANCE_ID (e.g. i-0123456789abcdef0)",
    ),
    "OperationNotPermitted": (
        MisconfiguredError,
        "{right} on {subject} is not permitted: switch off its stop protection (DisableApiStop)",
    ),
    **dict.fromkeys(NO_CAPACITY, CAPACITY),
    **dict.fromkeys(("InstanceLimitExceeded", "VcpuLimitExceeded"), QUOTA),
    **dict.fromkeys(("IncorrectInstanceState", "IncorrectState"), AGAIN),
}
"""Meanings of EC2's error codes, with messages for the user."""
_WRONG_TYPE: Meaning = (
    MisconfiguredError,
    "{subject} cannot get the type in GPU_INSTANCE_TYPES ({code}): list types that its image supports",
)
_TYPE_MEANINGS = dict.fromkeys(
    (
        "InvalidAttributeValue",
        "InvalidInstanceAttributeValue",
        "InvalidInstanceType",
        "InvalidParameterCombination",
        "InvalidParameterValue",
        "Unsupported",
        "UnsupportedOperation",
    ),
    _WRONG_TYPE,
)
AMAZON = "amazon"
"""Owner of an address that is assigned at a start; a fixed one belongs to the account."""
_STOP_TIME = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


class Ec2Compute:
    """A protocols.Compute on EC2's API, with bounded calls.

    `attempts` and `bounds` are those of a client: a call takes at most `attempts` times the sum of both
    timeouts, plus the backoff between attempts. Credentials come from boto3's chain. `endpoint` replaces
    AWS's address.
    """

    def __init__(
        self, *, region: str | None, endpoint: str | None = None, attempts: int = 4, **bounds: Any
    ) -> None:
        self._api: Api[EC2Client] = Api(
            "ec2", region, EC2_MEANINGS, endpoint=endpoint, attempts=attempts, **bounds
        )

    def describe(self, instance: str) -> Instance:
        try:
            return to_instance(self._describe(instance))
        except MissingInstanceError:
            return Instance(id=instance, state=InstanceState.MISSING)

    def claim(self, claim: Claim) -> None:
        self._write_tags(claim.instance, claim.tags)

    def start(self, claim: Claim) -> None:
        # Tags first: a starting instance must already show its claim.
        self.claim(claim)
        self.start_unclaimed(claim.instance)

    def announce(self, instance: str, manifest: str) -> None:
        self._write_tags(instance, {MANIFEST_TAG: manifest})

    def start_unclaimed(self, instance: str) -> None:
        """Requests a start. Without a claim, no scheduler stops the instance."""
        with self._convert_errors("ec2:StartInstances", instance):
            self._api.client.start_instances(InstanceIds=[instance])

    def stop(self, instance: str, *, force: bool = False) -> None:
        how = choose_force(self._api.client, "StopInstances", force=force)
        with suppress(MissingInstanceError), self._convert_errors("ec2:StopInstances", instance):
            self._api.client.stop_instances(InstanceIds=[instance], **how)

    def release(self, instance: str) -> None:
        with suppress(MissingInstanceError):
            self._write_tags(instance, RELEASED_TAGS)

    def change_type(self, instance: str, instance_type: str) -> None:
        with self._convert_errors("ec2:ModifyInstanceAttribute", instance, **_TYPE_MEANINGS):
            self._api.client.modify_instance_attribute(
                InstanceId=instance, InstanceType={"Value": instance_type}
            )

    def host_key_fingerprints(self, instance: str) -> frozenset[str]:
        """Host key fingerprints in the console output, which only first boots print."""
        with self._convert_errors("ec2:GetConsoleOutput", instance):
            answer = self._api.client.get_console_output(InstanceId=instance)
        return frozenset(_FINGERPRINT.findall(answer.get("Output", "")))

    def shutdown_behaviour(self, instance: str) -> str:
        """Effect of a power-off by its own system: `stop` or `terminate`."""
        with self._convert_errors("ec2:DescribeInstanceAttribute", instance):
            answer = self._api.client.describe_instance_attribute(
                InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior"
            )
        return answer.get("InstanceInitiatedShutdownBehavior", {}).get("Value", "")

    def shows_tags(self, instance: str) -> bool:
        """True if its metadata service shows its tags."""
        options = self._describe(instance).get("MetadataOptions", {})
        return options.get("InstanceMetadataTags") == "enabled" and options.get("HttpEndpoint") != "disabled"

    def show_tags(self, instance: str) -> None:
        """Makes its metadata service show its tags."""
        with self._convert_errors("ec2:ModifyInstanceMetadataOptions", instance):
            self._api.client.modify_instance_metadata_options(
                InstanceId=instance, InstanceMetadataTags="enabled"
            )

    def parked_parts(self, instance: str) -> ParkedParts:
        """Its disks, and whether its public address stays while it is stopped."""
        with self._convert_errors("ec2:DescribeVolumes", instance):
            disks = self._api.client.describe_volumes(
                Filters=[{"Name": "attachment.instance-id", "Values": [instance]}]
            )["Volumes"]
        fixed_address = _has_fixed_address(self._describe(instance))
        return ParkedParts(disk_gigabytes=sum(disk["Size"] for disk in disks), fixed_address=fixed_address)

    def _describe(self, instance: str) -> InstanceTypeDef:
        """Raises MissingInstanceError also for an empty answer."""
        with self._convert_errors("ec2:DescribeInstances", instance):
            answer = self._api.client.describe_instances(InstanceIds=[instance])
        found = [row for group in answer["Reservations"] for row in group["Instances"]]
        if not found:
            raise MissingInstanceError(f"EC2 shows no instance {instance}: fix GPU_INSTANCE_ID or AWS_REGION")
        return found[0]

    def _write_tags(self, instance: str, tags: Mapping[str, str]) -> None:
        rows = [{"Key": key, "Value": value} for key, value in tags.items()]
        with self._convert_errors("ec2:CreateTags", instance):
            self._api.client.create_tags(Resources=[instance], Tags=rows)  # type: ignore[arg-type]

    def _convert_errors(self, right: str, instance: str, **meanings: Meaning) -> AbstractContextManager[None]:
        if not instance:
            raise MisconfiguredError("GPU_INSTANCE_ID is not set: set it to the instance with the GPU")
        return self._api.convert_errors(right, instance, **meanings)


def choose_force(client: EC2Client, operation: str, *, force: bool) -> dict[str, bool]:
    """Options that force a stop or termination; only those that botocore supports."""
    known = getattr(client.meta.service_model.operation_model(operation).input_shape, "members", {})
    return {name: True for name in ("Force", "SkipOsShutdown") if name in known} if force else {}


def to_instance(found: InstanceTypeDef | dict[str, Any]) -> Instance:
    reason = found.get("StateReason", {}).get("Message") or found.get("StateTransitionReason") or ""
    return Instance(
        id=found["InstanceId"],
        state=InstanceState(found["State"]["Name"]),
        type=found.get("InstanceType", ""),
        zone=found.get("Placement", {}).get("AvailabilityZone", ""),
        public_address=found.get("PublicIpAddress") or None,
        private_address=found.get("PrivateIpAddress") or None,
        launched_at=found.get("LaunchTime"),
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        state_reason=reason,
        stopped_at=_find_stop_time(found.get("StateTransitionReason") or ""),
    )


def _has_fixed_address(found: InstanceTypeDef | dict[str, Any]) -> bool:
    cards = found.get("NetworkInterfaces", [])
    return any(card.get("Association", {}).get("IpOwnerId", AMAZON) != AMAZON for card in cards)


def _find_stop_time(reason: str) -> datetime | None:
    """The time in a reason such as `User initiated (2026-11-29 18:10:20 GMT)`."""
    found = _STOP_TIME.search(reason)
    return datetime.fromisoformat(found[1]).replace(tzinfo=UTC) if found else None
