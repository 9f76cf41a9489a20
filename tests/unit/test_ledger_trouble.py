"""A disk that is full, a ledger that others hold: the GPU is stopped, and nothing is lost."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.controller.tick import tick, watch
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import RunState
from batchscribe.errors import BatchscribeError, MisconfiguredError, TransientError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import PRAGMAS
from support.world import INSTANCE, Stage, once, stage

CHUNKS = 6
SMALL_PAGES = {"page_size": "512"}
"""So that nearly every write needs a new one."""
LATEST = 2 * 3600 + 20 * 60
"""Seconds from the decision on: the deadline and 20 minutes."""
MID_RUN = 45.0
"""Seconds after the start was asked for: the worker is at work."""


@contextmanager
def staged(folder: Path, **pragmas: str) -> Iterator[Stage]:
    """A backlog that pays for a start, and a ledger in `folder` with these pragmas too."""
    at = stage(folder / "unused", policy=Policy(name=PolicyName.NOW))
    at.ledger.close()
    with Ledger(folder / "ledger.sqlite", pragmas=SMALL_PAGES | PRAGMAS | pragmas) as ledger:
        at.ledger, at.world = ledger, replace(at.world, ledger=ledger)
        at.upload(CHUNKS)
        at.clock.sleep(600)
        at.clock.at(LATEST, lambda: leaked(at))
        yield at


def leaked(at: Stage) -> None:
    """Past every bound that was promised, nothing may run."""
    state = at.compute.describe(INSTANCE).state
    assert state is InstanceState.STOPPED, f"the instance is {state} after {LATEST / 3600:.1f} h"


def with_room(at: Stage, folder: Path) -> list[str]:
    """Everything that is not as it should be after a tick or two with a ledger that works again."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        world = replace(at.world, ledger=ledger)
        tick(world, at.config)
        tick(world, at.config)
        problems = [f"run {run.id} is {run.state}" for run in ledger.open_runs()]
    transcripts = [info.key for info in at.store.list() if "transcription-" in info.key]
    if len(transcripts) != CHUNKS or sorted(at.worker.published) != sorted(set(at.worker.published)):
        problems.append(f"{len(transcripts)} transcripts, published: {at.worker.published}")
    return problems + unsafe(at)


def unsafe(at: Stage) -> list[str]:
    """What may cost money now."""
    seen = at.compute.describe(INSTANCE)
    orders = [f"an order stands for {run}" for run in at.guard.standing(INSTANCE)]
    return [*orders, *([] if seen.state is InstanceState.STOPPED else [f"the instance is {seen.state}"])]


def started(at: Stage) -> bool:
    return ("start", INSTANCE) in at.compute.calls


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """Pages of an empty ledger, and of one after a tick that lacked nothing."""
    folder = tmp_path_factory.mktemp("pages")

    def counted(at: Stage) -> int:
        return int(at.ledger._db.execute("PRAGMA page_count").fetchone()[0])

    with staged(folder) as at:
        empty = counted(at)
        tick(at.world, at.config)
        return empty, counted(at)


def test_whichever_write_finds_the_disk_full_the_gpu_is_stopped(
    tmp_path: Path, pages: tuple[int, int]
) -> None:
    broke_after_start = 0
    for limit in range(*pages):
        folder = tmp_path / str(limit)
        with staged(folder, max_page_count=str(limit)) as at:
            assert trouble(at), f"{limit} pages were enough"
            assert not unsafe(at), limit
            broke_after_start += started(at)
            assert not with_room(at, folder), limit
    assert broke_after_start > 2, "in some of them the disk was full in the middle of a run"


def trouble(at: Stage) -> bool:
    """Whether a tick told of any."""
    try:
        ticked = tick(at.world, at.config)
    except BatchscribeError:
        return True
    return bool(ticked.errors) or ticked.runs[-1].outcome is not Outcome.COMPLETED


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of a megabyte, which root may make: enough for a whole run."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return filler


@pytest.mark.parametrize("seconds", [5.0, MID_RUN])
def test_a_real_disk_that_fills_up_in_the_middle_of_a_run(tmp_path: Path, seconds: float) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with staged(disk) as at:
            at.clock.at(seconds, lambda: fill(disk))
            assert trouble(at), "a run that could not be recorded is no success"
            assert started(at)
            assert not unsafe(at)
        (disk / "filler").unlink()
        assert not with_room(at, disk)


def test_a_real_disk_that_is_full_before_the_start_starts_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, staged(disk) as at:
        fill(disk)
        with pytest.raises(MisconfiguredError, match="ledger"):
            tick(at.world, at.config)
        assert not started(at)
        assert at.notes.messages, "people are told"


@pytest.mark.parametrize("died", [False, True], ids=["ended", "died"])
def test_a_disk_that_is_full_at_every_pass_of_the_timer_keeps_no_gpu_running(
    tmp_path: Path, *, died: bool
) -> None:
    """Each pass needs the lock and the ledger, anew, and there is not a byte left for either."""
    with small_disk(tmp_path / "disk") as disk:
        with staged(disk) as at:
            while not started(at) or at.compute.describe(INSTANCE).state is not InstanceState.RUNNING:
                with lock(at, disk).held():
                    once(at)
                at.clock.sleep(30)
            # What a killed controller leaves lying beside its ledger; one that ends takes it along.
            left = {path: path.read_bytes() for path in disk.glob("ledger.sqlite-*")} if died else {}
        for path, data in left.items():
            path.write_bytes(data)
        fill(disk)
        at.clock.sleep(3600)
        for _ in range(6):
            with Ledger(disk / "ledger.sqlite") as ledger, suppress(BatchscribeError):
                watch(replace(at.world, ledger=ledger), at.config, locked=lock(at, disk).held)
            at.clock.sleep(60)
        assert not unsafe(at)
        (disk / "filler").unlink()
        assert not with_room(at, disk)


def unwritable(*_arguments: object, **_named: object) -> None:
    raise MisconfiguredError("the disk of the ledger is full")


def refuse_writes(at: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_run", "put"):
        monkeypatch.setattr(at.ledger, name, unwritable)


def run_slowly(at: Stage) -> None:
    """Steps a run on until its worker works, which does not end when it is asked to."""
    at.worker.seconds_each, at.worker.deaf = 1e6, True
    while not (runs := at.ledger.open_runs()) or runs[0].state is not RunState.TRANSCRIBING:
        once(at)
        at.clock.sleep(5)


def test_passes_that_cannot_be_recorded_stop_a_gpu_whose_worker_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass knows what the one before it has asked for."""
    with staged(tmp_path) as at:
        run_slowly(at)
        refuse_writes(at, monkeypatch)
        at.clock.sleep(2 * 3600)
        for _ in range(10):
            with suppress(BatchscribeError):
                watch(at.world, at.config)
            at.clock.sleep(60)
        assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED


def test_a_signal_stops_the_gpu_although_the_ledger_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with staged(tmp_path) as at:
        at.worker.seconds_each, at.worker.deaf = 1e6, True
        at.clock.at(MID_RUN, lambda: refuse_writes(at, monkeypatch))
        at.clock.at(MID_RUN, at.clock.interrupt)
        with suppress(BatchscribeError):
            tick(at.world, at.config)
        assert started(at)
        assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED


def test_a_lock_can_be_taken_on_a_full_disk_too(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, staged(tmp_path) as at:
        fill(disk)
        for _ in range(2):
            with lock(at, disk).held():
                assert lock(at, disk).holder() is not None
            assert lock(at, disk).holder() is None


def lock(at: Stage, folder: Path) -> FileTickLock:
    return FileTickLock(folder / "tick.lock", at.clock, copy=None)


class Holder:
    """Another process's hand on the whole ledger."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
        self.held = False

    def take(self) -> None:
        self._db.execute("BEGIN EXCLUSIVE")
        self.held = True

    def let_go(self) -> None:
        self._db.close()


def test_a_ledger_that_another_process_holds_for_a_while_costs_nothing(tmp_path: Path) -> None:
    with staged(tmp_path, busy_timeout="0") as at:
        holder = Holder(tmp_path)
        at.clock.at(22.0, holder.take)
        at.clock.at(35.0, holder.let_go)
        (run,) = tick(at.world, at.config).runs
        assert (run.outcome, run.chunks_done) == (Outcome.COMPLETED, CHUNKS)
        assert holder.held
        assert not unsafe(at)


def test_a_ledger_that_another_process_never_lets_go_keeps_no_gpu_running(tmp_path: Path) -> None:
    with staged(tmp_path, busy_timeout="0") as at:
        holder = Holder(tmp_path)
        at.clock.at(22.0, holder.take)
        assert trouble(at), "a run that could not be recorded is no success"
        assert holder.held
        assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED
        holder.let_go()
        assert not with_room(at, tmp_path)


def test_a_ledger_that_is_held_before_the_start_starts_nothing(tmp_path: Path) -> None:
    with staged(tmp_path, busy_timeout="0") as at:
        holder = Holder(tmp_path)
        holder.take()
        with pytest.raises(TransientError, match="held by another process"):
            tick(at.world, at.config)
        holder.let_go()
        assert not started(at)


@pytest.mark.parametrize("more", [0, 300], ids=["no chunks left", "more chunks fit"])
def test_a_ledger_that_another_process_holds_keeps_no_gpu_running(
    tmp_path: Path, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write fails from the middle of the work on, as `database is locked`."""
    at = stage(tmp_path)
    at.upload(120)
    at.clock.sleep(600)
    while not (runs := at.ledger.open_runs()) or runs[0].state is not RunState.TRANSCRIBING:
        once(at)
        at.clock.sleep(5)
    at.upload(more, session="later")

    def refuse(*_arguments: object, **_options: object) -> None:
        raise TransientError("the ledger is locked: try again")

    with monkeypatch.context() as patch:
        for name in ("save_run", "put"):
            patch.setattr(at.ledger, name, refuse)
        ended = 0.0
        while at.compute.describe(INSTANCE).state is not InstanceState.STOPPED:
            watch(at.world, at.config)
            at.clock.sleep(60)
            ended += 60 * (not any(worker.alive for worker in at.worker.started.values()))
            assert ended < 600, "the GPU runs although its work is over"
    while at.ledger.open_runs():
        watch(at.world, at.config)
        at.clock.sleep(60)
    (run,) = at.ledger.runs(at.clock.now() - timedelta(days=1))
    assert run.chunks_done == 120
    assert run.billed_seconds >= at.compute.billed_seconds(INSTANCE) > 0
