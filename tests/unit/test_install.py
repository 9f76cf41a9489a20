from __future__ import annotations

import re
import shutil
import sysconfig
from collections import Counter
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchscribe.adapters.machine import installed
from batchscribe.adapters.machine.installed import describe_schedule, has_lane_unit
from batchscribe.adapters.machine.schedule import (
    BEGIN,
    END,
    LANE_PATH,
    LANE_SERVICE,
    MARK,
    SERVICE,
    TIMER,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
    Names,
    find_unit_folder,
)
from batchscribe.cli.app import App
from batchscribe.cli.install import install, uninstall
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load
from support.s3 import missing

REQUIREMENTS = sorted((Path(__file__).parents[2] / "requirements").glob("*.txt"))
OTHERS = "MAILTO=me@example.com\n17 3 * * * /usr/bin/backup\n"
FAKE_CRONTAB = """#!/bin/sh
if [ "$1" = "-u" ]; then echo "$2" >> "{folder}/users"; shift 2; fi
case "$1" in
  -l) [ -e "{folder}/table" ] || {{ echo "no crontab for me" >&2; exit 1; }}; cat "{folder}/table" ;;
  -) cat > "{folder}/table"; echo w >> "{folder}/writes" ;;
  *) exit 64 ;;
esac
"""
FAKE_SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{folder}/calls"
"""


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_python_gets_the_versions_that_were_tested(path: Path) -> None:
    names = Counter(re.findall(r"^([\w.-]+)==", path.read_text(), re.MULTILINE))
    assert names
    assert [name for name, count in names.items() if count > 1] == []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `systemctl` and `crontab` note what they are asked for."""
    folder = tmp_path / "machine"
    folder.mkdir()
    for name, text in (("crontab", FAKE_CRONTAB), ("systemctl", FAKE_SYSTEMCTL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(installed, "BOOTED", folder)
    return folder


def calls(machine: Path) -> list[str]:
    """What systemctl was asked for, in order."""
    path = machine / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return made(tmp_path / "my project")


def made(folder: Path) -> Path:
    folder.mkdir()
    (folder / ".env").write_text("BATCH_SOURCE=s3://bucket/audio\nGPU_INSTANCE_ID=i-0123456789abcdef0\n")
    return folder


def call(project: Path, *arguments: str, environ: dict[str, str] | None = None) -> Result:
    app = App()
    app.__dict__["settings"] = load(environ or {}, folder=project)
    command = uninstall if arguments[0] == "uninstall" else install
    rest = arguments[1:] if arguments[0] == "uninstall" else arguments
    with chdir(project):
        return CliRunner().invoke(command, list(rest), obj=app)


def run(project: Path, *arguments: str, environ: dict[str, str] | None = None) -> str:
    result = call(project, *arguments, environ=environ)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def units_at(machine: Path) -> list[str]:
    folder = machine / "units"
    folder.mkdir(exist_ok=True)
    return ["--unit-dir", str(folder)]


def test_systemd_is_installed_once_and_changed_on_demand(machine: Path, project: Path) -> None:
    where = units_at(machine)
    output = run(project, "systemd", *where)
    timers = f"{TIMER} {WATCHDOG_TIMER}"
    assert calls(machine) == ["daemon-reload", f"enable --now {timers}", f"restart {timers}"]
    service = (machine / "units" / SERVICE).read_text()
    executable = Path(sysconfig.get_path("scripts")) / "batchscribe"
    assert f'ExecStart="{executable}" tick --no-wait' in lines(service)
    assert f"WorkingDirectory={project}" in lines(service)
    assert f"User={installed.find_owner(project / '.env')}" in lines(service)
    assert "CPUQuota=50%" in lines(service)
    assert "A tick every 1h" in output
    watchdog = lines((machine / "units" / WATCHDOG_SERVICE).read_text())
    assert f'ExecStart="{executable}" watchdog' in watchdog
    assert f"WorkingDirectory={project}" in watchdog
    assert f"User={installed.find_owner(project / '.env')}" in watchdog
    assert "OnCalendar=*:0/1" in lines((machine / "units" / WATCHDOG_TIMER).read_text())

    assert "the units are unchanged" in run(project, "systemd", *where)
    assert calls(machine)[3:] == ["daemon-reload", f"enable --now {timers}"]
    changed = run(project, "systemd", *where, "--every", "30m")
    assert f"wrote {machine / 'units' / TIMER}" in changed
    assert "BATCH_SCHEDULER_CHECK_HOURS=0.5 is set in the schedule" in changed
    assert "OnCalendar=*:0/30" in lines((machine / "units" / TIMER).read_text())


def test_a_calendar_of_systemd_is_passed_through_once_checked(machine: Path, project: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze")
    spec = "Mon..Fri *-*-* 22..23:00 Europe/Berlin"
    output = run(project, "systemd", *units_at(machine), "--calendar", spec)
    assert f"OnCalendar={spec}" in lines((machine / "units" / TIMER).read_text())
    assert f"A tick at {spec} as " in output
    assert "Set BATCH_SCHEDULER_CHECK_HOURS to the longest time between two ticks." in output
    before = calls(machine)
    for bad in ("every full moon", "hourly\nUser=root", "--version"):
        refused = call(project, "systemd", *units_at(machine), "--calendar", bad)
        assert isinstance(refused.exception, MisconfiguredError)
        assert "is no calendar of systemd" in str(refused.exception)
    assert call(project, "systemd", "--calendar", "hourly", "--every", "1h").exit_code == 2
    assert calls(machine) == before


def test_printing_changes_nothing(machine: Path, project: Path) -> None:
    output = run(project, "systemd", "--print", *units_at(machine))
    assert "[Timer]" in output
    assert MARK in output
    assert BEGIN in run(project, "cron", "--print")
    assert list((machine / "units").iterdir()) == []
    assert calls(machine) == []
    assert not (machine / "table").exists()


def test_a_unit_from_elsewhere_is_kept_aside_and_never_removed(machine: Path, project: Path) -> None:
    where = units_at(machine)
    foreign = machine / "units" / SERVICE
    foreign.write_text("[Service]\nExecStart=/old/535-smart-batch-scheduler.sh\n")
    assert "nothing was installed" in run(project, "uninstall", *where)
    assert foreign.exists()
    assert "kept the" in run(project, "systemd", *where)
    kept = machine / "units" / f"{SERVICE}.before-batchscribe"
    assert "535-smart" in kept.read_text()
    run(project, "uninstall", *where)
    assert [path.name for path in (machine / "units").iterdir()] == [kept.name]
    assert calls(machine)[-2:] == [f"disable --now {TIMER} {WATCHDOG_TIMER}", "daemon-reload"]


def test_uninstalling_twice_is_harmless(machine: Path, project: Path) -> None:
    run(project, "systemd", *units_at(machine))
    assert "removed" in run(project, "uninstall", *units_at(machine))
    assert "nothing was installed" in run(project, "uninstall", *units_at(machine))


def test_a_failing_systemctl_is_an_error_that_says_why(machine: Path, project: Path) -> None:
    (machine / "systemctl").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 4\n")
    error = call(project, "systemd", *units_at(machine)).exception
    assert isinstance(error, MisconfiguredError)
    assert "Access denied" in str(error)


@pytest.mark.parametrize("uid", [0, 1000])
def test_sudo_is_suggested_to_users_other_than_root(
    machine: Path, project: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    (machine / "systemctl").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 4\n")
    monkeypatch.setattr("os.geteuid", lambda: uid)
    error = str(call(project, "systemd", *units_at(machine)).exception)
    assert ("is sudo missing?" in error) == (uid != 0)


def test_a_folder_that_is_not_there_is_an_error(machine: Path, project: Path) -> None:
    error = call(project, "systemd", "--unit-dir", str(machine / "none")).exception
    assert isinstance(error, MisconfiguredError)


def test_an_unknown_user_and_a_missing_source_are_refused_before_anything_is_written(
    machine: Path, project: Path
) -> None:
    error = call(project, "systemd", "--user", "nobody-of-that-name", *units_at(machine)).exception
    assert "no user 'nobody-of-that-name'" in str(error)
    (project / ".env").write_text("")
    assert "BATCH_SOURCE is not set" in str(call(project, "systemd", *units_at(machine)).exception)
    assert calls(machine) == []


def test_what_only_the_shell_knows_is_named(machine: Path, project: Path) -> None:
    environ = {"BATCH_THRESHOLD": "5", "BATCH_SCHEDULER_CHECK_HOURS": "0.5"}
    output = run(project, "systemd", *units_at(machine), environ=environ)
    assert f"put into {project / '.env'}: BATCH_THRESHOLD\n" in output
    service = (machine / "units" / SERVICE).read_text()
    assert "Environment=BATCH_SCHEDULER_CHECK_HOURS=0.5" in lines(service)


def test_cron_is_installed_once_beside_what_is_there(machine: Path, project: Path) -> None:
    (machine / "table").write_text(OTHERS)
    run(project, "cron", "--every", "30m")
    table = (machine / "table").read_text()
    assert table.startswith(OTHERS + BEGIN)
    assert table.count(END) == 1
    assert (project / "logs").is_dir()
    assert "the crontab is unchanged" in run(project, "cron", "--every", "30m")
    assert (machine / "writes").read_text() == "w\n"
    run(project, "uninstall", *units_at(machine))
    assert (machine / "table").read_text() == OTHERS


def test_cron_begins_a_crontab_and_can_be_somebody_elses(machine: Path, project: Path) -> None:
    run(project, "cron", "--user", installed.find_owner(project))
    assert (machine / "table").read_text().startswith(BEGIN)
    assert set((machine / "users").read_text().split()) == {installed.find_owner(project)}


def test_root_installs_for_the_owner_of_dotenv(
    machine: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.chdir(project)
    assert f"crontab -u {installed.find_owner(project)} -l" in run(project, "cron")
    assert set((machine / "users").read_text().split()) == {installed.find_owner(project)}
    (machine / "users").unlink()
    (machine / "table").unlink()
    run(project, "uninstall", *units_at(machine))
    assert set((machine / "users").read_text().split()) == {installed.find_owner(project)}
    (machine / "users").unlink()
    run(project, "cron", "--user", "nobody")
    assert set((machine / "users").read_text().split()) == {"nobody"}


def test_a_crontab_that_cannot_be_read_is_not_overwritten(machine: Path, project: Path) -> None:
    (machine / "crontab").write_text("#!/bin/sh\necho 'you are not allowed' >&2\nexit 1\n")
    error = call(project, "cron").exception
    assert isinstance(error, MisconfiguredError)
    assert "you are not allowed" in str(error)


def test_without_cron_and_systemd_the_errors_name_the_other(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "install cron" in str(call(project, "cron").exception)
    (tmp_path / "units").mkdir()
    error = call(project, "systemd", "--unit-dir", str(tmp_path / "units")).exception
    assert "batchscribe install cron" in str(error)


def test_without_systemd_install_changes_nothing_and_uninstall_removes_the_files(
    machine: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = units_at(machine)
    run(project, "systemd", *where)
    enabled = machine / "units" / "timers.target.wants"
    enabled.mkdir()
    (enabled / TIMER).symlink_to(f"../{TIMER}")
    before, asked = sorted((machine / "units").iterdir()), calls(machine)
    monkeypatch.setattr(installed, "BOOTED", machine / "none")
    error = call(project, "systemd", "--every", "30m", *where).exception
    assert isinstance(error, MisconfiguredError)
    assert error.exit_code == 2
    assert "nothing was changed: use `batchscribe install cron`" in str(error)
    assert sorted((machine / "units").iterdir()) == before
    assert f"removed {machine / 'units' / TIMER}" in run(project, "uninstall", *where)
    assert list((machine / "units").rglob("*")) == [enabled]
    assert calls(machine) == asked, "systemctl is not called"


def test_what_brings_the_next_tick_is_told(machine: Path, project: Path) -> None:
    assert describe_schedule(project, machine / "units").startswith("none")
    run(project, "cron")
    assert describe_schedule(project, machine / "units") == "a line in your crontab"
    run(project, "systemd", *units_at(machine))
    (machine / "systemctl").write_text(
        "#!/bin/sh\necho ActiveState=active\necho 'NextElapseUSecRealtime=Mon 2026-11-23 13:00:00 UTC'\n"
    )
    told = describe_schedule(project, machine / "units")
    assert told == "systemd timer, active, next Mon 2026-11-23 13:00:00 UTC; watchdog active"
    (machine / "units" / WATCHDOG_TIMER).unlink()
    assert describe_schedule(project, machine / "units").endswith(
        "; no watchdog: run `batchscribe install systemd`"
    )


def test_a_schedule_without_its_watchdog_is_told(machine: Path, project: Path) -> None:
    old = f"{BEGIN}\n0 * * * * cd '{project}' && batchscribe tick >> log 2>&1\n{END}\n"
    (machine / "table").write_text(f"{old}* * * * * my watchdog >> log\n")
    told = describe_schedule(project, machine / "units")
    assert told == "a line in your crontab; no watchdog: run `batchscribe install cron`"
    run(project, "cron")
    assert describe_schedule(project, machine / "units") == "a line in your crontab"


def test_units_of_an_earlier_version_are_removed_too(machine: Path, project: Path) -> None:
    where = units_at(machine)
    run(project, "systemd", *where)
    for name in (WATCHDOG_TIMER, WATCHDOG_SERVICE):
        (machine / "units" / name).unlink()
    run(project, "uninstall", *where)
    assert calls(machine)[-2:] == [f"disable --now {TIMER}", "daemon-reload"]
    assert list((machine / "units").iterdir()) == []


def test_the_lane_has_units_as_long_as_it_is_on(machine: Path, project: Path) -> None:
    where, units = units_at(machine), machine / "units"
    on = {"BATCH_CPU_LANE": "auto", "BATCH_SCHEDULER_CHECK_HOURS": "1"}
    shown = run(project, "systemd", *where, environ=on)
    assert f"The CPU lane works in {LANE_SERVICE}." in shown
    assert calls(machine)[-1] == f"restart {TIMER} {WATCHDOG_TIMER} {LANE_PATH}"
    assert has_lane_unit(project, units)
    assert not has_lane_unit(project.parent, units)
    again = run(project, "systemd", *where)
    assert f"removed {units / LANE_PATH}" in again
    assert f"disable --now {LANE_PATH}" in calls(machine)
    assert not has_lane_unit(project, units)
    run(project, "systemd", *where, environ=on)
    run(project, "uninstall", *where)
    assert list(units.iterdir()) == []


def test_two_projects_on_one_host_keep_a_schedule_each(machine: Path, project: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "another 100%")
    where, units = units_at(machine), machine / "units"
    run(project, "systemd", *where)
    before = {path.name: path.read_text() for path in units.iterdir()}
    run(other, "systemd", *where)
    assert {name: (units / name).read_text() for name in before} == before
    names = Names.tagged(other)
    assert set(names.units[:4]) == {path.name for path in units.iterdir()} - before.keys()
    assert calls(machine)[-1] == f"restart {names.of(TIMER)} {names.of(WATCHDOG_TIMER)}"
    assert find_unit_folder((units / names.of(SERVICE)).read_text()) == other
    assert "the units are unchanged" in run(other, "systemd", *where)
    for folder in (project, other):
        assert describe_schedule(folder, units).startswith("systemd timer")

    run(project, "uninstall", *where)
    assert {path.name for path in units.iterdir()} == set(names.units[:4])
    assert describe_schedule(project, units) == ("none: `batchscribe install systemd` or `install cron`"), (
        "its own names are free, and the other one's schedule is no business of it"
    )
    assert "the units are unchanged" in run(other, "systemd", *where), "it keeps its names"
    assert "nothing was installed" in run(project, "uninstall", *where)
    run(other, "uninstall", *where)
    assert list(units.iterdir()) == []


def test_two_projects_in_one_crontab_have_a_block_each(machine: Path, project: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "another 100%")
    (machine / "table").write_text(OTHERS)
    run(project, "cron")
    own = (machine / "table").read_text()
    told = describe_schedule(other, machine / "units")
    assert told.startswith("none")
    assert str(project) in told
    run(other, "cron", "--every", "30m")
    table = (machine / "table").read_text()
    assert table.startswith(own)
    assert "the crontab is unchanged" in run(project, "cron")
    assert "the crontab is unchanged" in run(other, "cron", "--every", "30m")
    assert describe_schedule(other, machine / "units") == "a line in your crontab"
    run(project, "uninstall", *units_at(machine))
    assert (machine / "table").read_text() == table.replace(own.removeprefix(OTHERS), "")
    run(other, "uninstall", *units_at(machine))
    assert (machine / "table").read_text() == OTHERS


def test_the_status_names_the_project_that_has_the_schedule(
    machine: Path, project: Path, tmp_path: Path
) -> None:
    run(project, "systemd", *units_at(machine))
    told = describe_schedule(tmp_path, machine / "units")
    assert told.startswith("none")
    assert told.endswith(f"(another project is scheduled here: {project})")
