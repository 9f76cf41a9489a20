"""Keys that the fast library cannot name, among those it can: none is lost, all can be reached."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any
from unittest.mock import patch

import obstore
import pytest
from obstore import store as vendors
from obstore.exceptions import BaseError

from batchscribe.adapters.stores import obstore_store, ranges
from batchscribe.adapters.stores.obstore_store import ObstoreStore
from batchscribe.adapters.stores.ranges import list_pages
from batchscribe.adapters.stores.rules import is_odd
from batchscribe.core.objects import Blob
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, StoreUnavailableError
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.stores import open_store
from support.s3 import aws_environment, create_bucket, moto_server, s3_client

ODD = ("a//b.mp3", "a/../c.mp3", "a/./d.mp3", "/lead.mp3", "ctl\x01.mp3", "./e.mp3")
_numbers = count()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url, aws_environment():
        yield url


@pytest.mark.parametrize("key", ODD)
def test_an_odd_key_sends_its_own_range_to_the_slow_lister(endpoint: str, key: str) -> None:
    plain = [f"{letter}{number}.mp3" for letter in "+abcdefgtxyz" for number in range(3)]
    store = filled(endpoint, (*plain, key))
    with patch.multiple(ranges, PAGE=3, LONG=2):
        for limits in ([], plain[::2]):
            found = [info.key for page in list_pages(store, limits) for info in page]
            assert found == sorted((*plain, key))


def test_a_leading_slash_is_found_behind_a_start(endpoint: str) -> None:
    store = filled(endpoint, ("+.mp3", "/lead.mp3", "a.mp3", "z.mp3"))
    assert listed(store, after="+.mp3") == ["/lead.mp3", "a.mp3", "z.mp3"]


def filled(endpoint: str, keys: tuple[str, ...], base: str = "") -> Store:
    url = create_bucket(endpoint, f"odd-{next(_numbers)}")
    for key in keys:
        s3_client(endpoint).put_object(Bucket=url.removeprefix("s3://"), Key=base + key, Body=key.encode())
    return open_store(f"{url}/{base}", endpoint=endpoint)


def listed(store: Store, prefix: str = "", after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, after=after)]


@pytest.mark.parametrize("base", ["", "users/"])
@pytest.mark.parametrize("key", ODD)
def test_an_odd_key_is_listed_and_reached(endpoint: str, key: str, base: str) -> None:
    plain = tuple(f"{letter}.mp3" for letter in "+abcdefgtxyz")
    store = filled(endpoint, (*plain, key), base)
    assert listed(store) == sorted((*plain, key))
    assert store.get(key).data == key.encode()
    assert not store.create(key, b"other")
    store.replace(key, b"new")
    assert store.get(key).data == b"new"
    store.delete(key)
    with pytest.raises(ObjectNotFoundError):
        store.get(key)
    assert store.create(key, b"again")


def test_odd_keys_are_named(endpoint: str) -> None:
    store = filled(endpoint, ("a.mp3", "a//b.mp3", "b.mp3", "ctl\x01.mp3"))
    assert isinstance(store, ObstoreStore)
    listed(store)
    assert store.odd_keys == ("'a//b.mp3': listed in another way", "'ctl\\x01.mp3': listed in another way")


def test_a_leading_slash_alone_is_seen(endpoint: str) -> None:
    store = filled(endpoint, ("/users/a.mp3", "users/b.mp3"))
    assert listed(store) == ["/users/a.mp3", "users/b.mp3"]


def test_a_folder_marker_out_of_its_order_is_put_right(endpoint: str) -> None:
    store = filled(endpoint, ("folder-a.mp3", "folder/", "folder/x.mp3", "folder0"))
    assert listed(store) == ["folder-a.mp3", "folder/", "folder/x.mp3", "folder0"]
    assert isinstance(store, ObstoreStore)
    assert store._fallback is None  # markers are common: they must not cost the fast listing


def test_a_slash_at_the_end_is_lost_in_a_listing_and_costs_no_other_key(endpoint: str) -> None:
    """The library's doing, and not to be seen from outside; the object itself can be reached."""
    store = filled(endpoint, ("a.mp3", "folder/", "tail.mp3/", "z.mp3"))
    assert listed(store) == ["a.mp3", "folder", "tail.mp3", "z.mp3"]
    assert store.get("tail.mp3/").data == b"tail.mp3/"
    with pytest.raises(ObjectNotFoundError):
        store.get("tail.mp3")
    store.delete("folder/")
    assert listed(store) == ["a.mp3", "tail.mp3", "z.mp3"]


def test_a_prefix_that_is_odd(endpoint: str) -> None:
    store = filled(endpoint, ("a//b.mp3", "a//c.mp3", "a/d.mp3", "e.mp3"))
    assert listed(store, "a//") == ["a//b.mp3", "a//c.mp3"]
    assert listed(store, "a/") == ["a//b.mp3", "a//c.mp3", "a/d.mp3"]
    assert listed(store, "a/", after="a//b.mp3") == ["a//c.mp3", "a/d.mp3"]
    assert listed(store, "", after="a//c.mp3") == ["a/d.mp3", "e.mp3"]


@pytest.mark.parametrize("seed", range(40))
def test_the_two_listers_take_turns(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever lies where, the whole listing comes, in order, once; and the fast lister comes back."""
    dice = random.Random(seed)
    names = [f"{number:03}" for number in range(60)]
    keys = sorted(name if dice.random() < 0.9 else f"{name}//x" for name in names)
    slow = MemoryStore(FakeClock())
    for key in keys:
        slow.place(key, b"1")
    served: list[str] = []

    def pages(_self: ObstoreStore, _folder: str, start: str) -> Iterator[list[dict[str, object]]]:
        rest = [key for key in keys if key > start]
        for at in range(0, len(rest), 4):
            page = rest[at : at + 4]
            if any(is_odd(key) for key in page):
                raise obstore_store._OddKeyError
            served.extend(page)
            yield [
                {"path": key, "size": 1, "last_modified": slow._clock.now(), "e_tag": '"e"'} for key in page
            ]

    monkeypatch.setattr(obstore_store, "PAGE", 3)
    monkeypatch.setattr(ObstoreStore, "_fetch_pages", pages)
    monkeypatch.setattr(ObstoreStore, "_check_first_key", lambda _self, _path: None)
    store = ObstoreStore("s3://double", vendors.MemoryStore(), fallback=lambda: slow)
    assert listed(store) == keys
    assert served or all(any(is_odd(key) for key in keys[at : at + 4]) for at in range(0, 60, 4))


def test_a_store_without_a_fallback_says_so() -> None:
    store = open_store(f"memory://odd-{next(_numbers)}")
    for act in (lambda: store.get("a//b"), lambda: store.create("a//b", b""), lambda: store.delete("../b")):
        with pytest.raises(MisconfiguredError, match="rename it"):
            act()


def test_the_main_thread_never_calls_into_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that blocks there would hold Ctrl-C back."""
    callers: list[bool] = []
    store = open_store(f"memory://threads-{next(_numbers)}")
    assert isinstance(store, ObstoreStore)

    def get(path: str, _key: str, _limit: int | None) -> Blob:
        callers.append(threading.current_thread() is threading.main_thread())
        return Blob(path.encode(), "e")

    monkeypatch.setattr(store, "_read_object", get)
    store.get("k")
    assert callers == [False]


def test_a_listing_that_breaks_in_the_middle_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"memory://broken-{next(_numbers)}")
    for number in range(10):
        store.replace(f"k{number}", b"1")
    real = obstore.list

    def breaking(vendor: Any, folder: None, **options: Any) -> Iterator[object]:
        yield next(real(vendor, folder, **{**options, "chunk_size": 3}))
        raise BaseError("the connection was reset")

    monkeypatch.setattr(obstore, "list", breaking)
    with pytest.raises(StoreUnavailableError):
        list(store.list())
