"""EC2 as moto plays it, over HTTP on loopback."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import boto3
import pytest

REGION = "us-east-1"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def require(present: object, what: str) -> None:
    """A missing component is a failure in CI and a named skip on a laptop."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@contextmanager
def ec2_server() -> Iterator[str]:
    """A fresh moto server; gives its endpoint."""
    require(importlib.util.find_spec("moto"), "moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    try:
        yield endpoint
    finally:
        server.stop()


@contextmanager
def credentials() -> Iterator[None]:
    """Throw-away credentials in the environment, and no others."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in _KEYS.items():
        patch.setenv(name, value)
    try:
        yield
    finally:
        patch.undo()


def make_stopped_instance(endpoint: str, *, instance_type: str = "g5.xlarge") -> str:
    """The id of a new instance of this type, stopped."""
    client, image = _maker(endpoint)
    made = client.run_instances(ImageId=image, InstanceType=instance_type, MinCount=1, MaxCount=1)
    instance: str = made["Instances"][0]["InstanceId"]
    client.stop_instances(InstanceIds=[instance])
    return instance


@cache
def _maker(endpoint: str) -> tuple[Any, str]:
    """A client and an image: both take a second to find, and every test needs them."""
    client: Any = boto3.session.Session().client("ec2", region_name=REGION, endpoint_url=endpoint)
    return client, client.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
