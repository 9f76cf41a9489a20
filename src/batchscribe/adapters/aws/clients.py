"""Bounded AWS clients, and one meaning for each error code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from batchscribe.adapters.aws.regions import describe_unknown_region
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    CredentialsError,
    MisconfiguredError,
    MissingRightError,
    NoCapacityError,
)

Client = TypeVar("Client")
Meaning = tuple[type[BatchscribeError], str]
"""(our error, its message with `{right}`, `{subject}`, `{region}`, `{code}`, `{service}`, `{text}`)."""
AGAIN: Meaning = (
    ComputeUnavailableError,
    "{service}: {right} on {subject} failed temporarily ({code}): try again",
)
_DENIED: Meaning = (
    MissingRightError,
    "the right {right} on {subject} is missing: grant it to these credentials (`batchscribe iam-policy`)",
)
_CREDENTIALS: Meaning = (
    CredentialsError,
    "AWS rejects these credentials ({code}): renew them; nothing was changed on {subject}",
)
_UNKNOWN: Meaning = (MisconfiguredError, "{service} refused {right} on {subject}: {text}")
MEANINGS: dict[str, Meaning] = {
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
            "RequestLimitExceeded",
            "RequestThrottled",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        ),
        AGAIN,
    ),
}
"""Meanings of error codes that all AWS APIs share."""
_NAMES = {
    "cloudformation": "CloudFormation",
    "ec2": "EC2",
    "pricing": "AWS Price List",
    "s3": "S3",
    "scheduler": "EventBridge Scheduler",
    "service-quotas": "Service Quotas",
    "sts": "STS",
}
"""boto3's name of a service -> its name in messages."""
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
"""Credential providers that fail temporarily. Their error texts are not shown."""


def open_client(
    service: str,
    region: str | None,
    endpoint: str | None = None,
    *,
    attempts: int = 2,
    connect_timeout: float = 3.0,
    read_timeout: float = 10.0,
) -> Any:
    """Opens a client with at most `attempts` attempts per call.

    Both timeouts (seconds) bound each attempt, and a signal ends a call at once.
    """
    session: Any = boto3.session.Session()
    config = Config(
        # `max_attempts` would count the retries only.
        retries={"total_max_attempts": attempts, "mode": "standard"},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
    )
    client = session.client(service, region_name=region, endpoint_url=endpoint, config=config)
    client.meta.events.register_first("needs-retry", _raise_own_error)
    return client


def _raise_own_error(caught_exception: Exception | None = None, **_event: object) -> None:
    """Raises a signal's error again: a handler for the event `needs-retry`.

    botocore treats any exception within a request as a network error, wraps it and retries, so the
    interrupt would be lost.
    """
    details: Mapping[str, object] = getattr(caught_exception, "kwargs", {})
    for error in (caught_exception, details.get("error")):
        if isinstance(error, BatchscribeError):
            raise error


class Api(Generic[Client]):
    """Client of one API in one region, with error conversion.

    `meanings` are those of the API's own error codes. `bounds` are those of open_client. A code that means
    NoCapacityError is not retried, although EC2 sends it as a server error: the run decides on retries.
    """

    def __init__(
        self,
        service: str,
        region: str | None,
        meanings: Mapping[str, Meaning],
        *,
        endpoint: str | None = None,
        **bounds: Any,
    ) -> None:
        self._name = _NAMES[service]
        self._region = region
        self._meanings = meanings
        self._open_client = partial(open_client, service, region, endpoint, **bounds)

    @cached_property
    def client(self) -> Client:
        opened: Any = self._open_client()
        opened.meta.events.register_first("needs-retry", self._raise_missing_capacity)
        client: Client = opened
        return client

    @contextmanager
    def convert_errors(self, right: str, subject: str, **meanings: Meaning) -> Iterator[None]:
        """Converts boto's errors; `meanings` apply to this call only."""
        try:
            yield
        except boto.ClientError as error:
            raise self._convert_error(error, right, subject, meanings) from error
        except _NO_ANSWER as error:
            raise ComputeUnavailableError(
                f"{self._name} did not answer ({type(error).__name__}): {right} on {subject} may have been "
                f"done; try again{self._explain_silence(error)}"
            ) from error
        except _NO_CREDENTIALS_YET as error:
            raise ComputeUnavailableError(
                f"no credentials yet for {right} on {subject} ({type(error).__name__}): try again"
            ) from error
        except boto.NoRegionError as error:
            raise MisconfiguredError(
                f"no AWS region is set for {self._name}: put AWS_REGION=…, such as us-east-2, into .env"
            ) from error
        except boto.BotoCoreError as error:
            kind = CredentialsError if isinstance(error, boto.NoCredentialsError) else MisconfiguredError
            raise kind(f"{self._name} cannot be called: {_one_line(error).rstrip('.')}. {_CHECK}") from error

    def _raise_missing_capacity(
        self, operation: Any, response: tuple[object, Mapping[str, Any]] | None = None, **_event: object
    ) -> None:
        """Handler for `needs-retry`: raises the error of a reply without capacity."""
        parsed: Any = response[1] if response else {}
        kind, _ = self._meanings.get(code_of(parsed), AGAIN)
        if issubclass(kind, NoCapacityError):
            raise boto.ClientError(parsed, operation.name)

    def _explain_silence(self, error: Exception) -> str:
        """Describes an unknown region if the silent address names it; else empty."""
        unknown = describe_unknown_region(self._region or "")
        return f"; {unknown}" if unknown and f".{self._region}." in str(error) else ""

    def _convert_error(
        self, error: boto.ClientError, right: str, subject: str, meanings: Mapping[str, Meaning]
    ) -> BatchscribeError:
        code = code_of(error.response)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        busy = status >= 500 or status == 429
        known = {**MEANINGS, **self._meanings, **meanings}
        kind, line = known.get(code, AGAIN if busy else _UNKNOWN)
        region = self._region or "the default region"
        return kind(
            line.format(
                code=code,
                right=right,
                subject=subject,
                region=region,
                service=self._name,
                text=_one_line(error),
            )
        )


_CHECK = "Check AWS_REGION, and the credentials with `aws sts get-caller-identity`"


def code_of(response: Mapping[str, object]) -> str:
    """The error code in a parsed response; empty if there is none."""
    error = response.get("Error", {})
    return str(error.get("Code", "")) if isinstance(error, dict) else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
