"""Failed attempts, single and compacted: what they cost to read, and that none is lost or counted twice."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import md5
from pathlib import Path

import pytest
import structlog

from batchscribe.controller.attempts import LOOSE, Attempts, forget_attempts, list_attempts, read_failures
from batchscribe.controller.commands.redo import (
    find_by_key,
    list_quarantined,
    quarantine_failed,
    redo,
    release_quarantined,
)
from batchscribe.controller.commands.why import read_history
from batchscribe.controller.retention import delete_outdated
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.run import manifest as record
from batchscribe.core.run.manifest import EngineSpec, Failure, FailureKind, Manifest, ManifestChunk
from batchscribe.core.run.records import encode_run
from batchscribe.core.run.runs import Machine, Run
from batchscribe.core.scan import attempts as wire
from batchscribe.core.scan.attempts import CompactedAttempts, StoredFailure, merge, pack
from batchscribe.errors import MisconfiguredError, StoreUnavailableError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.counted import CountedStore
from support.world import RATE, Stage, stage

NOW = FakeClock().now()
LOST = StoreUnavailableError("the connection was reset")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, store=CountedStore(FakeClock()))
    yield made
    made.ledger.close()


def counted(at: Stage) -> CountedStore:
    assert isinstance(at.store, CountedStore)
    return at.store


def upload(at: Stage, *names: str) -> None:
    for name in names:
        at.store.place(name, name.encode(), modified=at.clock.now() - timedelta(hours=1))


def failure(
    key: str, run: str = "r1", *, kind: FailureKind = FailureKind.CHUNK, decoder: str = ""
) -> Failure:
    return Failure(
        key=key,
        etag=md5(key.encode(), usedforsecurity=False).hexdigest(),
        run=run,
        kind=kind,
        message=f"bad in {run}",
        at=NOW,
        decoder=decoder,
    )


def fail(
    store: MemoryStore,
    key: str,
    *runs: str,
    kind: FailureKind = FailureKind.CHUNK,
    modified: datetime | None = None,
) -> None:
    for run in runs or ("r1",):
        made = failure(key, run, kind=kind)
        store.place(keys.attempt(key, made.etag, run), record.encode(made), modified=modified)


def compacted(at: Stage, *failures: Failure) -> None:
    """Puts compacted objects with these failures into the store."""
    attempts = {
        keys.attempt_name(each.key, each.etag, each.run): StoredFailure(each, at.clock.now())
        for each in failures
    }
    for key, data in pack(CompactedAttempts(attempts=attempts)):
        at.store.place(key, data)


def make_run(at: Stage, run: str, *, source: str = "") -> Run:
    return Run(
        id=run,
        provider="ec2",
        machines=(Machine(id="i-1"),),
        policy="now",
        reason="",
        created=NOW,
        deadline=NOW,
        rate=RATE,
        source=source or at.world.source.url,
    )


def ours(at: Stage, run: str, *, source: str = "") -> None:
    """A run of this scheduler's ledger."""
    at.ledger.save_run(make_run(at, run, source=source), at=NOW)


def read(store: MemoryStore) -> dict[str, str]:
    """Message of every attempt that counts, by name; each name exactly once."""
    failures = read_failures(store, lambda listed: listed.stored)
    return {name: each.message for name, each in failures.items()}


def singles(store: MemoryStore) -> int:
    return len(store.keys(keys.ATTEMPTS))


def compact(at: Stage) -> None:
    delete_outdated(at.world, now=at.clock.now())


def requests(at: Stage, act: Callable[[], object]) -> int:
    counted(at).requests = 0
    act()
    return counted(at).requests


def hold(at: Stage) -> int:
    return requests(at, lambda: tick(at.world, at.config))


# Costs.


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.deep)])
def test_many_attempts_cost_ten_requests_at_most(at: Stage, count: int) -> None:
    upload(at, "a.mp3", "b.mp3")
    scanner = at.world.scanner(False)
    none = hold(at), requests(at, scanner.backlog), requests(at, lambda: read_history(scanner, "a.mp3"))
    compacted(at, failure("a.mp3"), *(failure(f"{number}.mp3") for number in range(1, count)))
    counted(at).requests = 0
    seen = tick(at.world, at.config).seen
    held, counted(at).requests = counted(at).requests, 0
    life = read_history(scanner, "a.mp3")
    explained = counted(at).requests
    many = held, requests(at, scanner.backlog), explained
    assert all(now - before <= 10 for now, before in zip(many, none, strict=True)), (none, many)
    assert seen is not None
    assert (seen.backlog.pending, seen.backlog.troubled) == (2, 1)
    assert [each.message for each in life.failures] == ["bad in r1"]


def test_runs_of_other_schedulers_are_read_once(at: Stage) -> None:
    none = hold(at)
    for number in range(30):
        run = make_run(at, f"run-{number}")
        at.store.place(keys.intent(run.id), encode_run(replace(run, scheduler="another")))
    assert hold(at) >= 30
    assert hold(at) - none <= 10


def test_a_holding_tick_compacts_single_attempts(at: Stage) -> None:
    upload(at, *(f"{number}.mp3" for number in range(60)))
    none = hold(at)
    for number in range(40):
        fail(at.store, f"{number}.mp3", "r1", "r2", kind=FailureKind.MACHINE)
    before = read(at.store)
    assert hold(at) >= len(before) == 80
    assert (singles(at.store), read(at.store)) == (0, before)
    assert hold(at) - none <= 10


def test_a_compaction_merges_the_names_once_not_for_each_attempt(
    at: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, merges = vars(Attempts)["stored"].fget, list[int]()

    def count(listed: Attempts) -> object:
        merges.append(len(listed.single))
        return merge(listed)

    monkeypatch.setattr(Attempts, "stored", property(count))
    for number in range(50):
        fail(at.store, f"{number}.mp3", "r1", kind=FailureKind.MACHINE)
    hold(at)
    assert singles(at.store) == 0
    assert len(merges) < 10


def test_a_few_single_attempts_are_left_as_they_are(at: Stage) -> None:
    upload(at, "a.mp3")
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(LOOSE)), kind=FailureKind.MACHINE)
    before = at.store.keys()
    hold(at)
    assert at.store.keys() == before


def test_a_tick_goes_on_if_attempts_cannot_be_compacted(at: Stage) -> None:
    upload(at, "a.mp3")
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(9)), kind=FailureKind.MACHINE)

    def broken(method: str, _key: str) -> None:
        if method == "create":
            raise LOST

    at.store.before = broken
    with structlog.testing.capture_logs() as logged:
        hold(at)
    assert "attempts.not_compacted" in [entry["event"] for entry in logged]
    assert singles(at.store) == 9


def test_quarantined_chunks_are_not_read_again_once_marked(at: Stage) -> None:
    names = [f"{number}.mp3" for number in range(30)]
    upload(at, *names)
    none = hold(at)
    for name in names:
        fail(at.store, name)
    asked = [chunk(at, name) for name in names]
    quarantine_failed(at.store, manifest(asked).chunks, max_attempts=1, now=at.clock.now())
    compact(at)
    assert hold(at) - none <= 10
    backlog = at.world.scanner(False).backlog()
    assert (backlog.quarantined, backlog.pending) == (30, 0)
    assert len(list_quarantined(at.store)) == 30
    assert release_quarantined(at.store, names[:1]) == names[:1]
    at.store.place(keys.quarantine(names[1]), b"changed since it was marked")
    backlog = at.world.scanner(False).backlog()
    assert (backlog.quarantined, backlog.pending) == (29, 1)


# Nothing is lost, nothing counts twice.


def interrupted_at(at: Stage, call: int, act: Callable[[], object]) -> bool:
    """Plays `act` with a store that breaks at its nth write; True if it came so far."""
    left = [call]

    def breaking(method: str, _key: str) -> None:
        if method in {"create", "replace", "delete"}:
            left[0] -= 1
            if left[0] < 0:
                raise LOST

    at.store.before = breaking
    try:
        act()
    except StoreUnavailableError:
        return True
    finally:
        at.store.before = lambda _method, _key: None
    return False


def test_a_crash_between_any_two_steps_of_a_compaction(at: Stage) -> None:
    upload(at, *(f"{number}.mp3" for number in range(9)))
    compacted(at, failure("0.mp3", "r0"), failure("1.mp3", "r0"))
    for number in range(9):
        fail(at.store, f"{number}.mp3")
    objects = {info.key: at.store.get(info.key).data for info in at.store.list()}
    before, call = read(at.store), 0
    assert len(before) == 11
    while interrupted_at(at, call, lambda: compact(at)):
        assert read(at.store) == before
        compact(at)
        assert read(at.store) == before
        for key in at.store.keys(keys.CONTROL):
            at.store.delete(key)
        for key, data in objects.items():
            at.store.place(key, data, modified=at.clock.now() - timedelta(hours=1))
        call += 1
    assert call == 11, "one object written, nine and the one before it deleted"
    assert read(at.store) == before


def test_two_schedulers_that_compact_at_once(at: Stage) -> None:
    upload(at, *(f"{number}.mp3" for number in range(9)))
    compacted(at, failure("0.mp3", "r0"))
    for number in range(8):
        fail(at.store, f"{number}.mp3")
    before = read(at.store)
    once: list[str] = []

    def other(method: str, _key: str) -> None:
        if method == "create" and not once:
            once.append("the other one comes first, and has seen one attempt more")
            fail(at.store, "8.mp3")
            compact(at)

    at.store.before = other
    compact(at)
    added = read(at.store)
    assert once
    assert {**before, **added} == added
    assert len(added) == len(before) + 1
    for number in range(9):
        fail(at.store, f"{number}.mp3")  # written again, from the exit record
    compact(at)
    assert read(at.store) == added
    assert (singles(at.store), len(at.store.keys(keys.COMPACTED))) == (0, 1)


@pytest.mark.parametrize(
    "moment", [("list", keys.COMPACTED), ("get", keys.ATTEMPTS), ("get", keys.COMPACTED)]
)
def test_a_reader_finds_what_is_compacted_while_it_reads(at: Stage, moment: tuple[str, str]) -> None:
    upload(at, *(f"{number}.mp3" for number in range(9)))
    compacted(at, failure("0.mp3", "r0"))
    for number in range(9):
        fail(at.store, f"{number}.mp3")
    before, once = read(at.store), [True]

    def meanwhile(method: str, key: str) -> None:
        if once and method == moment[0] and key.startswith(moment[1]):
            once.clear()
            compact(at)

    at.store.before = meanwhile
    assert read(at.store) == before
    assert not once


def test_what_is_forgotten_while_it_is_compacted_stays_forgotten(at: Stage) -> None:
    upload(at, *(f"{number}.mp3" for number in range(9)))
    for number in range(9):
        fail(at.store, f"{number}.mp3")
    once = [True]

    def meanwhile(method: str, key: str) -> None:
        if once and method == "create" and key.startswith(keys.COMPACTED):
            once.clear()
            forget_attempts(at.store, {keys.digest("3.mp3")})

    at.store.before = meanwhile
    compact(at)
    assert (len(read(at.store)), once) == (8, [])
    fail(at.store, "3.mp3", "r1")  # written again, from the exit record
    fail(at.store, "4.mp3", *(f"r{number}" for number in range(2, 8)))
    compact(at)
    assert len(read(at.store)) == 14
    assert singles(at.store) == 0
    fail(at.store, "3.mp3", "r2")
    assert len(read(at.store)) == 15, "a later run's failure counts"


def test_a_revocation_ends_with_the_attempt(at: Stage) -> None:
    upload(at, "a.mp3")
    compacted(at, failure("a.mp3"))
    forget_attempts(at.store, {keys.digest("a.mp3")})
    assert list_attempts(at.store).compacted.forgotten
    at.clock.sleep(31 * 86_400)
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(2, 9)), modified=at.clock.now())
    compact(at)
    assert not list_attempts(at.store).compacted.forgotten
    assert len(read(at.store)) == 7


# What is kept.


def test_attempts_at_chunks_that_are_done_or_gone_are_dropped(at: Stage) -> None:
    upload(at, "pending.mp3", "done.mp3", "transcription-done.json")
    ours(at, "ours")
    ours(at, "elsewhere", source="memory://another")
    for name in ("pending.mp3", "done.mp3", "gone.mp3"):
        fail(at.store, name, "ours", "elsewhere", "foreign")
    compact(at)
    kept = {(each.key, each.run) for each in read_failures(at.store, lambda listed: listed.stored).values()}
    foreign = {(name, run) for name in ("pending.mp3", "gone.mp3") for run in ("elsewhere", "foreign")}
    assert kept == {("pending.mp3", "ours"), *foreign}


def chunk(at: Stage, name: str) -> ManifestChunk:
    return ManifestChunk(
        key=name, etag=at.store.get(name).etag, size=1, session="s", transcript=f"transcription-{name}.json"
    )


def manifest(chunks: list[ManifestChunk], run: str = "r9") -> Manifest:
    return Manifest(
        run=run,
        worker=0,
        release="1",
        source="memory://double",
        output="memory://double",
        deadline=NOW,
        engine=EngineSpec(engine="e"),
        settings_hash="h",
        chunks=tuple(chunks),
    )


def test_compacted_and_single_attempts_together_lead_to_quarantine(at: Stage) -> None:
    upload(at, "a.mp3", "b.mp3")
    compacted(at, failure("a.mp3", "r1"), failure("a.mp3", "r2"), failure("b.mp3", "r1"))
    fail(at.store, "a.mp3", "r2", "r3")
    asked = manifest([chunk(at, "a.mp3"), chunk(at, "b.mp3")])
    (held,) = quarantine_failed(at.store, asked.chunks, max_attempts=3, now=at.clock.now())
    assert (held.key, held.attempts) == ("a.mp3", 3)


def test_another_decoder_tries_again(at: Stage) -> None:
    upload(at, "a.mp3", "b.mp3")
    compacted(at, failure("a.mp3", decoder="av-1"), failure("b.mp3"))
    scanner = at.world.scanner(False)
    assert scanner.backlog().troubled == 2
    scanner.decoder = "av-2"
    assert scanner.backlog().troubled == 1


@pytest.mark.parametrize("compacted_again", [False, True])
def test_redo_and_release_forget_compacted_attempts(at: Stage, compacted_again: bool) -> None:
    upload(at, "a.mp3", "b.mp3", "c.mp3")
    compacted(at, *(failure(f"{name}.mp3") for name in "abc"))
    asked = manifest([chunk(at, "b.mp3")])
    quarantine_failed(at.store, asked.chunks, max_attempts=1, now=at.clock.now())
    scanner = at.world.scanner(False)
    assert len(list(redo(scanner, find_by_key(scanner, "a.mp3"), stamp="1"))) == 1
    assert release_quarantined(at.store) == ["b.mp3"]
    if compacted_again:
        fail(at.store, "c.mp3", *(f"r{number}" for number in range(2, 9)))
        compact(at)
        assert len(at.store.keys(keys.COMPACTED)) == 1
    backlog = scanner.backlog()
    assert (backlog.pending, backlog.troubled, backlog.quarantined) == (3, 1, 0)
    assert read_history(scanner, "a.mp3").failures == ()


def test_redo_of_many_chunks_costs_few_requests(at: Stage) -> None:
    names = [f"{number}.mp3" for number in range(50)]
    upload(at, *names)
    compacted(at, *map(failure, names))
    scanner = at.world.scanner(False)
    chosen = list(scanner.audio())
    assert requests(at, lambda: list(redo(scanner, chosen, stamp="1"))) <= 5
    assert scanner.backlog().troubled == 0


# What cannot be read.


@pytest.mark.parametrize(
    "data",
    [b"", b"{", gzip.compress(b"{"), gzip.compress(b'{"version": 9}')],
    ids=["empty", "cut", "packed and cut", "of a newer version"],
)
def test_a_compacted_object_that_cannot_be_read_is_logged_and_left(at: Stage, data: bytes) -> None:
    upload(at, "a.mp3")
    compacted(at, failure("a.mp3"))
    at.store.place(keys.compacted("forged"), data)
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(2, 9)))
    with structlog.testing.capture_logs() as logged:
        compact(at)
    assert keys.compacted("forged") in [entry.get("key") for entry in logged]
    assert at.store.get(keys.compacted("forged")).data == data
    assert (len(read(at.store)), singles(at.store)) == (8, 0)


def test_what_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 1000)
    with pytest.raises(MisconfiguredError, match="truncated, or larger than"):
        wire.decode(gzip.compress(b'{"version":1}' + b" " * 1000))


def test_more_attempts_than_an_object_of_ours_holds_are_refused() -> None:
    """An object of a few megabytes may unpack to millions, which a tick would work on for minutes."""
    at = b'"2026-11-29T00:00:00Z"'
    entry = b'[{"key":"k","etag":"e","run":"r","kind":"chunk","message":"x","at":%b},%b]' % (at, at)
    entries = b",".join(b'"%064d/e/r":%b' % (number, entry) for number in range(wire.PER_OBJECT + 1))
    with pytest.raises(MisconfiguredError, match="length <= 50000"):
        wire.decode(gzip.compress(b'{"version":%d,"attempts":{%b}}' % (record.VERSION, entries), 1))


def test_a_key_that_holds_something_else_deletes_nothing(at: Stage) -> None:
    upload(at, "a.mp3")
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(9)))
    before = read(at.store)
    compact(at)
    (key,) = at.store.keys(keys.COMPACTED)
    at.store.place(key, b"forged")
    fail(at.store, "a.mp3", *(f"r{number}" for number in range(9)))
    with pytest.raises(StoreUnavailableError, match="remove the object"):
        compact(at)
    assert (singles(at.store), read(at.store)) == (9, before)


def test_merging_is_the_same_in_any_order_and_twice() -> None:
    parts = [
        CompactedAttempts(attempts={"a/e/1": StoredFailure(failure("a"), NOW)}),
        CompactedAttempts(attempts={"a/e/1": StoredFailure(failure("b"), NOW - timedelta(hours=1))}),
        CompactedAttempts(attempts={"a/e/2": StoredFailure(failure("c"), NOW)}, forgotten={"a/e/3": NOW}),
        CompactedAttempts(attempts={"a/e/3": StoredFailure(failure("d"), NOW)}),
    ]
    whole = merge(parts)
    assert sorted(whole.attempts) == ["a/e/1", "a/e/2"]
    assert whole.attempts["a/e/1"].failure.key == "b"
    assert merge(reversed(parts)) == merge([*parts, *parts]) == merge([whole, merge(parts[:2])]) == whole


def test_objects_hold_a_bounded_number_of_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PER_OBJECT", 2)
    whole = CompactedAttempts(
        attempts={f"{name}/e/1": StoredFailure(failure(name), NOW) for name in "abcde"},
        forgotten={"f/e/1": NOW},
    )
    placed = dict(pack(whole))
    assert len(placed) == 3
    assert merge(map(wire.decode, placed.values())) == whole
    assert list(pack(CompactedAttempts())) == []
