"""`batchscribe install` and `uninstall`: timers of systemd or lines of cron."""

from __future__ import annotations

from pathlib import Path

import click

from batchscribe.cli.app import App, pass_app, print_warning
from batchscribe.settings import DOTENV, ENVIRONMENT, Settings
from batchscribe.wiring import install as schedules
from batchscribe.wiring.install import (
    CHECK_HOURS,
    LANE_SERVICE,
    UNIT_DIR,
    WATCH_EVERY,
    is_root,
    make_plan,
    render_plan,
)

every_option = click.option(
    "--every", metavar="INTERVAL", help=f"How often, such as 30m or 1h; wins over {CHECK_HOURS}."
)
print_option = click.option(
    "--print", "print_only", is_flag=True, help="Print the units or lines; change nothing."
)
unit_dir_option = click.option(
    "--unit-dir",
    type=click.Path(path_type=Path),
    default=UNIT_DIR,
    show_default=True,
    help="Folder of systemd's units.",
)


@click.group()
def install() -> None:
    """Install the schedule of tick and watchdog."""


@install.command()
@every_option
@click.option("--calendar", metavar="SPEC", default="", help="OnCalendar of systemd instead of an interval.")
@click.option("--user", help="User that runs it; default: the owner of .env, or of its folder.")
@print_option
@unit_dir_option
@pass_app
def systemd(
    app: App, every: str | None, calendar: str, user: str | None, unit_dir: Path, *, print_only: bool
) -> None:
    """Install systemd timers and services of the tick and the watchdog."""
    if every and calendar:
        raise click.UsageError("--every and --calendar exclude each other")
    plan = make_plan(app.settings, every=every, user=user, calendar=calendar)
    names, units = render_plan(plan, unit_dir)
    timer, service, _watch_timer, watch_service = names.units[:4]
    starters = [name for name in units if not name.endswith(".service")]
    if print_only:
        for name, text in units.items():
            click.echo(f"# {unit_dir / name}\n{text}")
        return
    app.settings.require("BATCH_SOURCE")
    _print_lines(schedules.install_units(units, unit_dir, names))
    _warn_about_shell_settings(app.settings)
    _print_lines(
        [
            *([_interval_note(plan.interval.hours)] if plan.overrides_env else []),
            f"A tick {plan.times} as {plan.user}, in {plan.folder}; a watchdog every {WATCH_EVERY}.",
            *([f"The CPU lane works in {names.of(LANE_SERVICE)}."] if plan.lane_requests else []),
            *([f"Set {CHECK_HOURS} to the longest time between two ticks."] if calendar else []),
            "  show timers: systemctl list-timers 'batch-transcribe-*'",
            f"  show logs:   journalctl -u {service} -u {watch_service} -f",
            f"  stop ticks:  sudo systemctl stop {timer}",
            f"  disable all: sudo systemctl disable --now {' '.join(starters)}",
            "  remove all:  batchscribe uninstall, in this folder",
            "  change:      run this again with another --every or --calendar",
        ]
    )


@install.command()
@every_option
@click.option("--user", help="Owner of the crontab; default: you, as root the owner of .env.")
@print_option
@pass_app
def cron(app: App, every: str | None, user: str | None, *, print_only: bool) -> None:
    """Install crontab lines of the tick and the watchdog."""
    plan = make_plan(app.settings, every=every, user=user)
    block = schedules.render_cron(plan)
    if print_only:
        click.echo(block)
        return
    app.settings.require("BATCH_SOURCE")
    owner = plan.user if is_root() else user
    _print_lines(schedules.install_cron(plan, owner))
    _warn_about_shell_settings(app.settings)
    shown = f"`crontab -u {owner} -l`" if owner else "`crontab -l`"
    _print_lines(
        [
            *([_interval_note(plan.interval.hours)] if plan.overrides_env else []),
            f"A tick every {plan.interval}, a watchdog every {WATCH_EVERY}, in {plan.folder}. See {shown}.",
        ]
    )


@click.command()
@click.option("--user", help="Owner of the crontab; default: you, as root also the owner of .env.")
@unit_dir_option
def uninstall(user: str | None, unit_dir: Path) -> None:
    """Remove this folder's schedule; a running tick is not interrupted."""
    folder = Path.cwd()
    done = schedules.uninstall(folder, unit_dir, user)
    _print_lines(done or [f"nothing was installed for {folder}"])


def _warn_about_shell_settings(settings: Settings) -> None:
    """Warns about settings of this shell: the schedule reads only `.env`."""
    names = [
        name for name, origin in settings.origins.items() if origin == ENVIRONMENT and name != CHECK_HOURS
    ]
    if names:
        print_warning(
            f"the schedule does not read your shell; put into {settings.folder / DOTENV}: {', '.join(names)}"
        )


def _interval_note(hours: float) -> str:
    return f"{CHECK_HOURS}={hours:g} is set in the schedule, and wins over .env there."


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
