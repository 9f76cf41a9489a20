from __future__ import annotations

from datetime import timedelta

import pytest

from batchscribe.controller.retention import KEPT, retire
from batchscribe.core import keys
from batchscribe.errors import StoreUnavailableError
from batchscribe.testing.store import MemoryStore
from support.stores import NOW, StoppedClock

OLD = NOW - KEPT - timedelta(seconds=1)


@pytest.fixture
def store() -> MemoryStore:
    """Two old runs, a young one, an old one that is still open, and what is not of runs."""
    store = MemoryStore(StoppedClock())
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
    store.place(keys.settlement("young"), modified=NOW - KEPT)
    for key in ("a.mp3", "held.mp3"):
        store.place(keys.attempt(key, "etag", "r1"), modified=OLD)
        store.place(keys.attempt(key, "etag", "r2"), modified=NOW - KEPT)
    store.place(keys.quarantine("held.mp3"), modified=OLD)
    for key in ("a.mp3", "transcription-a.json", keys.superseded("a.json", "then"), keys.instance("i-1")):
        store.place(key, modified=OLD)
    return store


def open_runs(store: MemoryStore) -> set[str]:
    """Runs with an intent and no settlement."""
    names = {key.removeprefix(keys.RUNS).partition("/")[0] for key in store.keys(keys.RUNS)}
    there = set(store.keys())
    return {run for run in names if keys.intent(run) in there and keys.settlement(run) not in there}


def broken_runs(whole: MemoryStore, now: MemoryStore) -> set[str]:
    """Runs of which something is gone already."""
    gone = set(whole.keys(keys.RUNS)) - set(now.keys(keys.RUNS))
    return {key.removeprefix(keys.RUNS).partition("/")[0] for key in gone}


def test_old_runs_and_attempts_go_and_nothing_else(store: MemoryStore) -> None:
    before = set(store.keys())
    gone = {keys.attempt("a.mp3", "etag", "r1")}
    gone |= {key for run in ("r1", "r1-a") for key in store.keys(f"{keys.RUNS}{run}/")}
    assert retire(store, now=NOW) == len(gone) == 17
    assert before - set(store.keys()) == gone
    assert retire(store, now=NOW) == 0


def test_how_long_is_a_choice(store: MemoryStore) -> None:
    retire(store, now=NOW, keep=timedelta(days=1))
    assert open_runs(store) == {"open"}
    assert store.keys(f"{keys.RUNS}young/") == ()
    assert store.keys(keys.ATTEMPTS) == tuple(
        sorted(keys.attempt("held.mp3", "etag", run) for run in ("r1", "r2"))
    )


def test_a_crash_between_any_two_deletes_opens_no_run_and_the_next_time_ends_it(store: MemoryStore) -> None:
    wanted = set(store.keys())
    survived = 0
    while True:
        left = [survived]

        def dying(method: str, _key: str, left: list[int] = left) -> None:
            if method == "delete":
                left[0] -= 1
                if left[0] < 0:
                    raise StoreUnavailableError("the connection was reset")

        copy = MemoryStore(StoppedClock())
        for info in store.list():
            copy.place(info.key, modified=info.modified)
        copy.before = dying
        try:
            retire(copy, now=NOW)
        except StoreUnavailableError:
            assert len(wanted) - len(copy.keys()) == survived
            assert open_runs(copy) == {"open"}
            assert not [run for run in broken_runs(store, copy) if copy.keys(keys.intent(run))]
        else:
            break
        copy.before = lambda _method, _key: None
        assert retire(copy, now=NOW) == 17 - survived
        survived += 1
    assert survived == 17


def test_a_listing_that_fails_deletes_nothing(store: MemoryStore) -> None:
    def broken(method: str, key: str) -> None:
        if (method, key) == ("list", keys.QUARANTINE):
            raise StoreUnavailableError("the connection was reset")

    before, store.before = store.keys(), broken
    with pytest.raises(StoreUnavailableError):
        retire(store, now=NOW)
    assert store.keys() == before
