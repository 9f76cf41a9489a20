"""The container that other tests stand on: what they rely on is seen here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.cli import wait_for
from support.nspawn import UNITS, Container, container

UNIT = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cat /proc/sys/kernel/random/boot_id >> {shared}/boots; echo it-was-here'
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Container]:
    shared = tmp_path / "shared"
    shared.mkdir()
    with container(tmp_path / "machine", shared) as made:
        made.write(f"{UNITS}/ours.service", UNIT.format(shared=shared))
        made.enable("ours.service")
        yield made


def test_a_machine_boots_runs_its_units_and_switches_itself_off(machine: Container) -> None:
    shared = machine.shared[0]
    machine.boot()
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    wait_for((machine.shows("ours.service", "ActiveState")["ActiveState"] == "inactive") for _ in range(9999))
    assert machine.shows("ours.service", "Result") == {"Result": "success"}
    told = machine.run(sys.executable, "-m", "batchscribe", "--version", cwd=shared).stdout
    assert "batchscribe" in told
    assert machine.run("touch", str(Path(sys.prefix) / "x"), check=False).returncode != 0
    machine.run("touch", "/etc/only-there")
    assert not Path("/etc/only-there").exists()
    machine.run("systemctl", "poweroff", check=False)
    machine.wait_off()
    assert "it-was-here" in machine.journal("ours.service")

    machine.boot()
    assert machine.run("cat", "/etc/only-there", check=False).returncode != 0
    machine.kill()
    assert not machine.up
    first, second = (shared / "boots").read_text().split()
    assert first != second


def test_two_machines_are_up_at_once_and_one_that_is_killed_takes_all_with_it(
    machine: Container, tmp_path: Path
) -> None:
    machine.boot()
    with container(tmp_path / "other") as other:
        other.boot()
        other.run("systemd-run", "--unit=sleeper", "sleep", "1234567")
        pid = int(other.shows("sleeper.service", "MainPID")["MainPID"])
        assert other.run("ps", "-o", "comm=", "-p", str(pid)).stdout.strip() == "sleep"
        leader = other.leader
    assert not psutil.pid_exists(leader)
    assert not any(path.exists() for path in Path("/sys/fs/cgroup").glob(f"*/{other.name}"))
    assert machine.up
