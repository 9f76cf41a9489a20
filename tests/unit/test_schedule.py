from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from batchscribe.adapters.machine.schedule import (
    LANE_PATH,
    LANE_SERVICE,
    SERVICE,
    START_TIMEOUT,
    TIMER,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
    Interval,
    Plan,
    render_cron,
    render_units,
    replace_block,
)
from batchscribe.errors import MisconfiguredError
from batchscribe.wiring.scheduler import HANG_SECONDS
from support.s3 import missing

PLAN = Plan(
    executable=Path("/home/ubuntu/batchscribe/.venv/bin/batchscribe"),
    folder=Path("/home/ubuntu/batchscribe"),
    user="ubuntu",
    interval=Interval(60),
    local_gpu=False,
    log_dir=Path("/home/ubuntu/batchscribe/logs"),
)
EXAMPLES = Path(__file__).parents[2] / "deploy" / "systemd"


def tool(name: str) -> str:
    """A program that is part of what is tested: without it CI fails, and a laptop skips by name."""
    found = shutil.which(name)
    return found or missing(name)


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
    with pytest.raises(MisconfiguredError, match=r"use one of 1m, .*30m, 1h, .*24h"):
        Interval.parse(text)


@pytest.mark.parametrize("hours", [0.7, 5.0, 0.001])
def test_an_uneven_setting_is_refused_too(hours: float) -> None:
    with pytest.raises(MisconfiguredError, match="use one of"):
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


@pytest.mark.parametrize("service", [SERVICE, WATCHDOG_SERVICE])
def test_the_end_of_a_pass_ends_neither_its_worker_nor_its_run(service: str) -> None:
    """The next pass of either timer goes on, so nothing is stopped after a pass that died."""
    unit = lines(render_units(PLAN)[service])
    assert "KillMode=process" in unit
    assert not [line for line in unit if line.startswith(("ExecStop", "TimeoutStop", "Restart"))]


def test_a_pass_that_hangs_ends_itself_before_systemd_does() -> None:
    for service in (SERVICE, WATCHDOG_SERVICE):
        assert "TimeoutStartSec=2h" in lines(render_units(PLAN)[service])
    assert START_TIMEOUT.total_seconds() > HANG_SECONDS


def test_open_runs_get_a_pass_each_minute_and_first_of_all_after_a_boot() -> None:
    timer = lines(render_units(PLAN)[WATCHDOG_TIMER])
    assert {"OnCalendar=*:0/1", "OnBootSec=1min", "AccuracySec=1s"} <= set(timer)


def test_a_local_gpu_is_not_capped() -> None:
    capped, free = (render_units(replace(PLAN, local_gpu=local))[SERVICE] for local in (False, True))
    assert {"CPUQuota=50%", "MemoryMax=2G"} <= set(lines(capped))
    assert "CPUQuota" not in free
    assert "MemoryMax" not in free


def test_the_unit_of_the_lane_has_no_limits_and_watches_the_requests() -> None:
    assert LANE_PATH not in render_units(PLAN)
    units = render_units(replace(PLAN, lane_requests=Path("/home/ubuntu/100% state/lane/requests")))
    assert "DirectoryNotEmpty=/home/ubuntu/100%% state/lane/requests" in lines(units[LANE_PATH])
    service = units[LANE_SERVICE]
    assert 'ExecStart="/home/ubuntu/batchscribe/.venv/bin/batchscribe" lane' in lines(service)
    assert "CPUQuota" not in service
    assert "MemoryMax" not in service
    assert "CPUQuota=50%" in units[SERVICE]


def test_policy_and_timer_know_one_interval() -> None:
    half = replace(PLAN, interval=Interval(30), overrides_env=True)
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
        overrides_env=local,
        interval=Interval(30),
        lane_requests=None if local else quoted / "lane" / "requests",
    )
    units = tmp_path / "units"
    units.mkdir()
    for unit, text in render_units(plan).items():
        (units / unit).write_text(text)
    ended = subprocess.run(
        [analyze, "verify", "--recursive-errors=yes", "--man=no", *(str(path) for path in units.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": os.environ["PATH"]},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_systemd_would_have_found_a_fault(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for unit, text in render_units(PLAN).items():
        (tmp_path / unit).write_text(text.replace("TimeoutStartSec", "TimeoutStarttSec"))
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
        with pytest.raises(MisconfiguredError, match="is not supported in a schedule"):
            render(plan)


def test_percent_signs_are_no_specifiers_of_systemd() -> None:
    plan = replace(PLAN, executable=Path("/srv/100%n/batchscribe"), folder=Path("/srv/100%n x"))
    service = lines(render_units(plan)[SERVICE])
    assert "WorkingDirectory=/srv/100%%n x" in service
    assert 'ExecStart="/srv/100%%n/batchscribe" tick --no-wait' in service


def test_systemd_takes_no_quotes_in_the_path_of_a_program() -> None:
    with pytest.raises(MisconfiguredError, match="is not supported in a schedule"):
        render_units(replace(PLAN, executable=Path("/srv/it's/batchscribe")))


@pytest.mark.parametrize("name", ["plain", "with space", "100%n $HOME", "quote'\"q", "größe;#x `id`"])
def test_cron_runs_the_program_in_its_folder_and_appends_to_its_log(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "logs").mkdir(parents=True)
    program = folder / "batchscribe"
    program.write_text('#!/bin/sh\npwd; echo "$BATCH_SCHEDULER_CHECK_HOURS $@"\n')
    program.chmod(0o755)
    plan = replace(PLAN, executable=program, folder=folder, log_dir=folder / "logs")
    plan = replace(plan, interval=Interval(30), overrides_env=True)
    _, *rendered, _ = render_cron(plan).splitlines()
    for line, times in zip(rendered, ("*/30 * * * * ", "*/1 * * * * "), strict=True):
        assert line.startswith(f"{times}cd ")
        # What cron does with the rest of a line: `\%` becomes `%`, a bare one would end the command.
        command = line.removeprefix(times)
        assert "%" not in command.replace("\\%", "")
        for _ in range(2):
            subprocess.run(["/bin/sh", "-c", command.replace("\\%", "%")], check=True, env={}, cwd="/")
    written = (folder / "logs" / "scheduler-cron.log").read_text()
    assert written == f"{folder}\n0.5 tick --no-wait\n" * 2 + f"{folder}\n0.5 watchdog\n" * 2


OTHERS = "MAILTO=me@example.com\n17 3 * * * /usr/bin/backup\n"


def test_a_block_goes_in_once_is_replaced_in_place_and_goes_out_without_a_trace() -> None:
    block = render_cron(PLAN)
    once = replace_block(OTHERS, block, PLAN.folder)
    assert once == f"{OTHERS}{block}\n"
    assert replace_block(once, block, PLAN.folder) == once
    changed = render_cron(replace(PLAN, interval=Interval(30)))
    assert replace_block(once + "# the end\n", changed, PLAN.folder) == f"{OTHERS}{changed}\n# the end\n"
    assert replace_block(once, "", PLAN.folder) == OTHERS
    assert replace_block(once + once, "", PLAN.folder) == OTHERS * 2
    assert replace_block("", "", PLAN.folder) == ""
    assert replace_block("no newline", block, PLAN.folder) == f"no newline\n{block}\n"
