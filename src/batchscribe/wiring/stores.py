"""Opens the store of a URL.

boto3 is never imported here, since GPU hosts lack it. If it is installed, it is found at run time, for its
credential chain and for keys that obstore cannot address.
"""

from __future__ import annotations

import importlib
import os
import re
from datetime import timedelta
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import obstore.store
from obstore.exceptions import BaseError
from obstore.store import S3Store

from batchscribe import aws_environment
from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.adapters.stores.obstore_store import CLIENT, RETRY, ObstoreStore
from batchscribe.core.messages import describe_install
from batchscribe.errors import MisconfiguredError, MissingCredentialsError
from batchscribe.protocols import Store

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig, S3Config, S3CredentialProvider

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
# botocore renews credentials 10 to 15 minutes before they expire; a longer cache could outlive them.
_CREDENTIALS_KEPT = timedelta(minutes=10)
ONCE: RetryConfig = {"max_retries": 0}


def open_store(
    url: str,
    *,
    region: str | None = None,
    endpoint: str | None = None,
    expected: bool = True,
    retry: bool = True,
) -> Store:
    """Opens `s3://bucket/prefix`, `file:///folder`, an absolute path, `gs://`, `az://` or `memory://name`.

    An S3 prefix is used literally, a file URL is percent-decoded. `endpoint` replaces AWS (else
    AWS_ENDPOINT_URL applies). A folder that is not `expected` to exist lists as empty until the first write
    creates it. Without `retry`, a request to S3 is attempted once. Makes no request. Raises
    MisconfiguredError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return DirectoryStore(Path(url), expected=expected)
    if scheme == "s3":
        return _open_s3(rest, region, endpoint, RETRY if retry else ONCE)
    if scheme == "file":
        return DirectoryStore(_parse_folder(rest), expected=expected)
    if scheme == "memory":
        return _open_memory(rest)
    if scheme in {"gs", "az"}:
        return _open_other(url)
    raise MisconfiguredError(f"{scheme}:// is not a supported store: use s3://, gs://, az:// or file://")


def _parse_folder(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise MisconfiguredError(
            "a file URL needs three slashes and an absolute path: file:///data/recordings"
        )
    return Path(os.fsdecode(unquote_to_bytes("/" + path)))


@cache
def _open_memory(name: str) -> ObstoreStore:
    """One store per name for the life of the process."""
    return ObstoreStore(f"memory://{name}", obstore.store.MemoryStore())


def _open_other(url: str) -> ObstoreStore:
    try:
        vendor: ObjectStore = obstore.store.from_url(url, client_options=CLIENT, retry_config=RETRY)
    except (BaseError, ValueError) as error:
        raise MisconfiguredError(f"{url} cannot be opened: check the URL and its credentials") from error
    return ObstoreStore(url.rstrip("/"), vendor)


def _open_s3(rest: str, region: str | None, endpoint: str | None, retries: RetryConfig) -> ObstoreStore:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise MisconfiguredError("an S3 URL needs a bucket and an optional prefix: s3://my-bucket/recordings")
    base = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
    url = f"s3://{bucket}/{base}".rstrip("/")
    provider, home = _find_credentials()
    config: S3Config = {"disable_bulk_delete": True}  # many S3-compatible stores have no bulk delete
    if endpoint:
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint  # else the environment's overrides it
    if region or home:
        config["region"] = region or home or ""
    vendor = S3Store(
        bucket, config=config, client_options=CLIENT, retry_config=retries, credential_provider=provider
    )
    fallback = partial(_open_fallback, url, bucket, base, region=region, endpoint=endpoint)
    named = "" if aws_environment.find_place(endpoint=endpoint or "")[1] else region or home or ""
    return ObstoreStore(url, vendor, base=base, fallback=fallback, doubt=partial(_doubt_region, named))


def _doubt_region(region: str) -> str:
    """Reports a region that boto3 does not know; empty without boto3."""
    try:
        regions = importlib.import_module("batchscribe.adapters.aws.regions")
    except ModuleNotFoundError:
        return ""
    return str(regions.describe_unknown_region(region))


def _find_credentials() -> tuple[S3CredentialProvider | None, str | None]:
    """boto3's credential chain and region; None without it: obstore has its own."""
    try:
        auth = importlib.import_module("obstore.auth.boto3")
    except ModuleNotFoundError:
        return None, None
    try:
        provider = auth.Boto3CredentialProvider(ttl=_CREDENTIALS_KEPT)
    except ValueError as error:
        raise MissingCredentialsError(
            "no AWS credentials found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    return provider, provider.config.get("region")


def _open_fallback(url: str, bucket: str, base: str, *, region: str | None, endpoint: str | None) -> Store:
    found = entry_points(group="batchscribe.stores", name="boto3")
    try:
        opened: Store = next(iter(found)).load()(url, bucket, base, region=region, endpoint=endpoint)
    except (StopIteration, ModuleNotFoundError) as error:
        raise MisconfiguredError(
            f"{url} contains a key with a control character, `//`, `.` or `..`; this machine can read it "
            f"after {describe_install('aws')}"
        ) from error
    return opened
