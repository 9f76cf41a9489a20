"""S3 and EC2 on this machine: moto's server over HTTP, on 127.0.0.1, in a thread of the test process."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def missing(component: str) -> NoReturn:
    """A component that is not installed is a skip on a laptop, and a failure where nobody looks at skips."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{component} is not installed here, and CI must have it")
    pytest.skip(f"{component} is not installed here")


def _make_puts_atomic() -> None:
    """S3 decides a conditional PUT at once; moto checks first and writes later, in threads."""
    from moto.s3.responses import S3Response

    if not hasattr(S3Response.put_object, "atomic"):
        put, lock = S3Response.put_object, threading.Lock()

        def put_object(self: Any) -> Any:
            with lock:
                return put(self)

        put_object.atomic = True  # type: ignore[attr-defined]
        S3Response.put_object = put_object


def _shorten_requests() -> None:
    """moto lists its folders and its methods for each request, parses the time of each listed object, and its
    server logs each request."""
    from moto.core import responses, serialize
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    kind: Any = DomainDispatcherApplication
    kind.get_backend_for_host = cache(kind.get_backend_for_host)
    responses.method_names_from_class = cache(responses.method_names_from_class)
    serialize.parse_to_aware_datetime = cache(serialize.parse_to_aware_datetime)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)


@cache
def _server() -> Any:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        missing("moto[server]")
    _make_puts_atomic()
    _shorten_requests()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    return server


def call_moto(
    method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of a reply of this process's server, without another connection."""
    from werkzeug.test import EnvironBuilder, run_wsgi_app

    asked = EnvironBuilder(path, method=method, headers=headers.items(), data=body)
    content, status, found = run_wsgi_app(_server()._server.app, asked.get_environ(), buffered=True)
    return int(status.partition(" ")[0]), [*found], b"".join(content)


def put_object(bucket: str, key: str, data: bytes) -> None:
    """Puts an object into the emulated S3 itself: a request costs as much as a step."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, data)


@contextmanager
def moto_server() -> Iterator[str]:
    """Gives the endpoint of this process's server, http://127.0.0.1:port: moto has one account per process,
    and each endpoint needs clients of its own, which botocore takes long to make."""
    host, port = _server().get_host_and_port()
    yield f"http://{host}:{port}"


@contextmanager
def aws_environment(endpoint: str | None = None) -> Iterator[None]:
    """Throw-away credentials in the environment, and the endpoint; everything as before at the end."""
    wanted = CREDENTIALS | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
    names = {name for name in os.environ if name.startswith("AWS_")} | set(wanted)
    before = {name: os.environ.get(name) for name in names}
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@cache
def aws_client(endpoint: str, service: str, region: str = REGION) -> Any:
    """The process's client with throw-away credentials: botocore takes long to make one."""
    import boto3

    return boto3.session.Session().client(
        service,  # type: ignore[call-overload]
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def s3_client(endpoint: str) -> S3Client:
    client: S3Client = aws_client(endpoint, "s3")
    return client


def create_bucket(endpoint: str, name: str) -> str:
    """Makes the bucket, with no object in it; returns its URL."""
    s3_client(endpoint).create_bucket(Bucket=name)
    return f"s3://{name}"
