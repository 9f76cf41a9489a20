"""The dead-man's script, run for real with its folder, its clock and its systemctl played."""

from __future__ import annotations

import os
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.agent.state_files import StateFiles
from batchscribe.core.run.host import HostWaits
from support.sshd import program

NOW = 5000
SCRIPT = (resources.files("batchscribe.deploy") / "box" / "deadman").read_text()
SHELLS = ["/bin/sh", "/bin/bash"]


class DeadMan:
    """The script in `folder`; whoever is asked to power off only notes it."""

    def __init__(self, folder: Path) -> None:
        self.markers = folder / "run"
        self.markers.mkdir(parents=True)
        self._script = folder / "deadman"
        self._asked = folder / "asked"
        self._armed = folder / "armed"
        self._uptime = folder / "uptime"
        self.systemctl = folder / "programs" / "systemctl"
        program(self.systemctl, f'echo "$*" >> {self._asked}')
        self.systemd_run = self.systemctl.with_name("systemd-run")
        program(self.systemd_run, f'echo "$*" >> {self._armed}')
        text = SCRIPT
        for real, played in {
            "\nPATH=": f"\nPATH={self.systemctl.parent}:",
            "folder=/run/batchscribe": f"folder={self.markers}",
            "/proc/uptime": str(self._uptime),
        }.items():
            assert text.count(real) == 1
            text = text.replace(real, played)
        self._script.write_text(text)

    def look(self, *, now: float = NOW, shell: str = "/bin/sh", silence: str | None = None) -> str:
        """What systemctl was asked to do by one look; empty for nothing."""
        self._asked.unlink(missing_ok=True)
        self._uptime.write_text(f"{now:.2f} 123.45\n")
        environment = {} if silence is None else {"SILENCE_SECONDS": silence}
        done = subprocess.run(
            [shell, self._script], env=environment, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.stderr == ""
        return self._asked.read_text() if self._asked.exists() else ""

    @property
    def armed(self) -> list[str]:
        """What systemd was told to do later, however all else hangs."""
        return self._armed.read_text().splitlines() if self._armed.exists() else []

    def mark(self, **texts: str) -> None:
        for name, text in texts.items():
            (self.markers / name).write_text(text)


@pytest.fixture
def dead_man(tmp_path: Path) -> DeadMan:
    return DeadMan(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_without_a_claim_nothing_is_done(dead_man: DeadMan, shell: str) -> None:
    assert dead_man.look(shell=shell) == ""
    dead_man.mark(off="", alive="1\n")
    assert dead_man.look(shell=shell) == ""
    dead_man.markers.joinpath("off").unlink()
    dead_man.markers.joinpath("alive").unlink()
    dead_man.markers.rmdir()
    assert dead_man.look(shell=shell) == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_live_work_before_its_deadline_is_left_alone(dead_man: DeadMan, shell: str) -> None:
    dead_man.mark(claim=f"{NOW + 1}\nrun-1\n", alive=f"{NOW - 899}\n")
    assert dead_man.look(shell=shell) == ""
    assert not dead_man.armed


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "markers",
    [
        {"claim": f"{NOW + 999}\nrun-1\n", "alive": f"{NOW - 900}\n"},
        {"claim": f"{NOW}\nrun-1\n", "alive": f"{NOW}\n"},
        {"claim": f"{NOW + 999}\nrun-1\n", "alive": f"{NOW}\n", "off": ""},
        {"claim": f"{NOW + 999}\nrun-1\n"},
        {"claim": "", "alive": ""},
    ],
    ids=["silent", "late", "asked", "never alive", "empty"],
)
def test_work_that_is_over_silent_or_late_ends_the_power(
    dead_man: DeadMan, markers: dict[str, str], shell: str
) -> None:
    dead_man.mark(**markers)
    asked = dead_man.look(shell=shell)
    assert asked.startswith("poweroff")
    assert "force" not in asked
    assert "halt" not in asked
    (armed,) = dead_man.armed
    assert armed.endswith("systemctl poweroff --no-wall --force --force")
    assert "--on-active=75 " in armed


def test_where_systemd_cannot_be_asked_it_is_made_to(dead_man: DeadMan) -> None:
    dead_man.mark(claim="1\n")
    program(dead_man.systemctl, f'echo "$*" >> {dead_man._asked}; exit 1')
    assert [line.split()[-1] for line in dead_man.look().splitlines()] == ["--check-inhibitors=no", "--force"]


def test_a_force_that_cannot_be_armed_keeps_no_power_on(dead_man: DeadMan) -> None:
    dead_man.mark(claim="1\n")
    program(dead_man.systemd_run, "exit 1")
    assert dead_man.look().startswith("poweroff")


def test_its_patience_is_the_unit_s(dead_man: DeadMan) -> None:
    dead_man.mark(claim=f"{NOW + 999}\n", alive=f"{NOW - 30}\n")
    assert dead_man.look(silence="31") == ""
    assert dead_man.look(silence="30").startswith("poweroff")


def test_it_waits_for_the_agent_and_not_much_longer() -> None:
    """The agent ends a silent worker in order; the dead-man comes where the agent did not."""
    unit = (resources.files("batchscribe.deploy") / "box" / "batchscribe-deadman.service").read_text()
    assert "SILENCE_SECONDS=900" in unit
    assert HostWaits().silence + 30 < 900


@pytest.mark.parametrize(
    "alive", ["$(touch PWNED)", "`touch PWNED`", "0x10", "-5", "+1", "1e3", "08", "a[0]", "99999"]
)
def test_what_is_no_plain_number_of_the_past_is_no_sign_of_life(dead_man: DeadMan, alive: str) -> None:
    dead_man.mark(claim=f"{NOW + 999}\n", alive=f"{alive}\n")
    assert dead_man.look().startswith("poweroff")
    assert not list(dead_man.markers.parent.rglob("PWNED"))
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("deadline", ["$(reboot)", "99999999999999999999", "08", "12 34", "x\n1"])
def test_a_deadline_that_is_no_number_leaves_the_silence(dead_man: DeadMan, deadline: str) -> None:
    dead_man.mark(claim=f"{deadline}\n", alive=f"{NOW - 10}\n")
    assert dead_man.look() == ""
    assert dead_man.look(now=NOW + 890).startswith("poweroff")


def test_no_link_is_followed_and_no_pipe_waited_for(dead_man: DeadMan, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{NOW}\n")
    dead_man.mark(claim=f"{NOW + 999}\n")
    (dead_man.markers / "alive").symlink_to(secret)
    assert dead_man.look().startswith("poweroff")
    (dead_man.markers / "alive").unlink()
    os.mkfifo(dead_man.markers / "alive")
    assert dead_man.look().startswith("poweroff")


def test_it_reads_what_the_agent_writes(dead_man: DeadMan) -> None:
    markers = StateFiles(dead_man.markers)
    markers.record_claim("run-1", limit=NOW + 100.4, now=NOW - 800.2)
    assert dead_man.look() == ""
    markers.record_progress(NOW)
    assert dead_man.look(now=NOW + 99) == ""
    assert dead_man.look(now=NOW + 101).startswith("poweroff")
    markers.request_power_off()
    assert dead_man.look().startswith("poweroff")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_no_bytes_make_it_fail_or_spare_the_power_for_ever(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    dead_man = DeadMan(tmp_path_factory.mktemp("dead"))
    for name in ("claim", "alive"):
        (dead_man.markers / name).write_bytes(data)
    assert dead_man.look(now=2 * 10**9).startswith("poweroff")
