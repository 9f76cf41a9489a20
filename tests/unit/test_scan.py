from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from batchscribe.controller.commands.why import read_history
from batchscribe.controller.scan import KEEP_ALIVE_EVERY, MAX_LOCK_BYTES, Scanner, read_live_lock
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Failure, FailureKind, QuarantineRecord
from batchscribe.core.scan.backlog import LiveLock
from batchscribe.core.scan.chunks import AUDIO_TYPES, PASSED_OVER, passed_over_text
from batchscribe.core.text import transcripts
from batchscribe.core.text.transcripts import AudioRef, Transcript
from batchscribe.errors import StoreUnavailableError, UnsupportedAudioError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.wiring.stores import open_store
from support.stores import NOW

OLD = NOW - timedelta(hours=1)
HALF_HOUR = timedelta(minutes=30)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


def put(store: MemoryStore, *names: str) -> None:
    for name in names:
        store.place(name, name.encode(), modified=OLD)


def etag(store: MemoryStore, key: str) -> str:
    return store.get(key).etag


def fail(store: MemoryStore, key: str, run: str = "r1", **changes: Any) -> None:
    values: dict[str, Any] = {
        "key": key,
        "etag": etag(store, key),
        "run": run,
        "kind": FailureKind.CHUNK,
        "message": "no audio stream",
        "at": NOW,
        "decoder": "av-1",
    }
    failure = Failure(**(values | changes))
    store.create(keys.attempt(key, failure.etag, run), wire.encode(failure))


def hold(store: MemoryStore, key: str, **changes: Any) -> None:
    values: dict[str, Any] = {
        "key": key,
        "etag": etag(store, key),
        "decoder": "av-1",
        "attempts": 3,
        "message": "no audio stream",
        "at": NOW,
    }
    store.create(keys.quarantine(key), wire.encode(QuarantineRecord(**(values | changes))))


def scanner(store: MemoryStore, output: MemoryStore | None = None, **options: Any) -> Scanner:
    return Scanner(store, output or store, clock=FakeClock(), **options)


def test_one_store_is_listed_once(store: MemoryStore) -> None:
    put(store, "a.mp3", "b.mp3", "transcription-b.json")
    listed: list[str] = []
    store.before = lambda method, key: listed.append(key) if method == "list" else None
    backlog = scanner(store).backlog()
    assert (backlog.pending, backlog.done) == (1, 1)
    assert listed == [keys.QUARANTINE, keys.ATTEMPTS, keys.COMPACTED, ""]


def test_results_may_lie_in_another_store(store: MemoryStore, clock: FakeClock) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.mp3", "b.mp3", "c.mp3", "transcription-c.json")
    put(output, "transcription-b.json", "unrelated.mp3")
    backlog = scanner(store, output).backlog()
    assert [chunk.key for chunk in backlog.candidates] == ["a.mp3"]
    assert (backlog.sessions, backlog.done) == (3, 2)


@pytest.mark.parametrize("broken", ["", keys.ATTEMPTS, keys.COMPACTED, keys.QUARANTINE])
@pytest.mark.parametrize("side", ["source", "output"])
def test_a_listing_error_is_never_a_backlog(
    store: MemoryStore, clock: FakeClock, broken: str, side: str
) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.mp3")

    def breaking(method: str, key: str) -> None:
        if method == "list" and key == broken:
            raise StoreUnavailableError("the connection was reset")

    (store if side == "source" else output).before = breaking
    if side == "source" and broken:
        assert scanner(store, output).backlog().pending == 1  # control objects lie in the output only
    else:
        with pytest.raises(StoreUnavailableError):
            scanner(store, output).backlog()


def test_failures_of_these_bytes_are_counted_by_kind(store: MemoryStore) -> None:
    put(store, *(f"{letter}.mp3" for letter in "abcdefg"))
    fail(store, "a.mp3", "r1")
    fail(store, "a.mp3", "r2", kind=FailureKind.CRASH, decoder="")
    fail(store, "b.mp3", kind=FailureKind.ARCHIVED)
    fail(store, "c.mp3", kind=FailureKind.CHANGED)
    fail(store, "d.mp3", kind=FailureKind.MACHINE)
    fail(store, "e.mp3", etag="of-older-bytes")
    hold(store, "f.mp3")
    hold(store, "g.mp3", etag="of-older-bytes")
    backlog = scanner(store).backlog()
    found = {chunk.key: (chunk.failures, chunk.previously_failed) for chunk in backlog.candidates}
    assert found == {
        "a.mp3": (1, True),
        "b.mp3": (0, True),
        "c.mp3": (0, True),
        "d.mp3": (0, False),
        "e.mp3": (0, False),
        "g.mp3": (0, False),
    }
    assert (backlog.quarantined, backlog.troubled, backlog.triggering) == (1, 3, 3)


def test_a_crash_counts_if_no_other_chunk_was_in_flight_or_if_it_happened_twice(store: MemoryStore) -> None:
    put(store, "alone.mp3", "once.mp3", "twice.mp3")
    crash = FailureKind.CRASH
    fail(store, "alone.mp3", "r1", kind=crash, alone=True)
    fail(store, "once.mp3", "r1", kind=crash)
    for run in ("r1", "r2"):
        fail(store, "twice.mp3", run, kind=crash)
    found = {chunk.key: chunk.failures for chunk in scanner(store).backlog().candidates}
    assert found == {"alone.mp3": 1, "once.mp3": 0, "twice.mp3": 2}


def test_another_decoder_tries_again(store: MemoryStore) -> None:
    put(store, "a.mp3", "b.mp3", "c.mp3")
    hold(store, "a.mp3")
    fail(store, "b.mp3")
    fail(store, "c.mp3", decoder="")
    same, newer = scanner(store, decoder="av-1").backlog(), scanner(store, decoder="av-2").backlog()
    assert (same.quarantined, same.troubled) == (1, 2)
    assert (newer.quarantined, newer.troubled) == (0, 1)


def test_attempts_at_quarantined_chunks_are_not_read_again(store: MemoryStore) -> None:
    put(store, "a.mp3", "b.mp3")
    for run in ("r1", "r2", "r3"):
        fail(store, "a.mp3", run)
    hold(store, "a.mp3")
    fail(store, "b.mp3")
    read: list[str] = []
    store.before = lambda method, key: read.append(key) if method == "get" else None
    scanner(store).backlog()
    assert sorted(read) == sorted(
        [keys.quarantine("a.mp3"), keys.attempt("b.mp3", store.place("x", b"b.mp3").etag, "r1")]
    )


def test_an_attempt_that_cannot_be_read_starts_no_gpu(store: MemoryStore) -> None:
    put(store, "a.mp3")
    store.place(keys.attempt("a.mp3", etag(store, "a.mp3"), "r1"), b"{")
    store.place(keys.ATTEMPTS + "stray", b"")
    assert scanner(store).backlog().troubled == 1


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\x00"])
def test_a_quarantine_that_cannot_be_read_keeps_its_chunk_out_and_is_named(
    store: MemoryStore, data: bytes
) -> None:
    put(store, "a.mp3", "b.mp3")
    store.place(keys.quarantine("a.mp3"), data)
    with structlog.testing.capture_logs() as logged:
        backlog = scanner(store).backlog()
    assert (backlog.quarantined, backlog.pending) == (1, 1)
    assert [entry["key"] for entry in logged] == [keys.quarantine("a.mp3")]


def told(name: str) -> bytes:
    return transcripts.encode(
        Transcript(
            text="hush",
            segments=(),
            duration=1.0,
            engine="e",
            model="m",
            settings_hash="h",
            audio=AudioRef(name=name, key=name, etag="e"),
            run="r",
            created_at=NOW,
        )
    )


@pytest.mark.parametrize("side", ["source", "output"])
def test_the_owner_of_a_shared_name_is_read_from_the_transcript(
    store: MemoryStore, clock: FakeClock, side: str
) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.mp3", "a.wav")
    (store if side == "source" else output).place("transcription-a.json", told("a.wav"))
    assert [chunk.key for chunk in scanner(store, output).backlog().candidates] == ["a.mp3"]


@pytest.mark.parametrize("content", [b'{"segments": []}', b"rubbish", b'{"text": 3}'])
def test_a_foreign_transcript_speaks_for_the_first(store: MemoryStore, content: bytes) -> None:
    put(store, "a.mp3", "a.wav")
    store.place("transcription-a.json", content)
    assert [chunk.key for chunk in scanner(store).backlog().candidates] == ["a.wav"]


def test_a_scan_sees_the_lock_and_the_age(store: MemoryStore) -> None:
    put(store, "s1/chunk-001.webm", "s2/chunk-001.webm")
    store.place("s2/chunk-002.webm", b"1")
    backlog = scanner(store, live_lock=lambda: LiveLock("s1", NOW)).backlog()
    assert (backlog.pending, backlog.waiting) == (1, 2)


def test_a_folder_on_disk(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    for key in ("it's a talk.mp3", "line\nbreak/chunk-001.webm", "done.mp3", "transcription-done.json"):
        store.create(key, b"1")
    (tmp_path / "link.mp3").symlink_to("/etc/hostname")
    scan = Scanner(store, store, clock=FakeClock(NOW + timedelta(days=10_000)))
    backlog = scan.backlog()
    assert [chunk.key for chunk in backlog.candidates] == ["it's a talk.mp3", "line\nbreak/chunk-001.webm"]
    assert backlog.odd_keys == ("'link.mp3': left out, links are not followed",)


def test_a_chunk_whose_longest_wait_is_in_reach_is_not_held_back_by_a_live_lock(store: MemoryStore) -> None:
    store.place("s1/chunk-001.webm", b"due", modified=NOW - timedelta(hours=23))
    store.place("s1/chunk-002.webm", b"not yet", modified=NOW - timedelta(hours=22))
    made = scanner(store, live_lock=lambda: LiveLock("s1", NOW), longest_lock=timedelta(hours=23))
    backlog = made.backlog()
    assert [chunk.key for chunk in backlog.candidates] == ["s1/chunk-001.webm"]
    assert backlog.waiting == 1


# The live lock.

LOCK = "batch-lock.json"


def lock(store: MemoryStore, content: object, minutes_old: float = 1.0) -> LiveLock | None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    store.place(LOCK, data, modified=NOW - timedelta(minutes=minutes_old))
    return read_live_lock(store, LOCK, NOW)


ORIGINAL = {"locked": True, "sessionId": "session_1", "userId": "u", "timestamp": "2026-11-23T11:59:00.000Z"}


def test_no_lock_is_no_lock(store: MemoryStore) -> None:
    store.place(LOCK + ".bak", b"{}")
    assert read_live_lock(store, LOCK, NOW) is None


def test_the_lock_of_the_original_names_its_session(store: MemoryStore) -> None:
    wanted = LiveLock("session_1", NOW - timedelta(minutes=1))
    assert lock(store, ORIGINAL) == wanted
    assert lock(store, ORIGINAL | {"sessionId": "users/u/session_1/"}) == wanted


@pytest.mark.parametrize("minutes", [29.9, 30.0])
def test_a_lock_gets_stale_by_the_age_of_its_object(store: MemoryStore, minutes: float) -> None:
    assert (lock(store, ORIGINAL, minutes) is None) == (minutes >= 30)


def test_a_lock_gets_stale_by_its_own_time(store: MemoryStore) -> None:
    assert lock(store, ORIGINAL | {"timestamp": "2026-11-23T11:29:00Z"}) is None
    assert lock(store, ORIGINAL | {"timestamp": "2026-11-23T11:31:00"}) is not None
    assert lock(store, ORIGINAL | {"timestamp": "2027-01-01T00:00:00Z"}) is not None
    assert lock(store, ORIGINAL | {"timestamp": "2027-01-01T00:00:00Z"}, 31) is None


def test_a_lock_that_was_given_back(store: MemoryStore) -> None:
    assert lock(store, ORIGINAL | {"locked": False}) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b" " * (MAX_LOCK_BYTES + 1),
        {"locked": True},
        {"locked": True, "sessionId": None},
        {"locked": True, "sessionId": "/"},
        {"sessionId": 7, "timestamp": 7},
    ],
)
def test_a_fresh_lock_that_names_nothing_holds_all_back(store: MemoryStore, content: object) -> None:
    assert lock(store, content) == LiveLock(None, NOW - timedelta(minutes=1))


def test_a_lock_that_cannot_be_looked_for_is_an_error(store: MemoryStore) -> None:
    def breaking(_method: str, _key: str) -> None:
        raise StoreUnavailableError("the connection was reset")

    store.before = breaking
    with pytest.raises(StoreUnavailableError):
        read_live_lock(store, LOCK, NOW)


@pytest.mark.parametrize("side", ["source", "output"])
def test_a_long_listing_keeps_its_process_alive(store: MemoryStore, clock: FakeClock, side: str) -> None:
    """It may take longer than the time limit of a step."""
    output = MemoryStore(clock, url="memory://output")
    put(
        store if side == "source" else output,
        *(f"s/{number:05}.txt" for number in range(3 * KEEP_ALIVE_EVERY)),
    )
    alive: list[int] = []
    scanner(store, output, keep_alive=lambda: alive.append(1)).backlog()
    assert len(alive) >= 3


def test_a_transcript_of_no_bytes_is_none() -> None:
    store = MemoryStore(FakeClock())
    for name in ("a.mp3", "b/chunk-001.mp3", "c.mp3"):
        store.place(name, b"audio", modified=OLD)
    store.place("transcription-a.json", b"", modified=OLD)
    store.place("b/layers/layer-0-raw-transcription/chunk-001.json", b"", modified=OLD)
    store.place("transcription-c.json", b'{"text":"x"}', modified=OLD)
    found = {scan.session: scan for scan in Scanner(store, store, clock=FakeClock()).sessions()}
    assert [(scan.done, len(scan.pending)) for scan in found.values()] == [(0, 1), (0, 1), (1, 0)]
    assert [scan.unreadable for scan in found.values()] == [("b/chunk-001.mp3",), ("a.mp3",), ()]


def test_sound_that_is_not_decoded_is_counted(store: MemoryStore, clock: FakeClock) -> None:
    output = MemoryStore(clock, url="memory://output")
    put(store, "a.dss", "s/b.DSS", "s/c.ra", "d.mp3", "e.txt", "notes.ts", "_batchscribe/x.ra", "dss", ".dss")
    put(output, "f.dss")
    scan = scanner(store, output)
    for _again in range(2):
        assert scan.backlog().passed_over == {"dss": 2, "ra": 1}
    assert passed_over_text({"ra": 1, "dss": 2}) == "3 sound files passed over: 2 .dss, 1 .ra"
    assert passed_over_text({"ra": 1}) == "1 sound file passed over: 1 .ra"
    assert passed_over_text({}) == ""
    assert not PASSED_OVER & AUDIO_TYPES


def test_why_explains_a_kind_that_is_not_decoded(store: MemoryStore) -> None:
    put(store, "a.dss")
    with pytest.raises(UnsupportedAudioError, match=r"'a\.dss' is skipped: \.dss is not decoded"):
        read_history(scanner(store), "a.dss")
