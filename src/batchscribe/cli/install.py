"""`batchscribe install` and `uninstall`: the schedule, on systemd or on cron."""

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
print_option = click.option("--print", "print_only", is_flag=True, help="Show it, and change nothing.")
unit_dir_option = click.option(
    "--unit-dir",
    type=click.Path(path_type=Path),
    default=installed.UNIT_DIR,
    show_default=True,
    help="Where systemd looks for units.",
)


@click.group()
def install() -> None:
    """Put the scheduler on a schedule."""


@install.command()
@every_option
@click.option("--user", help="As whom it runs; default: the owner of .env, or of its folder.")
@print_option
@unit_dir_option
@pass_app
def systemd(app: App, every: str | None, user: str | None, unit_dir: Path, *, print_only: bool) -> None:
    """Timers and services of systemd: the tick's, and its watchdog's."""
    plan = plan_of(app.settings, every=every, user=user)
    names = installed.names_of(plan.folder, unit_dir)
    units = render_units(plan, names)
    if print_only:
        for name, text in units.items():
            click.echo(f"# {unit_dir / name}\n{text}")
        return
    app.settings.required("BATCH_SOURCE")
    _say(installed.install_units(units, unit_dir, names))
    _say_what_is_unseen(app.settings)
    _say(
        [
            *_what_is_told(plan),
            f"A tick every {plan.interval} as {plan.user}, in {plan.folder}; a watchdog every {WATCH_EVERY}.",
            "  see them:    systemctl list-timers 'batch-transcribe-*'",
            f"  their logs:  journalctl -u {names.of(SERVICE)} -u {names.of(WATCHDOG_SERVICE)} -f",
            f"  stop ticks:  sudo systemctl stop {names.of(TIMER)}",
            f"  disable all: sudo systemctl disable --now {' '.join(names.timers)}",
            "  remove it:   batchscribe uninstall, in this folder",
            "  change it:   run this again with another --every",
        ]
    )


@install.command()
@every_option
@click.option("--user", help="Whose crontab; default: your own, as root that of the owner of .env.")
@print_option
@pass_app
def cron(app: App, every: str | None, user: str | None, *, print_only: bool) -> None:
    """Lines in a crontab: the tick's, and its watchdog's."""
    plan = plan_of(app.settings, every=every, user=user)
    block = render_cron(plan)
    if print_only:
        click.echo(block)
        return
    app.settings.required("BATCH_SOURCE")
    installed.make_cron_log(plan.log_dir / CRON_LOG, plan.user)
    whose = plan.user if _as_root() else user
    _say(installed.install_cron(block, whose, plan.folder))
    _say_what_is_unseen(app.settings)
    shown = f"`crontab -u {whose} -l`" if whose else "`crontab -l`"
    _say(
        [
            *_what_is_told(plan),
            f"A tick every {plan.interval}, a watchdog every {WATCH_EVERY}, in {plan.folder}. See {shown}.",
        ]
    )


@click.command()
@click.option("--user", help="Whose crontab; default: your own, as root also that of the owner of .env.")
@unit_dir_option
def uninstall(user: str | None, unit_dir: Path) -> None:
    """Take this folder's scheduler off its schedule; a tick that is under way ends in its own time."""
    folder = Path.cwd()
    done = installed.uninstall_units(unit_dir, folder)
    crontabs = [None, _owner(folder)] if _as_root() and not user else [user]
    for whose in crontabs:
        done += installed.uninstall_cron(whose, folder)
    _say(done or [f"nothing was installed for {folder}"])


def plan_of(settings: Settings, *, every: str | None, user: str | None) -> Plan:
    """What to install. Raises MisconfiguredError for an interval, a user or a program that is not there."""
    interval = Interval.parse(every) if every else Interval.of_hours(settings.check_hours)
    name = user or _owner(settings.folder)
    installed.known_user(name)
    return Plan(
        executable=_executable(),
        folder=settings.folder,
        user=name,
        interval=interval,
        # Whatever does not stand in .env would be unknown to the policy of the scheduled tick.
        told=every is not None or settings.origins[CHECK_HOURS] == ENVIRONMENT,
        local_gpu=settings.provider == "local",
        log_dir=settings.log_dir,
    )


def _as_root() -> bool:
    """Whether `sudo` was said: what is installed then belongs to the owner of `.env`, not to root."""
    return os.geteuid() == 0


def _owner(folder: Path) -> str:
    dotenv = folder / DOTENV
    return installed.owner(dotenv if dotenv.exists() else folder)


def _executable() -> Path:
    path = Path(sysconfig.get_path("scripts")) / "batchscribe"
    if not path.exists():
        raise MisconfiguredError(f"{path} is missing: install batchscribe into this Python first")
    return path


def _say_what_is_unseen(settings: Settings) -> None:
    """Settings of this shell end with it: the schedule reads `.env` alone."""
    names = [
        name for name, origin in settings.origins.items() if origin == ENVIRONMENT and name != CHECK_HOURS
    ]
    if names:
        click.echo(
            f"warning: the schedule does not see your shell; put into {settings.folder / DOTENV}: "
            f"{', '.join(names)}",
            err=True,
        )


def _what_is_told(plan: Plan) -> list[str]:
    if not plan.told:
        return []
    return [f"{CHECK_HOURS}={plan.interval.hours:g} stands in the schedule: there it wins over .env."]


def _say(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
