"""What a store over a network says when it is refused, and when a reply gets lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from obstore.exceptions import GenericError

from batchscribe.adapters.stores import boto3_store, obstore_store, rules
from batchscribe.adapters.stores.boto3_store import open_fallback
from batchscribe.adapters.stores.obstore_store import ObstoreStore
from batchscribe.errors import (
    BatchscribeError,
    MisconfiguredError,
    MissingCredentialsError,
    MissingRightError,
    ObjectArchivedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    PermanentError,
    StoreUnavailableError,
)
from batchscribe.protocols import Store
from batchscribe.wiring import stores
from batchscribe.wiring.stores import open_store
from support.canned import LOST, Canned, canned_server
from support.s3 import aws_environment, moto_server, s3_client


@pytest.fixture
def canned() -> Iterator[Canned]:
    with canned_server() as server, aws_environment():
        yield server


@pytest.fixture(params=["obstore", "boto3"])
def store(request: pytest.FixtureRequest, canned: Canned, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setitem(obstore_store.RETRY, "max_retries", 1)
    monkeypatch.setattr(boto3_store, "RETRIES", 1)
    if request.param == "obstore":
        return open_store("s3://bucket", endpoint=canned.endpoint, region="us-east-1")
    return open_fallback("s3://bucket", "bucket", "", endpoint=canned.endpoint, region="us-east-1")


REFUSALS = (
    (403, "AccessDenied", MissingRightError, "allow s3:"),
    (403, "InvalidAccessKeyId", MisconfiguredError, "credentials"),
    (403, "SignatureDoesNotMatch", MisconfiguredError, "credentials"),
    (400, "ExpiredToken", MisconfiguredError, "credentials"),
    (403, "RequestTimeTooSkewed", MisconfiguredError, "clock"),
    (404, "NoSuchBucket", MisconfiguredError, "no such bucket"),
    (400, "AuthorizationHeaderMalformed", MisconfiguredError, "AWS_REGION"),
    (503, "SlowDown", StoreUnavailableError, "try again"),
    (500, "InternalError", StoreUnavailableError, "try again"),
    (429, "TooManyRequests", StoreUnavailableError, "try again"),
)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case[1])
def test_each_refusal_is_named(
    store: Store, canned: Canned, case: tuple[int, str, type[BatchscribeError], str]
) -> None:
    status, code, kind, words = case
    canned.always = (status, code)
    for act in (
        lambda: list(store.list()),
        lambda: store.get("k"),
        lambda: store.create("k", b"1"),
        lambda: store.replace("k", b"1"),
    ):
        with pytest.raises(kind, match=words) as caught:
            act()
        assert "s3://bucket" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_archived_object_is_named(store: Store, canned: Canned) -> None:
    canned.always = (403, "InvalidObjectState")
    with pytest.raises(ObjectArchivedError, match="restore"):
        store.get("k")


def test_the_content_of_what_exceeds_the_limit_is_not_waited_for(store: Store, canned: Canned) -> None:
    canned.bodiless["/bucket/k"] = 2**30
    with pytest.raises(ObjectTooLargeError, match="1,073,741,824 bytes"):
        store.get("k", limit=2**20)


def test_a_key_that_is_too_long_is_that_keys_own_trouble(store: Store, canned: Canned) -> None:
    canned.always = (400, "KeyTooLongError")
    with pytest.raises(PermanentError, match="does not support such a key"):
        store.create("k" * 1100, b"1")


def test_a_hostile_key_cannot_look_like_a_refusal(store: Store, canned: Canned) -> None:
    canned.always = (404, "NoSuchKey")
    with pytest.raises(ObjectNotFoundError):
        store.get("non-2xx status code: 403 <Error><Code>NoSuchBucket</Code>.mp3")


def test_a_lost_reply_of_a_create_is_read_back(store: Store, canned: Canned) -> None:
    canned.answers = [LOST]
    assert store.create("k", b"ours")


def test_a_lost_reply_is_not_ours_where_a_neighbour_won(store: Store, canned: Canned) -> None:
    canned.objects["/bucket/k"] = b"theirs"
    canned.answers = [LOST]
    assert not store.create("k", b"ours")
    assert canned.objects["/bucket/k"] == b"theirs"


def test_a_conflict_with_nothing_there_is_tried_again(store: Store, canned: Canned) -> None:
    canned.answers = [(409, "ConditionalRequestConflict"), (404, "NoSuchKey")]
    assert store.create("k", b"ours")
    assert canned.objects["/bucket/k"] == b"ours"


def test_a_conflict_that_stays_is_never_a_success(store: Store, canned: Canned) -> None:
    canned.answers = [(409, "ConditionalRequestConflict"), (404, "NoSuchKey")] * 8
    with pytest.raises(StoreUnavailableError):
        store.create("k", b"ours")
    assert canned.objects == {}


def test_no_answer_ends_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and is silent: the error comes, however long the request would wait."""
    monkeypatch.setitem(obstore_store.CLIENT, "read_timeout", "200ms")
    monkeypatch.setitem(obstore_store.RETRY, "max_retries", 1)
    monkeypatch.setattr(boto3_store, "READ_SECONDS", 0.2)
    monkeypatch.setattr(boto3_store, "RETRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, aws_environment():
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for store in (
            open_store("s3://bucket", endpoint=endpoint, region="us-east-1"),
            open_fallback("s3://bucket", "bucket", "", endpoint=endpoint, region="us-east-1"),
        ):
            for act in (
                lambda s=store: list(s.list()),
                lambda s=store: s.get("k"),
                lambda s=store: s.create("k", b""),
            ):
                with pytest.raises(StoreUnavailableError, match="no answer"):
                    act()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with aws_environment():
        store = open_store("s3://bucket", endpoint=f"http://127.0.0.1:{port}", region="us-east-1")
        with pytest.raises(StoreUnavailableError, match="no answer"):
            list(store.list())


WAITING = """
import os, signal, sys, threading
from batchscribe.adapters.stores import obstore_store
from batchscribe.wiring.stores import open_store
obstore_store.CLIENT["read_timeout"] = "300s"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
store = open_store("s3://bucket", endpoint=sys.argv[1], region="us-east-1")

def pass_on():
    sys.stdin.read(1) and signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=pass_on, daemon=True).start()
try:
    list(store.list()) if sys.argv[2] == "list" else store.get("k")
except KeyboardInterrupt:
    os._exit(42)
"""


@pytest.fixture(params=["list", "get"])
def waiting(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for the answer to a request, which would take five minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent, aws_environment():
        silent.settimeout(60)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", WAITING, endpoint, request.param]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            try:
                connection, _address = silent.accept()
                with connection:
                    connection.settimeout(60)
                    assert connection.recv(1)
                    yield child
            finally:
                child.kill()


def test_ctrl_c_ends_a_wait_on_a_silent_server(waiting: subprocess.Popen[bytes]) -> None:
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 42


def test_ctrl_c_is_not_lost_where_it_does_not_wake_the_wait(waiting: subprocess.Popen[bytes]) -> None:
    """As where it comes just before the wait: another thread gets it."""
    assert waiting.stdin
    waiting.stdin.write(b"!")
    waiting.stdin.flush()
    assert waiting.wait(60) == 42


def test_a_given_endpoint_wins_over_the_environment(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for store in (
        open_store("s3://bucket", endpoint=canned.endpoint, region="us-east-1"),
        open_fallback("s3://bucket", "bucket", "", endpoint=canned.endpoint, region="us-east-1"),
    ):
        store.replace("k", b"1")
        assert store.get("k").data == b"1"


def test_the_endpoint_of_the_environment_is_honoured(canned: Canned) -> None:
    with aws_environment(canned.endpoint):
        store = open_store("s3://bucket")
        assert store.create("k", b"1")
    assert canned.objects == {"/bucket/k": b"1"}


def test_glacier_and_a_missing_bucket_on_moto() -> None:
    with moto_server() as endpoint, aws_environment():
        client = s3_client(endpoint)
        client.create_bucket(Bucket="cold")
        client.put_object(Bucket="cold", Key="a.mp3", Body=b"1", StorageClass="GLACIER")
        client.put_object(Bucket="cold", Key="a//b.mp3", Body=b"1", StorageClass="GLACIER")
        store = open_store("s3://cold", endpoint=endpoint)
        for key in ("a.mp3", "a//b.mp3"):
            with pytest.raises(ObjectArchivedError):
                store.get(key)
        absent = open_store("s3://absent-bucket", endpoint=endpoint)
        for act in (lambda: list(absent.list()), lambda: absent.get("k"), lambda: absent.create("k", b"")):
            with pytest.raises(MisconfiguredError, match="no such bucket"):
                act()


def test_no_credentials_are_named_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with aws_environment():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        with pytest.raises(MissingCredentialsError, match="no AWS credentials"):
            open_store("s3://bucket")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Server returned non-2xx status code: 403 Forbidden", MissingCredentialsError),
        ("Server returned non-2xx status code: 404 Not Found", MissingCredentialsError),
        ("Server returned non-2xx status code: 503 Service Unavailable", StoreUnavailableError),
        ("HTTP error: error sending request", MissingCredentialsError),
    ],
)
def test_a_machine_without_a_role_has_no_credentials_and_lacks_no_right(
    answer: str, kind: type[BatchscribeError]
) -> None:
    """What obstore reports on a host without boto3 and without an instance profile."""
    asked = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 8 ms"
    with aws_environment():
        store = open_store("s3://bucket", region="us-east-1")
    assert isinstance(store, ObstoreStore)
    error = store._to_own_error(GenericError(f"{asked} - {answer}"), rules.Action.LIST, "")
    assert type(error) is kind
    key = "169.254.1.1"
    text = f"Error performing GET http://bucket/{key} - {answer}"
    assert not isinstance(
        store._to_own_error(GenericError(text), rules.Action.GET, key), MissingCredentialsError
    )


@pytest.mark.parametrize(
    "url", ["ftp://x", "s3://", "s3://key:secret@bucket/x", "file://host/x", "relative/folder", "s3:///x"]
)
def test_what_is_no_store_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_without_boto3_the_native_chain_is_used(monkeypatch: pytest.MonkeyPatch, canned: Canned) -> None:
    """Beside the GPU there is no boto3: reading and writing work, an odd key says what to install."""

    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    monkeypatch.setattr(stores, "entry_points", lambda **_wanted: ())
    store = open_store("s3://bucket", endpoint=canned.endpoint, region="us-east-1")
    assert store.create("k", b"1")
    assert store.get("k").data == b"1"
    with pytest.raises(MisconfiguredError, match=r"install --editable '\.\[aws\]'"):
        store.get("a//b")


@pytest.mark.parametrize("retry", [True, False])
def test_a_check_in_a_hurry_asks_once(canned: Canned, retry: bool) -> None:
    store = open_store("s3://bucket", endpoint=canned.endpoint, region="us-east-1", retry=retry)
    canned.objects["/bucket/k"] = b"1"
    canned.answers = [(503, "SlowDown")]
    if retry:
        assert store.get("k").data == b"1"
    else:
        with pytest.raises(StoreUnavailableError):
            store.get("k")


def test_the_bounds_of_both_libraries_are_ours() -> None:
    assert obstore_store.RETRY["max_retries"] == rules.RETRIES < 10
    assert obstore_store.RETRY["retry_timeout"].total_seconds() <= 60
