"""The schedule of a project: units of systemd or lines of cron."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from batchscribe.adapters.local.lane import find_requests
from batchscribe.adapters.machine import installed, schedule
from batchscribe.adapters.machine.schedule import Interval, Names, Plan
from batchscribe.core.decide.offers import LOCAL
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import DOTENV, ENVIRONMENT, Settings

CHECK_HOURS, WATCH_EVERY = schedule.CHECK_HOURS, schedule.WATCH_EVERY
LANE_SERVICE = schedule.LANE_SERVICE
UNIT_DIR = installed.UNIT_DIR
install_units, render_cron = installed.install_units, schedule.render_cron


def describe_schedule(settings: Settings) -> str:
    """Describes what starts the next tick of the project. Never raises."""
    found = installed.describe_schedule(settings.folder)
    if settings.state_url and found.startswith("none"):
        return f"not on this machine: its state is in {settings.state_url}"
    return found


def make_plan(settings: Settings, *, every: str | None, user: str | None, calendar: str = "") -> Plan:
    """Returns the plan.

    Raises MisconfiguredError for a bad interval, calendar or user, or a missing program.
    """
    if calendar:
        installed.check_calendar(calendar)
    interval = Interval.parse(every) if every else Interval.of_hours(settings.check_hours)
    name = user or _find_owner(settings.folder)
    installed.find_user(name)
    executable = Path(sysconfig.get_path("scripts")) / "batchscribe"
    if not executable.exists():
        raise MisconfiguredError(f"{executable} is missing: install batchscribe into this Python first")
    return Plan(
        executable=executable,
        folder=settings.folder,
        user=name,
        interval=interval,
        calendar=calendar,
        # The scheduled tick's policy reads .env only: an interval from elsewhere goes into the schedule.
        overrides_env=every is not None or settings.origins[CHECK_HOURS] == ENVIRONMENT,
        local_gpu=settings.provider == LOCAL,
        lane_requests=find_requests(settings.state_dir) if settings.has_lane else None,
        log_dir=settings.log_dir,
    )


def render_plan(plan: Plan, unit_dir: Path) -> tuple[Names, dict[str, str]]:
    """(names of the plan's units, their texts by file name)."""
    names = installed.find_names(plan.folder, unit_dir)
    return names, schedule.render_units(plan, names)


def install_cron(plan: Plan, owner: str | None) -> list[str]:
    """Writes the plan's lines to the crontab of `owner`; creates their log."""
    installed.make_cron_log(plan.log_dir / schedule.CRON_LOG, plan.user)
    return installed.install_cron(render_cron(plan), owner, plan.folder)


def uninstall(folder: Path, unit_dir: Path, user: str | None) -> list[str]:
    """Removes units and lines of the project in that folder."""
    done = installed.uninstall_units(unit_dir, folder)
    crontabs = [None, _find_owner(folder)] if is_root() and not user else [user]
    return done + [line for owner in crontabs for line in installed.uninstall_cron(owner, folder)]


def is_root() -> bool:
    """True under `sudo`: the installation then belongs to the owner of `.env`."""
    return os.geteuid() == 0


def _find_owner(folder: Path) -> str:
    dotenv = folder / DOTENV
    return installed.find_owner(dotenv if dotenv.exists() else folder)
