"""What batchscribe leaves on this machine is for its own user, whatever the umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from batchscribe.adapters.host_access import host_keys
from batchscribe.adapters.machine import installed, logs
from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.adapters.output.reports import write_report
from batchscribe.core.run.report import build
from batchscribe.detached import start_once
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.private_files import make_folder, restrict_to_owner
from batchscribe.testing.clock import FakeClock
from support.values import NOW, run

USER = installed.find_owner(Path(__file__))
RUN = run(id="r1")


@pytest.fixture(params=[0o022, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Mode of everything below the folder."""
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def leave_everything(folder: Path) -> None:
    state, log_dir = folder / "state" / "inner", folder / "logs"
    lock = FileTickLock(state / "tick.lock", FakeClock(), copy=None)
    with Ledger(state / "ledger.sqlite") as ledger, lock.held():
        ledger.save_run(RUN, at=NOW)
        write_report(folder / "reports", build(RUN))
        with logs.run_log(log_dir, "r1", NOW):
            structlog.get_logger().info("started")
        installed.make_cron_log(folder / "cron" / "scheduler-cron.log", USER)
        host_keys._replace_line(state / "known_hosts", "i-1", "i-1 ssh-ed25519 AAAA")
        start_once(state / "worker", ["/bin/true"], environment={}, log=log_dir / "worker.log")
        seen = modes(folder)
    assert {"state/inner/ledger.sqlite-wal", "state/inner/ledger.sqlite-shm"} < {*seen}
    assert {path: mode for path, mode in seen.items() if (folder / path).is_file() and mode != 0o600} == {}


@pytest.mark.usefixtures("umask")
def test_every_file_and_every_new_folder_is_private(tmp_path: Path) -> None:
    leave_everything(tmp_path)
    folders = {path: mode for path, mode in modes(tmp_path).items() if (tmp_path / path).is_dir()}
    assert set(folders) == {"state", "state/inner", "logs", "reports", "cron"}
    assert set(folders.values()) == {0o700}


@pytest.mark.usefixtures("umask")
def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    for name in ("state/inner", "logs", "reports", "cron"):
        (tmp_path / name).mkdir(mode=0o755, parents=True)
        (tmp_path / name).chmod(0o755)
    leave_everything(tmp_path)
    assert {modes(tmp_path)[name] for name in ("state/inner", "logs", "reports", "cron")} == {0o755}


def test_a_ledger_that_others_could_read_is_restricted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as first:
        first.save_run(RUN, at=NOW)
        for each in tmp_path.iterdir():
            each.chmod(0o644)
        with Ledger(path) as second:
            assert second.run("r1") == RUN
            assert set(modes(tmp_path).values()) == {0o600}
        first.save_run(RUN, at=NOW)


def test_a_lock_that_others_could_read_is_restricted_and_the_copy_is_not(tmp_path: Path, umask: int) -> None:
    copy = tmp_path / "batch-transcribe.lock"
    for name in ("tick.lock",):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    with FileTickLock(tmp_path / "tick.lock", FakeClock(), copy=copy).held():
        assert modes(tmp_path) == {"tick.lock": 0o600, copy.name: 0o644 & ~umask}


def test_restricting_touches_only_plain_files_of_this_user(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    target.chmod(0o644)
    link.symlink_to(target)
    for path in (link, tmp_path, tmp_path / "missing"):
        restrict_to_owner(path)
    assert target.stat().st_mode & 0o777 == 0o644
    restrict_to_owner(target)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_cron_log_is_created_through_no_link(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / "scheduler-cron.log", tmp_path / "elsewhere"
    log.symlink_to(elsewhere)
    installed.make_cron_log(log, USER)
    assert not elsewhere.exists()


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "state")
    with pytest.raises(MisconfiguredError):
        Ledger(tmp_path / "state" / "ledger.sqlite")
