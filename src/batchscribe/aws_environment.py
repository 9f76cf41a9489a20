"""The environment variables of AWS's libraries: identity, region, endpoints, secrets to redact."""

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


def export_settings(written: Mapping[str, str], region: str, environ: MutableMapping[str, str]) -> None:
    """Adds the AWS_* names of `.env` and the region to `environ`.

    It overwrites none. Key, secret and token are one identity: if the environment has one, none of them is
    taken from `.env`, since a mixture would sign with the wrong identity.
    """
    foreign = any(environ.get(name) for name in _IDENTITY)
    for name, value in written.items():
        if not environ.get(name) and not (foreign and name in _IDENTITY):
            environ[name] = value
    if region and not environ.get("AWS_REGION"):
        environ["AWS_REGION"] = region


def replace_environment(wanted: Mapping[str, str], environ: MutableMapping[str, str] = os.environ) -> None:
    """Replaces this process's environment, before anything in it was used."""
    environ.clear()
    environ.update(wanted)


def find_place(
    environ: Mapping[str, str] = os.environ, *, region: str = "", endpoint: str = ""
) -> tuple[str | None, str | None]:
    """(region, endpoint) of S3, each from the environment, else as given."""
    found = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or region
    url = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or endpoint
    return found or None, url or None


def find_metadata_url(environ: Mapping[str, str] = os.environ) -> str:
    """Address of EC2's metadata service, from the variable that AWS's tools read."""
    return (environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254").rstrip("/")


def list_secrets(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """AWS secrets in the environment, to be redacted from logs."""
    return tuple(filter(None, (environ.get(name, "") for name in SECRETS)))
