from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from batchscribe.adapters import installed
from batchscribe.adapters.schedule import (
    BEGIN,
    END,
    MARK,
    SERVICE,
    TIMER,
    Interval,
    Plan,
    render_cron,
    render_units,
    with_block,
)
from batchscribe.cli.app import App
from batchscribe.cli.install import install, uninstall
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import load

PLAN = Plan(
    executable=Path("/home/ubuntu/batchscribe/.venv/bin/batchscribe"),
    folder=Path("/home/ubuntu/batchscribe"),
    user="ubuntu",
    interval=Interval(60),
    max_runtime=timedelta(hours=2),
    local_gpu=False,
    log_dir=Path("/home/ubuntu/batchscribe/logs"),
)
EXAMPLES = Path(__file__).parents[2] / "deploy" / "systemd"


def tool(name: str) -> str:
    """A program that is part of what is tested: without it CI fails, and a laptop skips by name."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("text", "minutes", "calendar", "cron"),
    [
        ("1m", 1, "*:0/1", "*/1 * * * *"),
        ("30m", 30, "*:0/30", "*/30 * * * *"),
        ("60m", 60, "hourly", "0 * * * *"),
        ("1h", 60, "hourly", "0 * * * *"),
        ("6h", 360, "*-*-* 0/6:00:00", "0 */6 * * *"),
        ("24h", 1440, "daily", "0 0 * * *"),
        ("1d", 1440, "daily", "0 0 * * *"),
    ],
)
def test_an_interval_is_said_to_systemd_and_cron_alike(
    text: str, minutes: int, calendar: str, cron: str
) -> None:
    interval = Interval.parse(text)
    assert (interval.minutes, interval.calendar, interval.cron) == (minutes, calendar, cron)
    assert Interval.of_hours(interval.hours) == interval
    assert Interval.of_hours(float(f"{interval.hours:.10g}")) == interval


@pytest.mark.parametrize("text", ["7m", "90m", "5h", "2d", "0m", "1.5h", "1h; reboot", "", "hourly"])
def test_an_uneven_interval_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(MisconfiguredError, match=r"allowed is 1m, .*30m, 1h, .*24h"):
        Interval.parse(text)


@pytest.mark.parametrize("hours", [0.7, 5.0, 0.001])
def test_an_uneven_setting_is_refused_too(hours: float) -> None:
    with pytest.raises(MisconfiguredError, match="allowed is"):
        Interval.of_hours(hours)


def test_every_interval_is_one_that_systemd_understands() -> None:
    analyze = tool("systemd-analyze")
    for text in ("1m", "5m", "20m", "30m", "1h", "2h", "3h", "8h", "12h", "24h"):
        calendar = Interval.parse(text).calendar
        subprocess.run([analyze, "calendar", calendar], check=True, capture_output=True)


def test_the_units_are_the_ones_that_are_shown_as_examples() -> None:
    for name, text in render_units(PLAN).items():
        assert (EXAMPLES / name).read_text() == text


def test_the_timer_does_not_pull_the_service_and_the_service_not_the_boot() -> None:
    units = render_units(PLAN)
    assert "Requires=" not in units[TIMER]
    assert "[Install]" not in units[SERVICE]
    assert lines(units[TIMER])[-4:] == [
        "Persistent=true",
        "RandomizedDelaySec=5min",
        "[Install]",
        "WantedBy=timers.target",
    ]


def test_time_limits_follow_the_longest_run() -> None:
    service = render_units(replace(PLAN, max_runtime=timedelta(hours=3, minutes=45)))[SERVICE]
    assert "TimeoutStartSec=4h 15min" in lines(service)
    assert "TimeoutStopSec=10min" in lines(service)


def test_a_local_gpu_is_not_capped() -> None:
    capped, free = (render_units(replace(PLAN, local_gpu=local))[SERVICE] for local in (False, True))
    assert {"CPUQuota=50%", "MemoryMax=2G"} <= set(lines(capped))
    assert "CPUQuota" not in free
    assert "MemoryMax" not in free


def test_policy_and_timer_know_one_interval() -> None:
    half = replace(PLAN, interval=Interval(30), told=True)
    assert "Environment=BATCH_SCHEDULER_CHECK_HOURS=0.5" in lines(render_units(half)[SERVICE])
    assert "BATCH_SCHEDULER_CHECK_HOURS=0.5 /home" in render_cron(half)
    assert "BATCH_SCHEDULER_CHECK_HOURS" not in render_units(PLAN)[SERVICE] + render_cron(PLAN)


@pytest.mark.parametrize("name", ["plain", "with space", "100%n $HOME", "größe;#x"])
@pytest.mark.parametrize("local", [False, True])
def test_systemd_finds_no_fault_with_any_path(tmp_path: Path, name: str, *, local: bool) -> None:
    analyze = tool("systemd-analyze")
    folder = tmp_path / name
    folder.mkdir()
    program = folder / "batchscribe"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    quoted = tmp_path / f"{name} '\""
    quoted.mkdir()
    plan = replace(
        PLAN,
        executable=program,
        folder=quoted,
        user="root",
        local_gpu=local,
        told=local,
        interval=Interval(30),
    )
    units = tmp_path / "units"
    units.mkdir()
    for unit, text in render_units(plan).items():
        (units / unit).write_text(text)
    ended = subprocess.run(
        [analyze, "verify", "--recursive-errors=yes", "--man=no", str(units / TIMER), str(units / SERVICE)],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": os.environ["PATH"]},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_systemd_would_have_found_a_fault(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for unit, text in render_units(PLAN).items():
        (tmp_path / unit).write_text(text.replace("TimeoutStopSec", "TimeoutStoppSec"))
    ended = subprocess.run(
        [analyze, "verify", "--recursive-errors=yes", "--man=no", str(tmp_path / SERVICE)],
        capture_output=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": os.environ["PATH"]},
    )
    assert ended.returncode != 0


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\x1bb"])
def test_a_path_that_would_be_more_than_a_path_is_refused(name: str) -> None:
    plan = replace(PLAN, folder=Path("/srv") / name)
    for render in (render_units, render_cron):
        with pytest.raises(MisconfiguredError, match="cannot stand in a schedule"):
            render(plan)


def test_percent_signs_are_no_specifiers_of_systemd() -> None:
    plan = replace(PLAN, executable=Path("/srv/100%n/batchscribe"), folder=Path("/srv/100%n x"))
    service = lines(render_units(plan)[SERVICE])
    assert "WorkingDirectory=/srv/100%%n x" in service
    assert 'ExecStart="/srv/100%%n/batchscribe" tick' in service


def test_systemd_takes_no_quotes_in_the_path_of_a_program() -> None:
    with pytest.raises(MisconfiguredError, match="cannot stand in a schedule"):
        render_units(replace(PLAN, executable=Path("/srv/it's/batchscribe")))


@pytest.mark.parametrize("name", ["plain", "with space", "100%n $HOME", "quote'\"q", "größe;#x `id`"])
def test_cron_runs_the_program_in_its_folder_and_appends_to_its_log(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "logs").mkdir(parents=True)
    program = folder / "batchscribe"
    program.write_text('#!/bin/sh\npwd; echo "$BATCH_SCHEDULER_CHECK_HOURS $@"\n')
    program.chmod(0o755)
    plan = replace(
        PLAN, executable=program, folder=folder, log_dir=folder / "logs", interval=Interval(30), told=True
    )
    _, line, _ = render_cron(plan).splitlines()
    assert line.startswith("*/30 * * * * cd ")
    # What cron does with the rest of a line: `\%` becomes `%`, a bare one would end the command.
    command = line.removeprefix("*/30 * * * * ")
    assert "%" not in command.replace("\\%", "")
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", command.replace("\\%", "%")], check=True, env={}, cwd="/")
    assert (folder / "logs" / "scheduler-cron.log").read_text() == f"{folder}\n0.5 tick\n" * 2


OTHERS = "MAILTO=me@example.com\n17 3 * * * /usr/bin/backup\n"


def test_a_block_goes_in_once_is_replaced_in_place_and_goes_out_without_a_trace() -> None:
    block = render_cron(PLAN)
    once = with_block(OTHERS, block)
    assert once == f"{OTHERS}{block}\n"
    assert with_block(once, block) == once
    changed = render_cron(replace(PLAN, interval=Interval(30)))
    assert with_block(once + "# the end\n", changed) == f"{OTHERS}{changed}\n# the end\n"
    assert with_block(once, "") == OTHERS
    assert with_block(once + once, "") == OTHERS * 2
    assert with_block("", "") == ""
    assert with_block("no newline", block) == f"no newline\n{block}\n"


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


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `systemctl` and `crontab` note what they are asked for."""
    folder = tmp_path / "machine"
    folder.mkdir()
    for name, text in (("crontab", FAKE_CRONTAB), ("systemctl", FAKE_SYSTEMCTL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def calls(machine: Path) -> list[str]:
    """What systemctl was asked for, in order."""
    path = machine / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "my project"
    folder.mkdir()
    (folder / ".env").write_text("BATCH_SOURCE=s3://bucket/audio\nGPU_INSTANCE_ID=i-0123456789abcdef0\n")
    return folder


def call(project: Path, *arguments: str, environ: dict[str, str] | None = None) -> Result:
    app = App()
    app.__dict__["settings"] = load(environ or {}, folder=project)
    command = uninstall if arguments[0] == "uninstall" else install
    rest = arguments[1:] if arguments[0] == "uninstall" else arguments
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
    assert calls(machine) == ["daemon-reload", f"enable --now {TIMER}", f"restart {TIMER}"]
    service = (machine / "units" / SERVICE).read_text()
    executable = Path(sysconfig.get_path("scripts")) / "batchscribe"
    assert f'ExecStart="{executable}" tick' in lines(service)
    assert f'ExecStopPost="{executable}" reconcile' in lines(service)
    assert f"WorkingDirectory={project}" in lines(service)
    assert f"User={installed.owner(project / '.env')}" in lines(service)
    assert "CPUQuota=50%" in lines(service)
    assert "A tick every 1h" in output

    assert "as they were" in run(project, "systemd", *where)
    assert calls(machine)[3:] == ["daemon-reload", f"enable --now {TIMER}"]
    changed = run(project, "systemd", *where, "--every", "30m")
    assert f"wrote {machine / 'units' / TIMER}" in changed
    assert "BATCH_SCHEDULER_CHECK_HOURS=0.5 stands in the schedule" in changed
    assert "OnCalendar=*:0/30" in lines((machine / "units" / TIMER).read_text())


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
    assert calls(machine)[-2:] == [f"disable --now {TIMER}", "daemon-reload"]


def test_uninstalling_twice_is_harmless(machine: Path, project: Path) -> None:
    run(project, "systemd", *units_at(machine))
    assert "removed" in run(project, "uninstall", *units_at(machine))
    assert "nothing was installed" in run(project, "uninstall", *units_at(machine))


def test_a_failing_systemctl_is_an_error_that_says_why(machine: Path, project: Path) -> None:
    (machine / "systemctl").write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 4\n")
    error = call(project, "systemd", *units_at(machine)).exception
    assert isinstance(error, MisconfiguredError)
    assert "Access denied" in str(error)


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
    assert "as it was" in run(project, "cron", "--every", "30m")
    assert (machine / "writes").read_text() == "w\n"
    run(project, "uninstall", *units_at(machine))
    assert (machine / "table").read_text() == OTHERS


def test_cron_begins_a_crontab_and_can_be_somebody_elses(machine: Path, project: Path) -> None:
    run(project, "cron", "--user", installed.owner(project))
    assert (machine / "table").read_text().startswith(BEGIN)
    assert set((machine / "users").read_text().split()) == {installed.owner(project)}


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
