"""The sentence of `why`, by the chunk's state."""

from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.controller.commands.why import list_errors, read_history
from batchscribe.controller.previous_failures import read_past_attempts
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, FailureKind
from batchscribe.core.scan.backlog import LiveLock, ScanRules
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.scan.explanation import explain
from batchscribe.core.scan.folders import AudioObject
from batchscribe.errors import ObjectNotFoundError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.dashboards import quarantine_chunk
from support.stores import NOW

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


def explained(store: MemoryStore, clock: FakeClock, key: str, **options: object) -> str:
    scanner = Scanner(store, store, clock=clock, **options)  # type: ignore[arg-type]
    return read_history(scanner, key, max_wait=24 * HOUR).explanation


def test_a_young_chunk_waits_until_a_stated_time(store: MemoryStore, clock: FakeClock) -> None:
    store.place("a.mp3", b"1")
    assert "too young" in explained(store, clock, "a.mp3")
    assert f"{NOW + timedelta(minutes=5):%H:%M} UTC" in explained(store, clock, "a.mp3")


def test_a_file_that_was_copied_waits_for_the_age_of_the_copy() -> None:
    info = ObjectInfo("a.mp3", 1, NOW - 48 * HOUR, "e", changed=NOW - timedelta(seconds=50))
    name = audio_name("a.mp3")
    assert name is not None
    audio = AudioObject(info=info, name=name, transcripts=())
    assert explain(audio, ScanRules(now=NOW, min_age=timedelta(minutes=5)), max_wait=24 * HOUR) == (
        "waiting: its modification time is older, but the file itself changed on this disk at "
        f"{NOW - timedelta(seconds=50):%Y-%m-%d %H:%M} UTC; pending from "
        f"{NOW + timedelta(minutes=5):%Y-%m-%d %H:%M} UTC on"
    )


def test_a_session_that_is_recorded_waits_for_its_lock(store: MemoryStore, clock: FakeClock) -> None:
    store.place("s/chunk-001.mp3", b"1")
    clock.sleep(3600)
    text = explained(store, clock, "s/chunk-001.mp3", live_lock=lambda: LiveLock("s", NOW))
    assert "its session is being recorded" in text


def test_the_last_chunk_waits_for_the_next_one(store: MemoryStore, clock: FakeClock) -> None:
    store.place("s/chunk-001.mp3", b"1")
    clock.sleep(3600)
    store.place("s/chunk-002.mp3", b"1")
    clock.sleep(600)
    assert "seems to continue" in explained(store, clock, "s/chunk-002.mp3")


def test_a_pending_chunk_is_due_at_its_longest_wait(store: MemoryStore, clock: FakeClock) -> None:
    store.place("a.mp3", b"1")
    clock.sleep(3600)
    assert explained(store, clock, "a.mp3").startswith("pending, due at")
    clock.sleep(24 * 3600)
    assert explained(store, clock, "a.mp3") == "pending, overdue"


def test_a_failed_chunk_shows_its_next_attempt_and_the_last_reason(
    store: MemoryStore, clock: FakeClock
) -> None:
    store.place("a.mp3", b"1")
    (info,) = store.list("a.mp3")
    failure = Failure(
        key="a.mp3", etag=info.etag, run="r1", kind=FailureKind.CHUNK, message="not audio", at=NOW
    )
    store.create(keys.attempt("a.mp3", info.etag, "r1"), wire.encode(failure))
    clock.sleep(3600)
    text = explained(store, clock, "a.mp3")
    assert "attempt 2 of 3" in text
    assert "not audio (run r1)" in text


@pytest.mark.parametrize("session", ["s/", "./"])
def test_the_errors_of_a_session_are_those_of_its_own_chunks(
    store: MemoryStore, clock: FakeClock, session: str
) -> None:
    for key in ("chunk-001.mp3", "s/chunk-001.mp3", "s/talk.mp3"):
        store.place(key, b"1")
        quarantine_chunk(store, key)
    found = list_errors(Scanner(store, store, clock=clock), session)
    assert [key for key, _error in found] == [f"{session}chunk-001.mp3".removeprefix("./")]


def test_a_part_of_a_name_finds_its_only_chunk(store: MemoryStore, clock: FakeClock) -> None:
    for key in ("user/Alice interview.mp3", "user/bob.mp3"):
        store.place(key, b"1")
    scanner = Scanner(store, store, clock=clock)
    assert read_history(scanner, "alice").key == "user/Alice interview.mp3"
    assert read_history(scanner, "bob.mp3").key == "user/bob.mp3"


def test_an_ambiguous_part_lists_what_matches(store: MemoryStore, clock: FakeClock) -> None:
    for key in ("a/note.mp3", "b/note.mp3"):
        store.place(key, b"1")
    with pytest.raises(ObjectNotFoundError, match=r"2 chunks match 'note': a/note\.mp3, b/note\.mp3; give"):
        read_history(Scanner(store, store, clock=clock), "note")


def test_a_failure_from_a_clock_ahead_does_not_delay_the_retry(store: MemoryStore) -> None:
    """Another writer of the bucket may also give it any date."""
    failure = Failure(
        key="a.mp3",
        etag="e",
        run="r1",
        kind=FailureKind.CHUNK,
        message="not audio",
        at=NOW + timedelta(days=3000),
    )
    store.create(keys.attempt("a.mp3", "e", "r1"), wire.encode(failure))
    ((trouble,),) = read_past_attempts(store, None).values()
    assert trouble.last == NOW


def test_a_key_of_the_bucket_is_found_although_it_begins_with_the_source(
    store: MemoryStore, clock: FakeClock
) -> None:
    store.place("alice/a.mp3", b"1")
    store.place("bob/a.mp3", b"1")
    found = read_history(Scanner(store, store, clock=clock), "audio-sessions/alice/a.mp3")
    assert found.key == "alice/a.mp3"
