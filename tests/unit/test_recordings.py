"""A chunk without a header finds it in its folder, whatever of the folder is transcribed or missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache

import pytest

from batchscribe.audio.decoding.ebml import BLOCKS, walk_elements
from batchscribe.audio.decoding.recordings import LOOK_BACK, Recordings
from batchscribe.core.objects import Blob
from batchscribe.errors import AudioError, ObjectArchivedError, StoreUnavailableError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.audio import encode, sine
from support.recorder import at_blocks, at_clusters, heard, pieces, webm

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@cache
def clusters() -> list[bytes]:
    return at_clusters(webm(sine(20), cluster_seconds=1.0))


@cache
def blocks() -> list[bytes]:
    """One cluster in all: only its first piece has the cluster's time."""
    return at_blocks(webm(sine(20), cluster_seconds=30.0), 50)


class Counted(MemoryStore):
    """A store that remembers what was fetched."""

    def __init__(self) -> None:
        super().__init__(FakeClock(NOON))
        self.fetched: list[str] = []

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        self.fetched.append(key)
        return super().get(key, limit=limit)


def filled(chunks: list[bytes], *, first: int = 1, width: int = 3) -> tuple[Counted, list[str]]:
    store = Counted()
    names = [f"s/chunk-{number:0{width}}.webm" for number in range(first, first + len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        store.place(name, chunk)
    return store, names


@pytest.mark.parametrize("cut", [clusters, blocks])
@pytest.mark.parametrize(("first", "width"), [(1, 3), (0, 1), (98, 2)])
def test_in_order_only_the_first_is_fetched_again(
    cut: Callable[[], list[bytes]], first: int, width: int
) -> None:
    store, names = filled(cut(), first=first, width=width)
    recordings = Recordings(store)
    ends = 0.0
    for name, data in zip(names, cut(), strict=True):
        found = recordings.repair(name, data)
        begins, samples = heard(found)
        assert begins - found.delay == pytest.approx(ends, abs=0.003)
        ends = begins - found.delay + len(samples) / 16000
    assert [key for key in store.fetched if key == names[0]] == names[:1]
    assert len(store.fetched) <= 2


@pytest.mark.parametrize("cut", [clusters, blocks])
def test_one_alone_finds_what_it_needs_among_those_that_are_done(cut: Callable[[], list[bytes]]) -> None:
    store, names = filled(cut())
    found = Recordings(store).repair(names[9], cut()[9])
    begins, _ = heard(found)
    assert begins == pytest.approx(9.0, abs=1.0)
    assert not found.torn


def test_after_a_hole_the_header_is_found_further_back() -> None:
    store, names = filled(clusters())
    for missing in names[4:8]:
        store.delete(missing)
    begins, _ = heard(Recordings(store).repair(names[9], clusters()[9]))
    assert begins == pytest.approx(9.0, abs=0.1)


def test_after_a_hole_in_a_cluster_the_place_is_lost_and_the_sound_is_not() -> None:
    store, names = filled(blocks())
    store.delete(names[8])
    found = Recordings(store).repair(names[9], blocks()[9])
    assert found.torn
    assert len(heard(found)[1]) == pytest.approx(16000, abs=400)


def test_without_the_first_chunk_it_says_so_and_looks_no_further_than_it_must() -> None:
    store, names = filled(clusters(), first=500)
    store.delete(names[0])
    with pytest.raises(AudioError, match="first chunk"):
        Recordings(store).repair(names[9], clusters()[9])
    assert len(store.fetched) <= 2 * LOOK_BACK


def test_what_needs_nothing_fetches_nothing() -> None:
    store, names = filled(clusters())
    recordings = Recordings(store)
    assert not recordings.repair(names[0], clusters()[0]).repaired
    assert not recordings.repair("s/talk.webm", clusters()[0]).repaired
    for extension in ("webm", "mp3", "m4a", "ogg", "wav", "flac", "aac", "avi"):
        data = encode(sine(1), extension)
        assert recordings.repair(f"s/chunk-007.{extension}", data).data == data
    assert recordings.repair("s/chunk-008.webm", encode(sine(1), "ogg")).data
    assert store.fetched == []


@pytest.mark.parametrize("number", [0, 5])
def test_what_ends_within_a_block_is_torn_unless_the_next_chunk_goes_on_with_it(number: int) -> None:
    """An upload that broke off, and a recorder that hands out what it has."""
    whole = webm(sine(20), cluster_seconds=1.0)
    begins = [found.begin + 30 for found in walk_elements(whole) if found.id in BLOCKS]
    cut = pieces(whole, begins[50::50])
    store, names = filled(cut)
    recordings = Recordings(store)
    assert not recordings.repair(names[number], cut[number]).torn
    store.delete(names[number + 1])
    assert recordings.repair(names[number], cut[number]).torn
    assert not recordings.repair(names[-1], cut[-1]).torn
    assert Recordings(Counted()).repair("s/talk.webm", cut[0]).torn


def test_an_archived_neighbour_is_not_waited_for() -> None:
    store, names = filled(clusters())

    def archived(_method: str, _key: str) -> None:
        raise ObjectArchivedError("in the archive")

    store.before = archived
    assert Recordings(store).repair(names[0], clusters()[0][:-40]).torn


def test_a_store_that_is_away_is_no_missing_chunk() -> None:
    store, names = filled(clusters())

    def away(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no network")

    store.before = away
    with pytest.raises(StoreUnavailableError):
        Recordings(store).repair(names[3], clusters()[3])
