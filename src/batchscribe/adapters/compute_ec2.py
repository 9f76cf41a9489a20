"""EC2 instances by their id: looked at, started and stopped. Creates and terminates nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from batchscribe.core.instances import RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    NoCapacityError,
)

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef


class _MissingError(MisconfiguredError):
    """There is no such instance."""


_Kind = type[BatchscribeError]
_CAPACITY = (
    NoCapacityError,
    (
        "EC2 has no capacity for {instance} right now ({code}): nothing was started; the next check tries "
        "again, or change its type or its zone"
    ),
)
_QUOTA = (
    NoCapacityError,
    (
        "the account's quota does not let {instance} start ({code}): nothing was started; ask for more vCPUs "
        "under Service Quotas, EC2"
    ),
)
_DENIED = (
    MisconfiguredError,
    "the right {right} on {instance} is missing: grant it to these credentials",
)
_CREDENTIALS = (MisconfiguredError, "AWS does not accept these credentials ({code}): renew them")
_AGAIN = (ComputeUnavailableError, "EC2 did not do {right} on {instance} now ({code}): look again")
_MEANINGS: dict[str, tuple[_Kind, str]] = {
    "InvalidInstanceID.NotFound": (
        _MissingError,
        "there is no instance {instance} in {region}: mend GPU_INSTANCE_ID or AWS_REGION",
    ),
    "InvalidInstanceID.Malformed": (
        MisconfiguredError,
        "{instance} is not the id of an instance: mend GPU_INSTANCE_ID (it looks like i-0123456789abcdef0)",
    ),
    "OperationNotPermitted": (
        MisconfiguredError,
        "{right} on {instance} is not permitted: switch off its stop protection (DisableApiStop)",
    ),
    **dict.fromkeys(
        (
            "InsufficientCapacity",
            "InsufficientHostCapacity",
            "InsufficientInstanceCapacity",
            "Unsupported",
        ),
        _CAPACITY,
    ),
    **dict.fromkeys(("InstanceLimitExceeded", "VcpuLimitExceeded"), _QUOTA),
    **dict.fromkeys(("AccessDenied", "AccessDeniedException", "UnauthorizedOperation"), _DENIED),
    **dict.fromkeys(
        (
            "AuthFailure",
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidClientTokenId",
            "MissingAuthenticationToken",
            "RequestExpired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
        _CREDENTIALS,
    ),
    **dict.fromkeys(
        (
            "IncorrectInstanceState",
            "IncorrectState",
            "RequestLimitExceeded",
            "RequestThrottled",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        ),
        _AGAIN,
    ),
}
"""What each of EC2's error codes means here, with the line for a person."""
_NO_ANSWER = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
)
_NO_CREDENTIALS_YET = (
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.TokenRetrievalError,
)
"""Credentials are handed out here, but not at this moment. What a program said of it is not shown."""
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
        self._config = Config(
            # `max_attempts` would count the retries only.
            retries={"total_max_attempts": attempts, "mode": "standard"},
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )

    def describe(self, instance: str) -> Instance:
        try:
            with self._translated("ec2:DescribeInstances", instance):
                answer = self._client.describe_instances(InstanceIds=[instance])
        except _MissingError:
            return Instance(id=instance, state=InstanceState.MISSING)
        found = [each for group in answer["Reservations"] for each in group["Instances"]]
        return _instance(found[0]) if found else Instance(id=instance, state=InstanceState.MISSING)

    def start(self, claim: Claim) -> None:
        # Tags first: a machine that starts must already say whose it is.
        self._tag(claim.instance, claim.tags)
        self._start(claim.instance)

    def start_unclaimed(self, instance: str) -> None:
        """Starts it for a person: without a claim, so that no scheduler stops it."""
        self._start(instance)

    def stop(self, instance: str, *, force: bool = False) -> None:
        try:
            with self._translated("ec2:StopInstances", instance):
                self._client.stop_instances(InstanceIds=[instance], Force=force)
        except _MissingError:
            return

    def release(self, instance: str) -> None:
        try:
            self._tag(instance, RELEASED_TAGS)
        except _MissingError:
            return

    def change_type(self, instance: str, instance_type: str) -> None:
        with self._translated("ec2:ModifyInstanceAttribute", instance):
            self._client.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": instance_type})

    def host_key_fingerprints(self, instance: str) -> frozenset[str]:
        """`SHA256:…` of every host key that the console shows; only the first boot prints them."""
        with self._translated("ec2:GetConsoleOutput", instance):
            answer = self._client.get_console_output(InstanceId=instance)
        return frozenset(_FINGERPRINT.findall(answer.get("Output", "")))

    def _start(self, instance: str) -> None:
        with self._translated("ec2:StartInstances", instance):
            self._client.start_instances(InstanceIds=[instance])

    def _tag(self, instance: str, tags: Mapping[str, str]) -> None:
        rows = [{"Key": key, "Value": value} for key, value in tags.items()]
        with self._translated("ec2:CreateTags", instance):
            self._client.create_tags(Resources=[instance], Tags=rows)  # type: ignore[arg-type]

    @cached_property
    def _client(self) -> EC2Client:
        client = boto3.session.Session().client(
            "ec2", region_name=self._region, endpoint_url=self._endpoint, config=self._config
        )
        client.meta.events.register_first("needs-retry.ec2", _let_ours_through)
        return client

    @contextmanager
    def _translated(self, right: str, instance: str) -> Iterator[None]:
        if not instance:
            raise MisconfiguredError("GPU_INSTANCE_ID is not set: name the instance that has the GPU")
        try:
            yield
        except boto.ClientError as error:
            raise _translate(error, right, instance, self._region or "the default region") from error
        except _NO_ANSWER as error:
            raise ComputeUnavailableError(
                f"EC2 did not answer ({type(error).__name__}): whether {right} was done on {instance} is "
                "unknown; look again"
            ) from error
        except _NO_CREDENTIALS_YET as error:
            raise ComputeUnavailableError(
                f"no credentials came for {right} on {instance} ({type(error).__name__}): look again"
            ) from error
        except boto.BotoCoreError as error:
            raise MisconfiguredError(
                f"EC2 cannot be asked: {_line(error)} Check AWS_REGION, and the credentials with "
                "`aws sts get-caller-identity`"
            ) from error


def _let_ours_through(caught_exception: Exception | None = None, **_event: object) -> None:
    """Ends a call at once when a signal was raised inside of it.

    botocore takes any exception from within a request for trouble on the network, wraps it and tries
    again: the request to end would be lost.
    """
    details: Mapping[str, object] = getattr(caught_exception, "kwargs", {})
    for error in (caught_exception, details.get("error")):
        if isinstance(error, BatchscribeError):
            raise error


def _translate(error: boto.ClientError, right: str, instance: str, region: str) -> BatchscribeError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    busy = status >= 500 or status == 429
    unknown = (MisconfiguredError, "EC2 refused {right} on {instance}: {text}")
    kind, line = _MEANINGS.get(code, _AGAIN if busy else unknown)
    return kind(line.format(code=code, right=right, instance=instance, region=region, text=_line(error)))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
