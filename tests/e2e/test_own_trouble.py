"""Trouble with a scheduler's own files in the middle of a run: passes of its timer finish it all the same.

Real processes with real files, in front of an emulated cloud; the worker is played.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from support.emulated import Case
from support.s3 import missing

pytestmark = pytest.mark.e2e
AT_WORK = "launcher.launch:after"
BEFORE_START = "store.create:intent:after"
MISCONFIGURED = 2
PATIENT_PASSES = 60


OTHER_SETTINGS = {
    "source": {"BATCH_SOURCE": "s3://another-bucket"},
    "instance": {"GPU_INSTANCE_ID": "i-0fedcba9876543210"},
    "provider": {"GPU_PROVIDER": "local", "GPU_INSTANCE_ID": "", "BATCH_LAUNCH": "auto"},
    "guard": {"BATCH_CLOUD_GUARD": "off"},
}
BEGUN = (
    *zip(OTHER_SETTINGS, cycle((BEFORE_START, AT_WORK)), strict=False),
    *(
        pytest.param(other, point, marks=pytest.mark.deep)
        for other, point in zip(OTHER_SETTINGS, cycle((AT_WORK, BEFORE_START)), strict=False)
    ),
)


@pytest.mark.parametrize(("other", "point"), BEGUN)
def test_a_run_that_was_begun_with_other_settings_is_finished(case: Case, other: str, point: str) -> None:
    case.killed_at(point)
    case.watch(**OTHER_SETTINGS[other])
    assert not case.problems()
    assert len(case.intents) == 1


@pytest.mark.parametrize(
    "names",
    [{"BATCH_TRESHOLD": "5"}, {"BATCH_THRESHOLD": "many"}, {"BATCH_SOURCE": ""}],
    ids=["unknown", "unreadable", "missing"],
)
def test_settings_that_cannot_be_used_stop_no_stop(case: Case, names: dict[str, str]) -> None:
    case.killed_at(AT_WORK)
    passes = case.watch(**names)
    assert not case.problems()
    assert {each.code for each in passes} == {MISCONFIGURED}, passes[-1]
    assert next(iter(names)) in passes[-1].errors


def _scribble(ledger: Path) -> None:
    with ledger.open("r+b") as file:
        file.write(os.urandom(8192))


def _shuffle(ledger: Path) -> None:
    """The header stays as it is, the pages behind it do not."""
    with ledger.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(ledger.stat().st_size - 100))


def _drop_table(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("DROP TABLE runs")
        db.commit()


@pytest.mark.parametrize(
    ("damage", "following"),
    [
        (_scribble, "watchdog"),
        (_shuffle, "tick"),
        (_drop_table, "watchdog"),
        pytest.param(_scribble, "tick", marks=pytest.mark.deep),
        pytest.param(_shuffle, "watchdog", marks=pytest.mark.deep),
        pytest.param(_drop_table, "tick", marks=pytest.mark.deep),
    ],
)
def test_a_ledger_that_was_damaged_in_mid_run(
    case: Case, damage: Callable[[Path], None], following: str
) -> None:
    case.killed_at(AT_WORK)
    with closing(sqlite3.connect(case.ledger)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(case.ledger)
    if following == "tick":
        case.tick()
    else:
        case.watch()
    assert not case.problems()
    (aside,) = case.ledger.parent.glob("ledger.sqlite.damaged-*")
    assert [aside.name in each["body"] for each in case.messages].count(True) == 1
    assert len(case.intents) == 1


def test_a_state_directory_that_became_read_only(case: Case) -> None:
    case.killed_at(AT_WORK)
    with read_only(case.ledger.parent):
        passes = [case.command("watchdog")]
        while case.described()["State"]["Name"] != "stopped" or case.orders:
            assert len(passes) < PATIENT_PASSES, passes[-1]
            passes.append(case.command("watchdog"))
        assert {each.code for each in passes} == {MISCONFIGURED}, passes[-1]
    assert not list(case._of_the_cloud())
    # What the scheduler could not write it learns from the store.
    case.tick()
    assert not case.problems()
    assert len(case.intents) == 1


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder read-only for every user, root as well."""
    if os.geteuid() != 0:
        missing("root, for a mount that is read-only")
    for options in (["--bind", str(folder)], ["-o", "remount,ro,bind"]):
        subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_state_directory_that_became_a_file(case: Case) -> None:
    case.killed_at(AT_WORK)
    state = case.ledger.parent
    state.rename(aside := state.with_name("aside"))
    state.write_text("not a folder")
    passed = case.command("watchdog")
    assert passed.code == MISCONFIGURED, passed
    assert str(state) in passed.errors
    state.unlink()
    aside.rename(state)
    case.watch()
    assert not case.problems()


@pytest.mark.parametrize("copied", [False, True], ids=["another id", "a copy on another host"])
def test_two_schedulers_with_one_state_path_leave_each_other_s_runs_alone(case: Case, copied: bool) -> None:
    case.killed_at(AT_WORK)
    before, state = case.described(), case.ledger.parent
    aside = state.with_name("aside")
    state.rename(aside)
    if copied:
        state.mkdir()
        shutil.copy(aside / "scheduler-id", state)
    for words in (("tick", "--no-wait"), ("watchdog",), ("reconcile",)):
        done = case.command(*words, host="another" if copied else "")
        assert done.code == 0, done
        assert case.open_runs == []
    assert (case.described()["Tags"], case.described()["State"]) == (before["Tags"], before["State"])
    assert len(case.intents) == 1
    shutil.rmtree(state)
    aside.rename(state)
    case.watch()
    assert not case.problems()
