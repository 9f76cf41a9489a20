"""Installs and removes the schedule, as systemd units or crontab block.

Several projects may be scheduled on one machine, identified by their folders; none changes another's.
Only files written by batchscribe are replaced or removed; a foreign unit of the same name is kept as a copy.
Every function returns lines about what it did, and can be repeated.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from batchscribe.adapters.machine.schedule import (
    LANE_PATH,
    MARK,
    PLAIN,
    SERVICE,
    TIMER,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
    Names,
    find_blocks,
    find_unit_folder,
    replace_block,
)
from batchscribe.errors import MisconfiguredError
from batchscribe.private_files import FILE, make_folder

UNIT_DIR = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")
"""A folder that exists if systemd manages this machine (sd_booted(3))."""
_ENABLED = {".timer": "timers.target.wants", ".path": "paths.target.wants"}
"""The folders, beside the units, of links to enabled units that start services."""
_TIMEOUT_SECONDS = 60
_NO_WATCHDOG = "no watchdog: run `batchscribe install"


def find_names(folder: Path, unit_dir: Path) -> Names:
    """Unit names of the project in that folder.

    They are its own ones, else the plain ones if these are free.
    """
    tagged = Names.tagged(folder)
    for names in (PLAIN, tagged):
        if folder in _find_project_folders(names, unit_dir):
            return names
    return tagged if _find_project_folders(PLAIN, unit_dir) else PLAIN


def _find_project_folders(names: Names, unit_dir: Path) -> set[Path]:
    """Folders of the projects whose services have these names."""
    texts = (_read_text(unit_dir / names.of(service)) or "" for service in (SERVICE, WATCHDOG_SERVICE))
    return {folder for text in texts if (folder := find_unit_folder(text))}


def install_units(units: Mapping[str, str], unit_dir: Path, names: Names) -> list[str]:
    """Writes the units and starts the timers.

    Removes the CPU lane's units if they are not among `units`. Raises MisconfiguredError if that fails, and
    before any change on a machine without systemd.
    """
    if not _has_systemd():
        raise MisconfiguredError(
            "systemd does not run on this machine, so nothing was changed: use `batchscribe install "
            "cron`, or a machine that systemd has booted"
        )
    done = _remove_units([unit_dir / name for name in names.units if name not in units])
    done += [line for name, text in units.items() for line in _write_unit(unit_dir / name, text)]
    starters = [name for name in units if _is_starter(name)]
    _run_checked("systemctl", "daemon-reload")
    _run_checked("systemctl", "enable", "--now", *starters)
    if done:
        _run_checked("systemctl", "restart", *starters)
    active = [f"{starter} is enabled and active" for starter in starters]
    return [*(done or ["the units are unchanged"]), *active]


def uninstall_units(unit_dir: Path, folder: Path) -> list[str]:
    """Stops and removes the units of the project in `folder`.

    Without systemd, only their files are removed. A running tick is not interrupted.
    """
    names = find_names(folder, unit_dir)
    if folder not in _find_project_folders(names, unit_dir):
        return []
    removed = _remove_units([unit_dir / name for name in names.units])
    if _has_systemd():
        _run_checked("systemctl", "daemon-reload")
    return removed


def _remove_units(paths: Iterable[Path]) -> list[str]:
    """Stops and removes our units among `paths`; returns lines about them."""
    ours = [path for path in paths if _is_ours(path)]
    starters = [path for path in ours if _is_starter(path.name)]
    if starters and _has_systemd():
        _run_checked("systemctl", "disable", "--now", *(path.name for path in starters))
    links = [path.parent / _ENABLED[path.suffix] / path.name for path in starters]
    for path in (*ours, *links):
        with _convert_write_errors(path):
            path.unlink(missing_ok=True)
    return [f"removed {path}" for path in ours]


def _is_starter(unit: str) -> bool:
    """True if the unit starts the service of its name."""
    return Path(unit).suffix in _ENABLED


def has_lane_unit(folder: Path, unit_dir: Path = UNIT_DIR) -> bool:
    """True if systemd starts the CPU lane of the project in `folder`."""
    try:
        names = find_names(folder, unit_dir)
        return _has_systemd() and _is_ours(unit_dir / names.of(LANE_PATH))
    except MisconfiguredError:
        return False


def check_calendar(text: str) -> None:
    """Raises MisconfiguredError unless systemd accepts the calendar."""
    if shutil.which("systemd-analyze") is None:
        raise MisconfiguredError("systemd-analyze is missing, so --calendar cannot be checked: use --every")
    ended = _run_command("systemd-analyze", "calendar", "--", text)
    if ended.returncode or not text.isprintable():
        raise MisconfiguredError(
            f"{text!r} is no calendar of systemd ({_first_line(ended.stderr)}): nothing was changed; see "
            "`man systemd.time`"
        )


def _has_systemd() -> bool:
    return BOOTED.is_dir() and shutil.which("systemctl") is not None


def install_cron(block: str, user: str | None, folder: Path) -> list[str]:
    """Writes the block to a crontab (`user` None: ours). Raises MisconfiguredError."""
    if not _replace_block(user, block, folder):
        return ["the crontab is unchanged"]
    return [f"wrote a block to the crontab{f' of {user}' if user else ''}"]


def uninstall_cron(user: str | None, folder: Path) -> list[str]:
    """Removes the project's block from the crontab; the rest stays."""
    if shutil.which("crontab") is None or not _replace_block(user, "", folder):
        return []
    return [f"removed the block from the crontab{f' of {user}' if user else ''}"]


def _replace_block(user: str | None, block: str, folder: Path) -> bool:
    """Replaces the project's block in the crontab; True if that changed it."""
    before = _read_crontab(user)
    after = replace_block(before, block, folder)
    if after != before:
        _run_checked("crontab", *_user_option(user), "-", given=after)
    return after != before


def describe_schedule(folder: Path, unit_dir: Path = UNIT_DIR) -> str:
    """Describes what starts the project's next tick. Never raises."""
    others: set[Path] = set()
    try:
        names = find_names(folder, unit_dir)
        others |= _find_project_folders(PLAIN, unit_dir) - {folder}
        if folder in _find_project_folders(names, unit_dir) and _is_ours(unit_dir / names.of(TIMER)):
            state, following = _query_timer(names.of(TIMER))
            coming = f", next {following}" if following else ""
            return f"systemd timer, {state}{coming}; {_describe_watchdog(unit_dir, names)}"
        found = find_blocks(_read_crontab(None)) if shutil.which("crontab") else {}
        others |= {other for other in found if other} - {folder}
        if folder in found:
            watched = "" if " watchdog >>" in found[folder] else f"; {_NO_WATCHDOG} cron`"
            return f"a line in your crontab{watched}"
    except (MisconfiguredError, OSError) as error:
        return f"unknown: {error}"
    elsewhere = f" (another project is scheduled here: {min(others)})" if others else ""
    return f"none: `batchscribe install systemd` or `install cron`{elsewhere}"


def _query_timer(name: str) -> tuple[str, str]:
    """State and next start of a timer; empty if not reported."""
    shown = _run_command("systemctl", "show", name, "--property=ActiveState,NextElapseUSecRealtime")
    facts = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    return facts.get("ActiveState", "unknown"), facts.get("NextElapseUSecRealtime", "")


def _describe_watchdog(unit_dir: Path, names: Names) -> str:
    timer = names.of(WATCHDOG_TIMER)
    if not _is_ours(unit_dir / timer):
        return f"{_NO_WATCHDOG} systemd`"
    return f"watchdog {_query_timer(timer)[0]}"


def make_cron_log(log: Path, user: str) -> None:
    """Creates cron's log file and its folder, readable by the user only.

    The shell that cron starts would create a file that all can read.
    """
    with _convert_write_errors(log.parent):
        made = make_folder(log.parent)
    with _convert_write_errors(log), suppress(FileExistsError):
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE))
        made.append(log)
    if os.geteuid() == 0:
        account = find_user(user)
        for path in made:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def find_owner(path: Path) -> str:
    """Name of the user that owns a file."""
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except KeyError:
        raise MisconfiguredError(f"the owner of {path} is not a known user: use --user NAME") from None


def find_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise MisconfiguredError(f"there is no user {name!r} on this machine: use --user NAME") from None


def _write_unit(path: Path, text: str) -> list[str]:
    before = _read_text(path)
    if before == text:
        return []
    aside = []
    if before and not before.startswith(MARK):
        kept = path.with_name(path.name + ".before-batchscribe")
        with _convert_write_errors(kept):
            kept.write_text(before, encoding="utf-8")
        aside = [f"kept the previous {path.name} as {kept.name}"]
    fresh = path.with_name(f".{path.name}.new")
    with _convert_write_errors(path):
        fresh.write_text(text, encoding="utf-8")
        fresh.chmod(0o644)
        fresh.replace(path)
    return [*aside, f"wrote {path}"]


def _is_ours(path: Path) -> bool:
    return (_read_text(path) or "").startswith(MARK)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path} cannot be read: {error}") from error


@contextmanager
def _convert_write_errors(path: Path) -> Iterator[None]:
    """Converts OSErrors of a block that writes `path` to MisconfiguredError."""
    try:
        yield
    except PermissionError as error:
        raise MisconfiguredError(f"no permission to write {path}: run this again with sudo") from error
    except OSError as error:
        raise MisconfiguredError(f"{path} cannot be written ({error.strerror})") from error


def _read_crontab(user: str | None) -> str:
    """The present crontab; empty if there is none."""
    try:
        ended = _run_command("crontab", *_user_option(user), "-l")
    except FileNotFoundError:
        raise MisconfiguredError(
            "there is no crontab on this machine: install cron, or use systemd"
        ) from None
    if ended.returncode == 0:
        return ended.stdout
    if "no crontab for" in ended.stderr:
        return ""
    raise MisconfiguredError(f"the crontab cannot be read: {_first_line(ended.stderr)}")


def _user_option(user: str | None) -> tuple[str, ...]:
    return ("-u", user) if user else ()


def _run_checked(*command: str, given: str | None = None) -> None:
    ended = _run_command(*command, given=given)
    if ended.returncode:
        hint = ": is sudo missing?" if os.geteuid() else ""
        raise MisconfiguredError(f"`{' '.join(command)}` failed ({_first_line(ended.stderr)}){hint}")


def _run_command(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise MisconfiguredError(f"`{' '.join(command)}` did not end within {_TIMEOUT_SECONDS} s") from None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "no reason given"
