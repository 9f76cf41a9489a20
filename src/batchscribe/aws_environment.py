"""What AWS's own libraries read from the environment: who signs, where, and what no log may hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

_IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
)
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def export(written: Mapping[str, str], region: str, environ: MutableMapping[str, str]) -> None:
    """Adds the AWS_* names of `.env` and the region to `environ`, without overwriting any.

    Keys, secret and token are one identity: none of them is taken from `.env` where the environment
    names an identity of its own, since a mixture would sign with the wrong one.
    """
    foreign = any(environ.get(name) for name in _IDENTITY)
    for name, value in written.items():
        if not environ.get(name) and not (foreign and name in _IDENTITY):
            environ[name] = value
    if region and not environ.get("AWS_REGION"):
        environ["AWS_REGION"] = region


def place(
    environ: Mapping[str, str] | None = None, *, region: str = "", endpoint: str = ""
) -> tuple[str | None, str | None]:
    """(region, endpoint) of S3 as the environment names them, else as given; None where nobody does."""
    named = os.environ if environ is None else environ
    found = named.get("AWS_REGION") or named.get("AWS_DEFAULT_REGION") or region
    url = named.get("AWS_ENDPOINT_URL_S3") or named.get("AWS_ENDPOINT_URL") or endpoint
    return found or None, url or None


def metadata(environ: Mapping[str, str] | None = None) -> str:
    """Address of EC2's metadata service, as AWS's own tools read it."""
    named = os.environ if environ is None else environ
    return (named.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254").rstrip("/")


def secrets(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """AWS's secrets in the environment, for a log that must not hold them."""
    named = os.environ if environ is None else environ
    return tuple(filter(None, (named.get(name, "") for name in SECRETS)))
