"""EC2 instances by their id: looked at, started and stopped. Creates and terminates nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from batchscribe.adapters.aws.clients import AGAIN, Api, Meaning, code_of, let_ours_through, patience
from batchscribe.core.run.instances import MANIFEST_TAG, RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import MisconfiguredError, NoCapacityError, QuotaError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef


class _MissingError(MisconfiguredError):
    """There is no such instance."""


_CAPACITY: Meaning = (
    NoCapacityError,
    (
        "EC2 has no capacity for {subject} right now ({code}): nothing was started; the next check tries "
        "again, or name types to change to in GPU_INSTANCE_TYPES"
    ),
)
_QUOTA: Meaning = (
    QuotaError,
    (
        "the account's quota does not let {subject} start ({code}): nothing was started; ask for more vCPUs "
        "under Service Quotas, EC2"
    ),
)
_NO_CAPACITY = (
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "Unsupported",
)
_MEANINGS: dict[str, Meaning] = {
    "InvalidInstanceID.NotFound": (
        _MissingError,
        "there is no instance {subject} in {region}: mend GPU_INSTANCE_ID or AWS_REGION",
    ),
    "InvalidInstanceID.Malformed": (
        MisconfiguredError,
        "{subject} is not the id of an instance: mend GPU_INSTANCE_ID (it looks like i-0123456789abcdef0)",
    ),
    "OperationNotPermitted": (
        MisconfiguredError,
        "{right} on {subject} is not permitted: switch off its stop protection (DisableApiStop)",
    ),
    **dict.fromkeys(_NO_CAPACITY, _CAPACITY),
    **dict.fromkeys(("InstanceLimitExceeded", "VcpuLimitExceeded"), _QUOTA),
    **dict.fromkeys(("IncorrectInstanceState", "IncorrectState"), AGAIN),
}
"""What each of EC2's error codes means here, with the line for a person."""
_WRONG_TYPE: Meaning = (
    MisconfiguredError,
    "{subject} cannot have the type that GPU_INSTANCE_TYPES names ({code}): name types that fit its image",
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
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


class Ec2Compute:
    """A protocols.Compute on EC2's API, with bounded patience.

    One call takes at most `attempts` times the sum of both timeouts (seconds), and the waits between
    them. Credentials come from boto3's own chain. `endpoint` replaces AWS's address.
    """

    def __init__(
        self,
        *,
        region: str | None,
        endpoint: str | None = None,
        attempts: int = 4,
        connect_timeout: float = 3.0,
        read_timeout: float = 10.0,
    ) -> None:
        self._region = region
        self._endpoint = endpoint
        self._config = patience(attempts, connect_timeout, read_timeout)
        self._api = Api(service="EC2", region=region, meanings=_MEANINGS)

    def describe(self, instance: str) -> Instance:
        try:
            with self._asked("ec2:DescribeInstances", instance):
                answer = self._client.describe_instances(InstanceIds=[instance])
        except _MissingError:
            return Instance(id=instance, state=InstanceState.MISSING)
        found = [each for group in answer["Reservations"] for each in group["Instances"]]
        return _instance(found[0]) if found else Instance(id=instance, state=InstanceState.MISSING)

    def start(self, claim: Claim) -> None:
        # Tags first: a machine that starts must already say whose it is.
        self._tag(claim.instance, claim.tags)
        self._start(claim.instance)

    def announce(self, instance: str, manifest: str) -> None:
        self._tag(instance, {MANIFEST_TAG: manifest})

    def start_unclaimed(self, instance: str) -> None:
        """Starts it for a person: without a claim, so that no scheduler stops it."""
        self._start(instance)

    def stop(self, instance: str, *, force: bool = False) -> None:
        # What a forced stop is for is an operating system that does not shut down.
        how = {"Force": True, "SkipOsShutdown": True} if force and self._may_skip else {"Force": force}
        try:
            with self._asked("ec2:StopInstances", instance):
                self._client.stop_instances(InstanceIds=[instance], **how)
        except _MissingError:
            return

    def release(self, instance: str) -> None:
        try:
            self._tag(instance, RELEASED_TAGS)
        except _MissingError:
            return

    def change_type(self, instance: str, instance_type: str) -> None:
        with self._asked("ec2:ModifyInstanceAttribute", instance, **_TYPE_MEANINGS):
            self._client.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": instance_type})

    def host_key_fingerprints(self, instance: str) -> frozenset[str]:
        """`SHA256:…` of every host key that the console shows; only the first boot prints them."""
        with self._asked("ec2:GetConsoleOutput", instance):
            answer = self._client.get_console_output(InstanceId=instance)
        return frozenset(_FINGERPRINT.findall(answer.get("Output", "")))

    def shutdown_behaviour(self, instance: str) -> str:
        """What becomes of it when its own system powers off: `stop` or `terminate`."""
        with self._asked("ec2:DescribeInstanceAttribute", instance):
            answer = self._client.describe_instance_attribute(
                InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior"
            )
        return answer.get("InstanceInitiatedShutdownBehavior", {}).get("Value", "")

    def shows_tags(self, instance: str) -> bool:
        """True if its metadata service shows its tags."""
        with self._asked("ec2:DescribeInstances", instance):
            answer = self._client.describe_instances(InstanceIds=[instance])
        options = answer["Reservations"][0]["Instances"][0].get("MetadataOptions", {})
        return options.get("InstanceMetadataTags") == "enabled" and options.get("HttpEndpoint") != "disabled"

    def show_tags(self, instance: str) -> None:
        """Lets its metadata service show its tags."""
        with self._asked("ec2:ModifyInstanceMetadataOptions", instance):
            self._client.modify_instance_metadata_options(InstanceId=instance, InstanceMetadataTags="enabled")

    def _start(self, instance: str) -> None:
        with self._asked("ec2:StartInstances", instance):
            self._client.start_instances(InstanceIds=[instance])

    def _tag(self, instance: str, tags: Mapping[str, str]) -> None:
        rows = [{"Key": key, "Value": value} for key, value in tags.items()]
        with self._asked("ec2:CreateTags", instance):
            self._client.create_tags(Resources=[instance], Tags=rows)  # type: ignore[arg-type]

    @cached_property
    def _may_skip(self) -> bool:
        """An older botocore does not know how to skip the operating system's shutdown."""
        known = self._client.meta.service_model.operation_model("StopInstances").input_shape
        return "SkipOsShutdown" in getattr(known, "members", {})

    @cached_property
    def _client(self) -> EC2Client:
        client = boto3.session.Session().client(
            "ec2", region_name=self._region, endpoint_url=self._endpoint, config=self._config
        )
        client.meta.events.register_first("needs-retry.ec2", let_ours_through)
        client.meta.events.register_first("needs-retry.ec2.StartInstances", _no_second_try)
        return client

    def _asked(self, right: str, instance: str, **meanings: Meaning) -> AbstractContextManager[None]:
        if not instance:
            raise MisconfiguredError("GPU_INSTANCE_ID is not set: name the instance that has the GPU")
        return self._api.asked(right, instance, **meanings)


def _no_second_try(response: tuple[object, Mapping[str, Any]] | None = None, **_event: object) -> None:
    """Missing capacity comes as a server error, which botocore repeats: what to do about it, and when to
    ask again, is decided by the run.
    """
    parsed = response[1] if response else {}
    if code_of(parsed) in _NO_CAPACITY:
        raise ClientError(parsed, "StartInstances")  # type: ignore[arg-type]


def _instance(found: InstanceTypeDef | dict[str, Any]) -> Instance:
    reason = found.get("StateReason", {}).get("Message") or found.get("StateTransitionReason") or ""
    return Instance(
        id=found["InstanceId"],
        state=InstanceState(found["State"]["Name"]),
        type=found.get("InstanceType", ""),
        public_address=found.get("PublicIpAddress") or None,
        private_address=found.get("PrivateIpAddress") or None,
        launched_at=found.get("LaunchTime"),
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        state_reason=reason,
    )
