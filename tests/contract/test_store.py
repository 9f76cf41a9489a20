"""The suite of stores on the double, a folder, S3 through obstore, S3 through boto3, obstore's memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from batchscribe.adapters.stores.boto3_store import open_fallback
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.testing.store_suite import StoreSuite
from batchscribe.wiring.stores import open_store
from support.s3 import aws_environment, create_bucket, moto_server, s3_client

KINDS = ("double", "folder", "memory", "s3", "s3-prefix", "boto3", "boto3-prefix")
_numbers = count()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url, aws_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(TestEveryStore.page))
        yield url


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    kind = str(request.param)
    if kind == "double":
        return MemoryStore(FakeClock())
    if kind == "folder":
        return open_store(tmp_path.as_uri())
    if kind == "memory":
        return open_store(f"memory://{next(_numbers)}")
    endpoint = request.getfixturevalue("endpoint")
    url = create_bucket(endpoint, f"bucket-{next(_numbers)}")
    prefix = "deep/er" if kind.endswith("prefix") else ""
    if kind.startswith("s3"):
        return open_store(f"{url}/{prefix}", endpoint=endpoint)
    bucket = url.removeprefix("s3://")
    s3_client(endpoint).put_object(Bucket=bucket, Key="deep/error.mp3", Body=b"beside the prefix")
    if not prefix:
        s3_client(endpoint).delete_object(Bucket=bucket, Key="deep/error.mp3")
    return open_fallback(url, bucket, prefix + "/" if prefix else "", endpoint=endpoint)


class TestEveryStore(StoreSuite):
    """The suite that ships, on the double and on each of ours."""

    page = 100
