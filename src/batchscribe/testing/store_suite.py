"""Pytest suite for stores; our own stores and the double pass it.

@pytest.fixture
def store(tmp_path):
return MyStore(tmp_path)

class TestMyStore(StoreSuite):
pass
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, ObjectTooLargeError, PermanentError
from batchscribe.protocols import Store
from batchscribe.testing.expected_errors import expect_error

PLAIN_KEYS = (
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
"""Keys that every store must support."""
ODD_KEYS = ("a//b.mp3", "a/../c.mp3", "a/./d.mp3", "/lead.mp3", "ctl\x01.mp3", "./e.mp3")
"""Keys that a store may refuse, but must not change."""
UNSORTED_KEYS = (
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
)
THREADS = 40


def list_keys(store: Store, prefix: str = "", after: str = "") -> list[str]:
    """Keys of a listing, in its order."""
    return [info.key for info in store.list(prefix, after=after)]


def fill(store: Store, *keys: str) -> None:
    """Writes an object under each key."""
    for key in keys:
        store.replace(key, b"1")


class StoreSuite:
    """Tests to inherit; the fixture `store` is an empty store."""

    page = 1000
    """Maximum number of keys in one answer of the service."""

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert list_keys(store) == []

    def test_a_written_object_is_read_and_listed(self, store: Store) -> None:
        assert store.create("a/b.mp3", b"sound")
        blob = store.get("a/b.mp3")
        (info,) = store.list()
        assert blob.data == b"sound"
        assert (info.key, info.size, info.etag) == ("a/b.mp3", 5, blob.etag)
        assert blob.etag
        assert '"' not in blob.etag
        assert info.modified.utcoffset() == timedelta(0)
        assert info.modified > datetime(2020, 1, 1, tzinfo=UTC)

    def test_an_empty_object_is_stored(self, store: Store) -> None:
        assert store.create("empty.mp3", b"")
        assert store.get("empty.mp3").data == b""
        assert [info.size for info in store.list()] == [0]

    def test_every_byte_is_kept(self, store: Store) -> None:
        data = bytes(range(256)) * 5000
        store.replace("b", data)
        assert store.get("b").data == data

    def test_an_object_above_the_limit_is_refused(self, store: Store) -> None:
        store.replace("a/b", b"12345")
        assert store.get("a/b", limit=5).data == b"12345"
        for limit in (4, 0):
            with expect_error(ObjectTooLargeError):
                store.get("a/b", limit=limit)
        with expect_error(ObjectNotFoundError):
            store.get("a/c", limit=0)

    def test_keys_are_data(self, store: Store) -> None:
        for key in PLAIN_KEYS:
            assert store.create(key, key.encode())
            assert list_keys(store) == [key]
            assert store.get(key).data == key.encode()
            assert not store.create(key, b"other")
            store.replace(key, b"new")
            assert store.get(key).data == b"new"
            store.delete(key)
            assert list_keys(store) == []

    def test_an_odd_key_is_stored_unchanged_or_refused(self, store: Store) -> None:
        for key in ODD_KEYS:
            try:
                store.create(key, b"odd")
            except (PermanentError, MisconfiguredError):
                assert list_keys(store) == []
                continue
            assert list_keys(store) == [key]
            assert store.get(key).data == b"odd"
            store.delete(key)
            assert list_keys(store) == []

    def test_a_listing_is_in_the_order_of_the_utf8_bytes(self, store: Store) -> None:
        fill(store, *UNSORTED_KEYS)
        assert list_keys(store) == sorted(UNSORTED_KEYS, key=str.encode)

    def test_a_prefix_is_compared_with_the_start_of_the_key(self, store: Store) -> None:
        fill(store, "a", "ab/c", "ab/cd", "abc", "b")
        assert list_keys(store, "ab/") == ["ab/c", "ab/cd"]
        assert list_keys(store, "ab/c") == ["ab/c", "ab/cd"]
        assert list_keys(store, "ab/cd") == ["ab/cd"]
        assert list_keys(store, "abc") == ["abc"]
        assert list_keys(store, "ab") == ["ab/c", "ab/cd", "abc"]
        assert list_keys(store, "c") == []
        assert list_keys(store, "ab/c/") == []

    def test_a_key_may_start_another_key(self, store: Store) -> None:
        fill(store, "ab/c", "abc")
        try:
            fill(store, "ab")
        except PermanentError:  # a folder cannot hold both ab and ab/c
            assert list_keys(store) == ["ab/c", "abc"]
        else:
            assert list_keys(store) == ["ab", "ab/c", "abc"]
            assert list_keys(store, "ab/") == ["ab/c"]

    def test_after_is_exclusive_and_need_not_exist(self, store: Store) -> None:
        fill(store, "a", "b/c", "b/d", "c")
        assert list_keys(store, after="a") == ["b/c", "b/d", "c"]
        assert list_keys(store, after="b") == ["b/c", "b/d", "c"]
        assert list_keys(store, after="b/c") == ["b/d", "c"]
        assert list_keys(store, "b/", after="b/c") == ["b/d"]
        assert list_keys(store, "b/", after="a") == ["b/c", "b/d"]
        assert list_keys(store, "b/", after="b0") == []
        assert list_keys(store, after="c") == []

    def test_a_listing_of_several_pages_is_complete(self, store: Store) -> None:
        keys = [f"s/{number:05}.mp3" for number in range(self.page + 205)]
        fill(store, *keys)
        assert list_keys(store) == keys
        assert list_keys(store, "s/", after=keys[-6]) == keys[-5:]

    def test_a_part_of_an_object_is_read(self, store: Store) -> None:
        store.create("a/b.mp3", b"0123456789")
        whole = store.get("a/b.mp3")
        for start, length, part in ((0, 1, b"0"), (3, 4, b"3456"), (8, 100, b"89"), (0, 10, b"0123456789")):
            found = store.get_range("a/b.mp3", start, length)
            assert (found.data, found.etag, found.size) == (part, whole.etag, 10)

    def test_no_part_lies_behind_the_end_of_an_object(self, store: Store) -> None:
        store.create("a.mp3", b"0123456789")
        store.create("empty.mp3", b"")
        assert [store.get_range("a.mp3", start, 5).data for start in (10, 1000)] == [b"", b""]
        assert store.get_range("a.mp3", 1000, 5).size == 10
        assert store.get_range("empty.mp3", 0, 5).data == b""
        with expect_error(ObjectNotFoundError):
            store.get_range("nothing.mp3", 0, 5)

    def test_create_never_overwrites(self, store: Store) -> None:
        assert store.create("k", b"first")
        assert not store.create("k", b"second")
        assert not store.create("k", b"1")
        assert store.get("k").data == b"first"

    def test_create_with_the_same_data_succeeds_again(self, store: Store) -> None:
        assert store.create("k", b"same")
        assert store.create("k", b"same")

    def test_one_of_many_concurrent_creates_succeeds(self, store: Store) -> None:
        start = threading.Barrier(THREADS)
        succeeded: list[int] = []

        def create(number: int) -> None:
            start.wait()
            if store.create("k", b"%d" % number):
                succeeded.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(succeeded) == 1
        assert store.get("k").data == b"%d" % succeeded[0]

    def test_replace_changes_the_etag(self, store: Store) -> None:
        store.replace("k", b"old")
        before = store.get("k").etag
        store.replace("k", b"newer")
        assert store.get("k").etag != before

    def test_a_missing_object_is_not_found(self, store: Store) -> None:
        store.create("a/b", b"1")
        for key in ("nothing", "no/thing", "no thing/at/all.mp3", "a", "a/b/c", "a/bc"):
            with expect_error(ObjectNotFoundError):
                store.get(key)

    def test_deleting_a_missing_object_does_nothing(self, store: Store) -> None:
        store.delete("nothing")
        store.create("a/b", b"1")
        store.delete("a")
        store.delete("a/b/c")
        assert list_keys(store) == ["a/b"]
