from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.controller.attempts import list_attempts
from batchscribe.controller.retention import KEPT, KEPT_IN_LEDGER, delete_outdated
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.report import QueueSample
from batchscribe.errors import StoreUnavailableError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.world import Stage, stage

YEAR = timedelta(days=366)
NOW = FakeClock().now()
OLD = NOW - KEPT - timedelta(seconds=1)


class OrderlyStore(MemoryStore):
    """One call at a time: the order of the calls is part of a test."""

    threads = 1


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    """Two old runs, a young one, an old one that is still open, and what is not of runs."""
    made = stage(tmp_path, store=furnished(), policy=Policy(name=PolicyName.NOW))
    yield made
    made.ledger.close()


def furnished() -> OrderlyStore:
    store = OrderlyStore(FakeClock())
    for run in ("r1", "r1-a", "open"):
        store.place(keys.intent(run), modified=OLD)
        for worker in (0, 1):
            for key in (
                keys.manifest(run, worker),
                keys.progress(run, worker),
                keys.exit_record(run, worker),
            ):
                store.place(key, modified=OLD)
    for run in ("r1", "r1-a"):
        store.place(keys.settlement(run), modified=OLD)
    store.place(keys.intent("young"), modified=OLD)
    store.place(keys.manifest("young", 0), modified=OLD)
    store.place(keys.settlement("young"), modified=NOW)
    for key in ("a.mp3", "held.mp3"):
        store.place(keys.attempt(key, "etag", "r1"), modified=OLD)
        store.place(keys.attempt(key, "etag", "r2"), modified=NOW - KEPT)
    store.place(keys.quarantine("held.mp3"), modified=OLD)
    for key in ("a.mp3", "transcription-a.json", keys.superseded("a.json", "then"), keys.instance("i-1")):
        store.place(key, modified=OLD)
    return store


def without_attempts(store: MemoryStore) -> set[str]:
    return set(store.keys()) - set(store.keys(keys.ATTEMPTS)) - set(store.keys(keys.COMPACTED))


def open_runs(store: MemoryStore) -> set[str]:
    """Runs with an intent and no settlement."""
    names = {key.removeprefix(keys.RUNS).partition("/")[0] for key in store.keys(keys.RUNS)}
    there = set(store.keys())
    return {run for run in names if keys.intent(run) in there and keys.settlement(run) not in there}


def outdated(store: MemoryStore) -> set[str]:
    return {key for run in ("r1", "r1-a") for key in store.keys(f"{keys.RUNS}{run}/workers/")}


def test_control_objects_of_old_runs_go_and_their_records_stay(at: Stage) -> None:
    before, gone = without_attempts(at.store), outdated(at.store)
    delete_outdated(at.world, now=NOW)
    assert before - without_attempts(at.store) == gone
    assert len(gone) == 12
    assert delete_outdated(at.world, now=NOW) == 0


def test_old_attempts_go_unless_their_chunk_is_quarantined(at: Stage) -> None:
    at.store.delete("transcription-a.json")
    delete_outdated(at.world, now=NOW)
    assert kept(at) == {("a.mp3", "r2"), ("held.mp3", "r1"), ("held.mp3", "r2")}
    delete_outdated(at.world, now=NOW + KEPT)
    assert kept(at) == {("a.mp3", "r2"), ("held.mp3", "r1"), ("held.mp3", "r2")}, "the store is not so late"
    at.store.place(keys.settlement("later"), modified=NOW + KEPT)
    delete_outdated(at.world, now=NOW + KEPT)
    assert kept(at) == {("held.mp3", "r1"), ("held.mp3", "r2")}


def kept(at: Stage) -> set[tuple[str, str]]:
    """(chunk, run) of each attempt that counts."""
    names = {keys.digest(key): key for key in ("a.mp3", "held.mp3")}
    stored = list_attempts(at.store).stored
    return {(names[keys.chunk_of(name)[0]], keys.run_of(name)) for name in stored}


@pytest.mark.parametrize("ahead", [timedelta(0), YEAR, -YEAR])
def test_a_local_clock_that_is_wrong_deletes_nothing_that_is_not_old(at: Stage, ahead: timedelta) -> None:
    young = at.store.keys(f"{keys.RUNS}young/")
    delete_outdated(at.world, now=NOW + ahead)
    assert at.store.keys(f"{keys.RUNS}young/") == young
    assert set(outdated(at.store)) == (set(outdated(furnished())) if ahead < timedelta(0) else set())


def test_a_tick_a_year_ahead_keeps_what_the_store_calls_young(tmp_path: Path) -> None:
    store = OrderlyStore(FakeClock())
    with stage(tmp_path, store=store, policy=Policy(name=PolicyName.NOW)).ledger as ledger:
        ledger.save_sample(
            QueueSample(at=NOW, pending=1, triggering=1, waiting=0, oldest=None, decision="d", sentence="s")
        )
    at = stage(tmp_path, store=store, policy=Policy(name=PolicyName.NOW))
    store.place(keys.intent("young"))
    store.place(keys.manifest("young", 0))
    store.place(keys.settlement("young"))
    at.clock.sleep(YEAR.total_seconds())
    at.upload(1)
    (run,) = tick(at.world, at.config).runs
    assert not run.open
    assert len(store.keys(f"{keys.RUNS}young/")) == 3
    assert len(at.ledger.samples(NOW)) == 1
    at.ledger.close()


def test_a_file_from_the_future_makes_nothing_old(at: Stage) -> None:
    at.store.place(keys.settlement("touched"), modified=NOW + YEAR)
    delete_outdated(at.world, now=NOW)
    assert at.store.keys(f"{keys.RUNS}young/")[1:] == (
        keys.settlement("young"),
        keys.manifest("young", 0),
    )


def test_the_ledger_is_pruned_by_the_same_time(at: Stage) -> None:
    for days in (0, 1):
        when = NOW - KEPT_IN_LEDGER - timedelta(days=days) + timedelta(hours=1)
        at.ledger.save_sample(
            QueueSample(at=when, pending=1, triggering=1, waiting=0, oldest=None, decision="d", sentence="s")
        )
    delete_outdated(at.world, now=NOW + YEAR)
    assert len(at.ledger.samples(NOW - YEAR)) == 1


def test_a_crash_between_any_two_deletes_opens_no_run_and_the_next_time_ends_it(at: Stage) -> None:
    wanted = outdated(at.store)
    for survived in range(len(wanted)):
        left = [survived]

        def dying(method: str, _key: str, left: list[int] = left) -> None:
            if method == "delete":
                left[0] -= 1
                if left[0] < 0:
                    raise StoreUnavailableError("the connection was reset")

        copy = furnished()
        world = replace(at.world, output=copy)
        copy.before = dying
        with pytest.raises(StoreUnavailableError):
            delete_outdated(world, now=NOW)
        assert len(wanted - set(copy.keys())) == survived
        assert open_runs(copy) == {"open"}
        copy.before = lambda _method, _key: None
        delete_outdated(world, now=NOW)
        assert outdated(copy) == set()
        assert open_runs(copy) == {"open"}


@pytest.mark.parametrize("listing", [keys.RUNS, keys.QUARANTINE, keys.ATTEMPTS, keys.COMPACTED])
def test_a_listing_that_fails_deletes_nothing(at: Stage, listing: str) -> None:
    def broken(method: str, key: str) -> None:
        if (method, key) == ("list", listing):
            raise StoreUnavailableError("the connection was reset")

    before, at.store.before = at.store.keys(), broken
    with pytest.raises(StoreUnavailableError):
        delete_outdated(at.world, now=NOW)
    assert at.store.keys() == before
