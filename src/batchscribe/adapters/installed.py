"""The schedule on this machine: units in systemd's folder, a block in a crontab.

Only what batchscribe wrote is replaced or removed; a unit of the same name from elsewhere is kept aside.
Every function says in lines what it did, and can be repeated.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from batchscribe.adapters.schedule import BEGIN, END, MARK, TIMER, TIMERS, UNITS, WATCHDOG_TIMER, with_block
from batchscribe.errors import MisconfiguredError
from batchscribe.private_files import FILE, make_folder

UNIT_DIR = Path("/etc/systemd/system")
_PATIENCE_SECONDS = 60
_NO_WATCHDOG = "no watchdog: run `batchscribe install"


def install_units(units: Mapping[str, str], unit_dir: Path) -> list[str]:
    """Writes the units, and starts the timers. Raises MisconfiguredError where that is not possible."""
    done = [line for name, text in units.items() for line in _write_unit(unit_dir / name, text)]
    _call("systemctl", "daemon-reload")
    _call("systemctl", "enable", "--now", *TIMERS)
    if done:
        _call("systemctl", "restart", *TIMERS)
    active = [f"{timer} is enabled and active" for timer in TIMERS]
    return [*(done or ["the units are as they were"]), *active]


def uninstall_units(unit_dir: Path) -> list[str]:
    """Stops and removes the units that batchscribe wrote. A tick that is under way ends in its own time."""
    ours = [path for path in (unit_dir / name for name in UNITS) if _is_ours(path)]
    if not ours:
        return []
    timers = [path.name for path in ours if path.name in TIMERS]
    if timers:
        _call("systemctl", "disable", "--now", *timers)
    for path in ours:
        _told(path, path.unlink)
    _call("systemctl", "daemon-reload")
    return [f"removed {path}" for path in ours]


def install_cron(block: str, user: str | None) -> list[str]:
    """Puts the block into the crontab of `user` (None: one's own). Raises MisconfiguredError."""
    before = _crontab(user)
    after = with_block(before, block)
    if after == before:
        return ["the crontab is as it was"]
    _call("crontab", *_for(user), "-", given=after)
    return [f"wrote a block into the crontab{f' of {user}' if user else ''}"]


def uninstall_cron(user: str | None) -> list[str]:
    """Takes the block out of the crontab, and leaves all else in it as it is."""
    if shutil.which("crontab") is None:
        return []
    before = _crontab(user)
    after = with_block(before, "")
    if after == before:
        return []
    _call("crontab", *_for(user), "-", given=after)
    return [f"removed the block from the crontab{f' of {user}' if user else ''}"]


def on_schedule(unit_dir: Path = UNIT_DIR) -> str:
    """What brings the next tick, in a few words; never an error, since it is only looked at."""
    try:
        if _is_ours(unit_dir / TIMER):
            state, following = _timer(TIMER)
            coming = f", next {following}" if following else ""
            return f"systemd timer, {state}{coming}; {_watchdog(unit_dir)}"
        if shutil.which("crontab") and BEGIN in (table := _crontab(None)):
            block = table.partition(BEGIN)[2].partition(END)[0]
            watched = "" if " watchdog >>" in block else f"; {_NO_WATCHDOG} cron`"
            return f"a line in your crontab{watched}"
    except (MisconfiguredError, OSError) as error:
        return f"unknown: {error}"
    return "none: `batchscribe install systemd` or `install cron`"


def _timer(name: str) -> tuple[str, str]:
    """Whether a timer is active, and when it comes next; empty where systemd does not say."""
    shown = _run("systemctl", "show", name, "--property=ActiveState,NextElapseUSecRealtime")
    facts = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    return facts.get("ActiveState", "unknown"), facts.get("NextElapseUSecRealtime", "")


def _watchdog(unit_dir: Path) -> str:
    if not _is_ours(unit_dir / WATCHDOG_TIMER):
        return f"{_NO_WATCHDOG} systemd`"
    return f"watchdog {_timer(WATCHDOG_TIMER)[0]}"


def make_cron_log(log: Path, user: str) -> None:
    """Creates the file that cron appends to, and its folder, for the user alone: the shell that cron starts
    would create a file that all can read.
    """
    made: list[Path] = []
    _told(log.parent, lambda: made.extend(make_folder(log.parent)))
    _told(log, lambda: made.extend(_created(log)))
    if os.geteuid() == 0:
        account = known_user(user)
        for path in made:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _created(path: Path) -> list[Path]:
    """Creates an empty file if nothing has that name; no link is followed."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE))
    except FileExistsError:
        return []
    return [path]


def owner(path: Path) -> str:
    """The user that a file belongs to, by name."""
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except KeyError:
        raise MisconfiguredError(f"the owner of {path} has no name here: say --user NAME") from None


def known_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise MisconfiguredError(f"there is no user {name!r} on this machine: say --user NAME") from None


def _write_unit(path: Path, text: str) -> list[str]:
    before = _text(path)
    if before == text:
        return []
    aside = []
    if before and not before.startswith(MARK):
        kept = path.with_name(path.name + ".before-batchscribe")
        _told(kept, lambda: kept.write_text(before, encoding="utf-8"))
        aside = [f"kept the {path.name} that was there as {kept.name}"]
    fresh = path.with_name(f".{path.name}.new")
    _told(path, lambda: fresh.write_text(text, encoding="utf-8"))
    _told(path, lambda: fresh.chmod(0o644))
    _told(path, lambda: fresh.replace(path))
    return [*aside, f"wrote {path}"]


def _is_ours(path: Path) -> bool:
    return (_text(path) or "").startswith(MARK)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path} cannot be read: {error}") from error


def _told(path: Path, act: Callable[[], object]) -> None:
    try:
        act()
    except PermissionError as error:
        raise MisconfiguredError(f"{path} may not be written: run this again with sudo") from error
    except OSError as error:
        raise MisconfiguredError(f"{path} cannot be written ({error.strerror})") from error


def _crontab(user: str | None) -> str:
    """The crontab as it is; empty where there is none."""
    try:
        ended = _run("crontab", *_for(user), "-l")
    except FileNotFoundError:
        raise MisconfiguredError(
            "there is no crontab on this machine: install cron, or use systemd"
        ) from None
    if ended.returncode == 0:
        return ended.stdout
    if "no crontab for" in ended.stderr:
        return ""
    raise MisconfiguredError(f"the crontab cannot be read: {_first_line(ended.stderr)}")


def _for(user: str | None) -> tuple[str, ...]:
    return ("-u", user) if user else ()


def _call(*command: str, given: str | None = None) -> None:
    try:
        ended = _run(*command, given=given)
    except FileNotFoundError:
        raise MisconfiguredError(
            f"there is no {command[0]} on this machine: use `batchscribe install cron`"
        ) from None
    if ended.returncode:
        raise MisconfiguredError(
            f"`{' '.join(command)}` failed ({_first_line(ended.stderr)}): is sudo missing?"
        )


def _run(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise MisconfiguredError(f"`{' '.join(command)}` gave no answer in {_PATIENCE_SECONDS} s") from None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "no word about why"
