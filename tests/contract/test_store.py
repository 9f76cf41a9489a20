"""One suite for every store: the double, a folder, S3 through obstore, S3 through boto3, obstore's memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from batchscribe.adapters.stores.boto3_store import open_fallback
from batchscribe.errors import ObjectNotFoundError, ObjectTooLargeError
from batchscribe.protocols import Store
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.stores import open_store
from support.s3 import aws_environment, create_bucket, moto_server, s3_client
from support.stores import StoppedClock

KINDS = ("double", "folder", "memory", "s3", "s3-prefix", "boto3", "boto3-prefix")
_numbers = count()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url, aws_environment():
        yield url


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    kind = str(request.param)
    if kind == "double":
        return MemoryStore(StoppedClock())
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


HARMLESS = (
    "a b/chunk-001.webm",
    "a%20b.mp3",
    "a&b+c=d.mp3",
    "a#b?c.mp3",
    "a'b\"c.mp3",
    "a..b/..c.mp3",
    "back\\slash.mp3",
    "$(touch PWNED); `id`.mp3",
    "😀/ü.mp3",
    "nfc-é and nfd-é.mp3",
    "-rf",
    "~.mp3",
    "...",
    "x" * 200 + ".mp3",
)


def keys(store: Store, prefix: str = "", after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, after=after)]


def test_an_empty_store_lists_nothing(store: Store) -> None:
    assert keys(store) == []


def test_what_is_written_is_read(store: Store) -> None:
    assert store.create("a/b.mp3", b"sound")
    blob = store.get("a/b.mp3")
    (info,) = store.list()
    assert blob.data == b"sound"
    assert (info.key, info.size, info.etag) == ("a/b.mp3", 5, blob.etag)
    assert blob.etag
    assert '"' not in blob.etag
    assert info.modified.utcoffset() == timedelta(0)
    assert info.modified > datetime(2020, 1, 1, tzinfo=UTC)


def test_no_bytes_are_an_object_too(store: Store) -> None:
    assert store.create("empty.mp3", b"")
    assert store.get("empty.mp3").data == b""
    assert [info.size for info in store.list()] == [0]


def test_all_bytes_come_back(store: Store) -> None:
    data = bytes(range(256)) * 5000
    store.replace("b", data)
    assert store.get("b").data == data


def test_what_exceeds_the_limit_is_refused(store: Store) -> None:
    store.replace("a/b", b"12345")
    assert store.get("a/b", limit=5).data == b"12345"
    for limit in (4, 0):
        with pytest.raises(ObjectTooLargeError, match="a/b"):
            store.get("a/b", limit=limit)
    with pytest.raises(ObjectNotFoundError):
        store.get("a/c", limit=0)


def test_a_large_object_in_the_way_of_a_create_is_not_ours(store: Store) -> None:
    store.replace("k", b"larger than what is written")
    assert not store.create("k", b"small")


@pytest.mark.parametrize("key", HARMLESS)
def test_keys_are_data(store: Store, key: str) -> None:
    assert store.create(key, key.encode())
    assert keys(store) == [key]
    assert store.get(key).data == key.encode()
    assert not store.create(key, b"other")
    store.replace(key, b"new")
    assert store.get(key).data == b"new"
    store.delete(key)
    assert keys(store) == []


def test_a_listing_is_in_the_order_of_the_bytes(store: Store) -> None:
    written = [
        "a/b",
        "a-b",
        "a.b",
        "a/b0",
        "a0",
        "b",
        "é",
        "z",
        "Z",
        "\uffee",
        "😀",
        "a/z/y",
        "a/z-y",
        "a/z!",
    ]
    for key in written:
        store.replace(key, b"1")
    assert keys(store) == sorted(set(written), key=str.encode)


def test_a_prefix_is_a_prefix_of_the_string(store: Store) -> None:
    for key in ("a", "ab", "ab/c", "ab/cd", "abc", "b"):
        if key != "ab" or "file" not in store.url:  # a folder cannot hold both ab and ab/c
            store.replace(key, b"1")
    assert keys(store, "ab/") == ["ab/c", "ab/cd"]
    assert keys(store, "ab/c") == ["ab/c", "ab/cd"]
    assert keys(store, "ab/cd") == ["ab/cd"]
    assert keys(store, "abc") == ["abc"]
    assert [key for key in keys(store, "ab") if key != "ab"] == ["ab/c", "ab/cd", "abc"]
    assert keys(store, "c") == []
    assert keys(store, "ab/c/") == []


def test_after_is_exclusive_and_need_not_exist(store: Store) -> None:
    for key in ("a", "b/c", "b/d", "c"):
        store.replace(key, b"1")
    assert keys(store, after="a") == ["b/c", "b/d", "c"]
    assert keys(store, after="b") == ["b/c", "b/d", "c"]
    assert keys(store, after="b/c") == ["b/d", "c"]
    assert keys(store, "b/", after="b/c") == ["b/d"]
    assert keys(store, "b/", after="a") == ["b/c", "b/d"]
    assert keys(store, "b/", after="b0") == []
    assert keys(store, after="c") == []


def test_more_than_a_page(store: Store) -> None:
    written = [f"s/{number:05}.mp3" for number in range(1205)]
    for key in written:
        store.replace(key, b"")
    assert keys(store) == written
    assert keys(store, "s/", after="s/01199.mp3") == written[1200:]


def test_create_does_not_overwrite(store: Store) -> None:
    assert store.create("k", b"first")
    assert not store.create("k", b"second")
    assert store.get("k").data == b"first"


def test_creating_the_same_again_is_ours(store: Store) -> None:
    assert store.create("k", b"same")
    assert store.create("k", b"same")


def test_replace_changes_the_etag(store: Store) -> None:
    store.replace("k", b"old")
    before = store.get("k").etag
    store.replace("k", b"newer")
    assert store.get("k").etag != before


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for key in ("nothing", "no/thing", "no thing/at/all.mp3"):
        with pytest.raises(ObjectNotFoundError):
            store.get(key)
    store.create("a/b", b"1")
    for key in ("a", "a/b/c", "a/bc"):
        with pytest.raises(ObjectNotFoundError):
            store.get(key)


def test_deleting_nothing_is_harmless(store: Store) -> None:
    store.delete("nothing")
    store.create("a/b", b"1")
    store.delete("a")
    store.delete("a/b/c")
    assert keys(store) == ["a/b"]


def test_forty_threads_create_and_one_wins(store: Store) -> None:
    start = threading.Barrier(40)
    won: list[int] = []

    def race(number: int) -> None:
        start.wait()
        if store.create("k", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("k").data == b"%d" % won[0]
