"""S3 through boto3: slower than obstore, but addresses any key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from batchscribe.adapters.stores.rules import (
    CONNECT_SECONDS,
    READ_SECONDS,
    RETRIES,
    Action,
    ConflictError,
    check_size,
    convert_error,
    create_verified,
)
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import MissingCredentialsError, ObjectNotFoundError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


class Boto3Store:
    """A protocols.Store over a bucket; `base`, empty or `…/`, begins every key."""

    def __init__(self, url: str, client: S3Client, bucket: str, base: str = "") -> None:
        self.url = url
        self._client = client
        self._bucket = bucket
        self._base = base

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket,
            Prefix=self._base + prefix,
            StartAfter=self._base + after if after else "",
        )
        with self._convert_errors(Action.LIST, ""):
            for page in pages:
                for row in page.get("Contents", ()):
                    key = row["Key"].removeprefix(self._base)
                    yield ObjectInfo(key, row["Size"], row["LastModified"], row["ETag"].strip('"'))

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        with self._convert_errors(Action.GET, key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._base + key)
            with answer["Body"] as body:
                check_size(key, answer["ContentLength"], limit)
                return Blob(body.read(), answer["ETag"].strip('"'))

    def get_range(self, key: str, start: int, length: int) -> Blob:
        asked = f"bytes={start}-{start + length - 1}"
        with self._convert_errors(Action.GET, key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._base + key, Range=asked)
            except ClientError as error:
                if _error_code(error) != "InvalidRange":
                    raise
                head = self._client.head_object(Bucket=self._bucket, Key=self._base + key)
                return Blob(b"", head["ETag"].strip('"'), head["ContentLength"])
            with answer["Body"] as body:
                size = int(answer["ContentRange"].rpartition("/")[2])
                return Blob(body.read(), answer["ETag"].strip('"'), size)

    def create(self, key: str, data: bytes) -> bool:
        return create_verified(lambda: self._put_new(key, data), lambda: self.get(key, limit=len(data)), data)

    def replace(self, key: str, data: bytes) -> None:
        with self._convert_errors(Action.PUT, key):
            self._client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data)

    def delete(self, key: str) -> None:
        with suppress(ObjectNotFoundError), self._convert_errors(Action.DELETE, key):
            self._client.delete_object(Bucket=self._bucket, Key=self._base + key)

    def _put_new(self, key: str, data: bytes) -> None:
        with self._convert_errors(Action.PUT, key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._base + key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _error_code(error) in _CONFLICT:
                    raise ConflictError from error
                raise

    @contextmanager
    def _convert_errors(self, action: Action, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            raise convert_error(action, self.url, key, status=status, code=_error_code(error)) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise MissingCredentialsError(
                f"no credentials for {self.url}: set them in the environment or in ~/.aws"
            ) from error
        except BotoCoreError as error:
            raise convert_error(action, self.url, key, status=None, code="") from error


def open_fallback(
    url: str, bucket: str, base: str, *, region: str | None = None, endpoint: str | None = None
) -> Boto3Store:
    """Opens the same place through boto3 (entry point `boto3` of `batchscribe.stores`)."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": RETRIES, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint else None,
    )
    client = boto3.client("s3", region_name=region, endpoint_url=endpoint, config=config)
    return Boto3Store(url, client, bucket, base)


def _error_code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
