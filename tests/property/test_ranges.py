"""A listing in ranges against the plain one: any keys, any remembered limits, changes meanwhile, faults."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.adapters.stores import ranges
from batchscribe.adapters.stores.ranges import RangeLister, divide, list_pages
from batchscribe.controller.scan import Scanner
from batchscribe.core.objects import ObjectInfo
from batchscribe.errors import StoreUnavailableError
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.stores import NOW, row

NAMES = st.text("aAz09/-.:_é😀\x01", min_size=1, max_size=5)
"""Odd keys too: empty and dot segments, control characters."""
NUMBERED = st.integers(0, 300).map(lambda number: f"calls/2026-{number:05}.mp3")
FOLDERS = st.sampled_from(["", "a/", "a/b/", "a-/", "a//", "é/", "_batchscribe/"])
STEMS = st.sampled_from(["chunk-001", "chunk-002", "chunk-010", "talk", "x.mp3"])
AUDIO = st.builds("{}{}.{}".format, FOLDERS, STEMS, st.sampled_from(["mp3", "webm"]))
TRANSCRIPTS = st.builds("{}transcription-{}.json".format, FOLDERS, STEMS)
KEYS = st.sets(NAMES | NUMBERED, max_size=80)


class ListedStore(MemoryStore):
    """Keys that may change after a number of requests; request number `broken` fails."""

    def __init__(self, keys: set[str], later: set[str] | None = None, broken: int = -1) -> None:
        super().__init__(FakeClock(NOW))
        self.url = "s3://bucket"
        self.requests = 0
        self._first, self._later = sorted(keys), sorted(keys if later is None else later)
        self._broken = broken
        self._counting = Lock()

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        with self._counting:
            self.requests += 1
            number = self.requests
        if number == self._broken:
            raise StoreUnavailableError("no answer")
        keys = self._later if number > 2 else self._first
        return (row(key) for key in keys[bisect_right(keys, after) :] if key.startswith(prefix))


def list_keys(store: Store, limits: Sequence[str] = ()) -> list[str]:
    """Pages of 3 keys, and ranges that are divided after 2 of them."""
    with patch.multiple(ranges, PAGE=3, LONG=2, STREAMS=4):
        return [info.key for page in list_pages(store, limits) for info in page]


@given(KEYS, st.lists(NAMES | NUMBERED))
def test_ranges_list_what_one_stream_lists(keys: set[str], limits: list[str]) -> None:
    assert list_keys(ListedStore(keys), limits) == sorted(keys)


@given(KEYS, KEYS, st.lists(NAMES | NUMBERED).map(sorted))
def test_a_key_that_stays_is_listed_once(before: set[str], after: set[str], limits: list[str]) -> None:
    found = list_keys(ListedStore(before, after), limits=limits)
    assert found == sorted(set(found))
    assert before & after <= set(found) <= before | after


@given(KEYS, st.lists(NUMBERED).map(sorted), st.integers(1, 40))
def test_a_listing_without_one_range_raises(keys: set[str], limits: list[str], broken: int) -> None:
    whole = ListedStore(keys)
    assert list_keys(whole, limits=limits) == sorted(keys)
    if broken <= whole.requests:
        with pytest.raises(StoreUnavailableError):
            list_keys(ListedStore(keys, broken=broken), limits=limits)


@given(NAMES | NUMBERED, NAMES | NUMBERED, st.none() | NAMES, st.integers(1, 9))
def test_a_divided_range_is_covered_once(one: str, other: str, end: str | None, parts: int) -> None:
    first, last = sorted((one, other))
    if end is not None and end <= last:
        return
    divided = divide(first, last, end, parts=parts)
    assert (divided[0][0], divided[-1][1]) == (last, end)
    assert [high for _low, high in divided[:-1]] == [low for low, _high in divided[1:]]
    assert all(high is None or low < high for low, high in divided)


@given(KEYS)
def test_remembered_limits_list_the_same_again(keys: set[str]) -> None:
    with TemporaryDirectory() as folder, patch.multiple(ranges, PAGE=3, SPACING=2, LONG=2, STREAMS=4):
        lister = RangeLister(Path(folder))
        for _ in range(2):
            assert [info.key for info in lister(ListedStore(keys))] == sorted(keys)


def test_remembered_limits_take_one_request_for_a_page(tmp_path: Path) -> None:
    lister, store = RangeLister(tmp_path), ListedStore({f"{number:05}.mp3" for number in range(25_000)})
    assert len(list(lister(store))) == 25_000
    store.requests = 0
    assert len(list(lister(store))) == 25_000
    assert store.requests == 27


def test_limits_that_cannot_be_written_fail_no_listing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(list(RangeLister(tmp_path / "file")(ListedStore({"a", "b"})))) == 2


def test_a_listing_that_is_left_early_remembers_nothing(tmp_path: Path) -> None:
    lister, store = RangeLister(tmp_path), ListedStore({f"{number:05}.mp3" for number in range(25_000)})
    listing = lister(store)
    assert next(listing).key == "00000.mp3"
    del listing
    assert not list(tmp_path.iterdir())
    assert store.requests <= ranges.STREAMS


@given(st.sets(AUDIO | TRANSCRIPTS | NAMES, max_size=60), st.lists(AUDIO).map(sorted))
def test_a_scan_in_ranges_has_the_backlog_of_one_stream(keys: set[str], limits: list[str]) -> None:
    store = ListedStore(keys)

    def list_in_ranges(store: Store, prefix: str) -> Iterator[ObjectInfo]:
        with patch.multiple(ranges, PAGE=3, LONG=2, STREAMS=4):
            yield from chain.from_iterable(list_pages(store, limits))

    plain = Scanner(store, store, clock=FakeClock(NOW))
    parallel = Scanner(store, store, clock=FakeClock(NOW), list_all=list_in_ranges)
    assert parallel.backlog() == plain.backlog()
    assert list(parallel.audio()) == list(plain.audio())
