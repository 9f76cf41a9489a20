"""`batchscribe install` and `uninstall`: timers of systemd or lines of cron."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import click

from batchscribe.adapters.machine import installed
from batchscribe.adapters.machine.schedule import (
    CHECK_HOURS,
    CRON_LOG,
    SERVICE,
    TIMER,
    WATCH_EVERY,
    WATCHDOG_SERVICE,
    Interval,
    Plan,
    render_cron,
    render_units,
)
from batchscribe.cli.app import App, pass_app
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import DOTENV, ENVIRONMENT, Settings

every_option = click.option(
    "--every", metavar="INTERVAL", help=f"How often, such as 30m or 1h; wins over {CHECK_HOURS}."
)
print_option = click.option(
    "--print", "print_only", is_flag=True, help="Print the units or lines; change nothing."
)
unit_dir_option = click.option(
    "--unit-dir",
    type=click.Path(path_type=Path),
    default=installed.UNIT_DIR,
    show_default=True,
    help="Folder of systemd's units.",
)


@click.group()
def install() -> None:
    """Install the schedule of tick and watchdog."""


@install.command()
@every_option
@click.option("--user", help="User that runs it; default: the owner of .env, or of its folder.")
@print_option
@unit_dir_option
@pass_app
def systemd(app: App, every: str | None, user: str | None, unit_dir: Path, *, print_only: bool) -> None:
    """Install systemd timers and services of the tick and the watchdog."""
    plan = plan_of(app.settings, every=every, user=user)
    names = installed.names_of(plan.folder, unit_dir)
    units = render_units(plan, names)
    if print_only:
        for name, text in units.items():
            click.echo(f"# {unit_dir / name}\n{text}")
        return
    app.settings.required("BATCH_SOURCE")
    _print_lines(installed.install_units(units, unit_dir, names))
    _warn_about_shell_settings(app.settings)
    _print_lines(
        [
            *_interval_note(plan),
            f"A tick every {plan.interval} as {plan.user}, in {plan.folder}; a watchdog every {WATCH_EVERY}.",
            "  show timers: systemctl list-timers 'batch-transcribe-*'",
            f"  show logs:   journalctl -u {names.of(SERVICE)} -u {names.of(WATCHDOG_SERVICE)} -f",
            f"  stop ticks:  sudo systemctl stop {names.of(TIMER)}",
            f"  disable all: sudo systemctl disable --now {' '.join(names.timers)}",
            "  remove all:  batchscribe uninstall, in this folder",
            "  change:      run this again with another --every",
        ]
    )


@install.command()
@every_option
@click.option("--user", help="Owner of the crontab; default: you, as root the owner of .env.")
@print_option
@pass_app
def cron(app: App, every: str | None, user: str | None, *, print_only: bool) -> None:
    """Install crontab lines of the tick and the watchdog."""
    plan = plan_of(app.settings, every=every, user=user)
    block = render_cron(plan)
    if print_only:
        click.echo(block)
        return
    app.settings.required("BATCH_SOURCE")
    installed.make_cron_log(plan.log_dir / CRON_LOG, plan.user)
    owner = plan.user if _is_root() else user
    _print_lines(installed.install_cron(block, owner, plan.folder))
    _warn_about_shell_settings(app.settings)
    shown = f"`crontab -u {owner} -l`" if owner else "`crontab -l`"
    _print_lines(
        [
            *_interval_note(plan),
            f"A tick every {plan.interval}, a watchdog every {WATCH_EVERY}, in {plan.folder}. See {shown}.",
        ]
    )


@click.command()
@click.option("--user", help="Owner of the crontab; default: you, as root also the owner of .env.")
@unit_dir_option
def uninstall(user: str | None, unit_dir: Path) -> None:
    """Remove this folder's schedule; a running tick is not interrupted."""
    folder = Path.cwd()
    done = installed.uninstall_units(unit_dir, folder)
    crontabs = [None, _owner(folder)] if _is_root() and not user else [user]
    for owner in crontabs:
        done += installed.uninstall_cron(owner, folder)
    _print_lines(done or [f"nothing was installed for {folder}"])


def plan_of(settings: Settings, *, every: str | None, user: str | None) -> Plan:
    """Returns the plan.

    Raises MisconfiguredError for a bad interval or user, or a missing program.
    """
    interval = Interval.parse(every) if every else Interval.of_hours(settings.check_hours)
    name = user or _owner(settings.folder)
    installed.known_user(name)
    return Plan(
        executable=_executable(),
        folder=settings.folder,
        user=name,
        interval=interval,
        # The scheduled tick's policy reads .env only: an interval from elsewhere goes into the schedule.
        told=every is not None or settings.origins[CHECK_HOURS] == ENVIRONMENT,
        local_gpu=settings.provider == "local",
        log_dir=settings.log_dir,
    )


def _is_root() -> bool:
    """True under `sudo`: the installation then belongs to the owner of `.env`."""
    return os.geteuid() == 0


def _owner(folder: Path) -> str:
    dotenv = folder / DOTENV
    return installed.owner(dotenv if dotenv.exists() else folder)


def _executable() -> Path:
    path = Path(sysconfig.get_path("scripts")) / "batchscribe"
    if not path.exists():
        raise MisconfiguredError(f"{path} is missing: install batchscribe into this Python first")
    return path


def _warn_about_shell_settings(settings: Settings) -> None:
    """Warns about settings of this shell: the schedule reads only `.env`."""
    names = [
        name for name, origin in settings.origins.items() if origin == ENVIRONMENT and name != CHECK_HOURS
    ]
    if names:
        click.echo(
            f"warning: the schedule does not read your shell; put into {settings.folder / DOTENV}: "
            f"{', '.join(names)}",
            err=True,
        )


def _interval_note(plan: Plan) -> list[str]:
    if not plan.told:
        return []
    return [f"{CHECK_HOURS}={plan.interval.hours:g} is set in the schedule, and wins over .env there."]


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
