"""The schedule as text: interval, systemd units, cron lines. Accesses no files."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from pathlib import Path
from string import Template
from typing import Self

from batchscribe.errors import MisconfiguredError

UNIT = "batch-transcribe-scheduler"
TIMER, SERVICE = f"{UNIT}.timer", f"{UNIT}.service"
WATCHDOG = "batch-transcribe-watchdog"
WATCHDOG_TIMER, WATCHDOG_SERVICE = f"{WATCHDOG}.timer", f"{WATCHDOG}.service"
LANE = "batch-transcribe-lane"
LANE_PATH, LANE_SERVICE = f"{LANE}.path", f"{LANE}.service"
LANE_UNITS = (LANE_PATH, LANE_SERVICE)
UNITS = (TIMER, SERVICE, WATCHDOG_TIMER, WATCHDOG_SERVICE, *LANE_UNITS)
MARK = "# Written by `batchscribe install systemd`"
BEGIN, END = "# >>> batchscribe >>>", "# <<< batchscribe <<<"
CRON_LOG = "scheduler-cron.log"
CHECK_HOURS = "BATCH_SCHEDULER_CHECK_HOURS"
START_TIMEOUT = timedelta(hours=2)
"""Limit of a pass: none waits, a hanging one is killed earlier; enough to list 100 million keys."""
TAG_DIGITS = 8
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MINUTES = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
_MOST_RANDOM_SECONDS = 300
# Not for a GPU in this machine: the tick's processes transcribe there.
_LIMITS = "# The scheduler only polls: it needs few resources.\nCPUQuota=50%\nMemoryMax=2G"
_NO_LIMITS = "# The GPU is in this machine: no limits on CPU and memory."


@dataclass(frozen=True, slots=True)
class Interval:
    """Time between two ticks; one that both systemd and cron can express."""

    minutes: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses `30m`, `1h` or `1d`. Raises MisconfiguredError with the allowed intervals."""
        match = re.fullmatch(r"([1-9][0-9]{0,3})([mhd])", text.strip())
        minutes = int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]] if match else 0
        return cls._check_minutes(minutes, text)

    @classmethod
    def of_hours(cls, hours: float) -> Self:
        """Converts BATCH_SCHEDULER_CHECK_HOURS. Raises MisconfiguredError with the allowed intervals."""
        minutes = round(hours * 60)
        # A third of an hour is not exact in binary.
        exact = abs(minutes - hours * 60) < 1e-6
        return cls._check_minutes(minutes if exact else 0, f"{hours:g} h")

    @classmethod
    def _check_minutes(cls, minutes: int, text: str) -> Self:
        if minutes in _MINUTES or (minutes % 60 == 0 and minutes // 60 in _HOURS):
            return cls(minutes)
        allowed = ", ".join([f"{value}m" for value in _MINUTES] + [f"{value}h" for value in _HOURS])
        raise MisconfiguredError(f"a tick every {text} cannot be scheduled: use one of {allowed}")

    @property
    def hours(self) -> float:
        return self.minutes / 60

    @property
    def calendar(self) -> str:
        """Value of OnCalendar=."""
        if self.minutes < 60:
            return f"*:0/{self.minutes}"
        named = {60: "hourly", 1440: "daily"}
        return named.get(self.minutes, f"*-*-* 0/{self.minutes // 60}:00:00")

    @property
    def cron(self) -> str:
        """The five fields of a crontab line."""
        if self.minutes < 60:
            return f"*/{self.minutes} * * * *"
        named = {60: "0 * * * *", 1440: "0 0 * * *"}
        return named.get(self.minutes, f"0 */{self.minutes // 60} * * *")

    @property
    def random_delay(self) -> str:
        """Up to five minutes, and at most a sixth of the interval."""
        return _format_span(timedelta(seconds=min(_MOST_RANDOM_SECONDS, self.minutes * 10)))

    def __str__(self) -> str:
        return f"{self.minutes // 60}h" if self.minutes % 60 == 0 else f"{self.minutes}m"


WATCH_EVERY = Interval(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Parameters of a schedule: program, folder, user, interval."""

    executable: Path
    """The `batchscribe` of the virtual environment that runs `install`."""
    folder: Path
    """The folder of `.env`."""
    user: str
    interval: Interval
    calendar: str = ""
    """OnCalendar= of the tick, as the user gave it; empty: from the interval."""
    overrides_env: bool = False
    """The interval differs from `.env`, so the schedule passes it to the policy."""
    local_gpu: bool
    lane_requests: Path | None = None
    """Folder that the CPU lane's unit watches; None without a lane (BATCH_CPU_LANE)."""
    log_dir: Path

    @property
    def times(self) -> str:
        """Times of the tick, for messages."""
        return f"at {self.calendar}" if self.calendar else f"every {self.interval}"


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a project's units: tagged if another has the plain ones."""

    tag: str = ""

    @classmethod
    def tagged(cls, folder: Path) -> Self:
        """Names that are unique to a project's folder."""
        return cls(f"-{hashlib.sha256(str(folder).encode()).hexdigest()[:TAG_DIGITS]}")

    def of(self, unit: str) -> str:
        """Converts a plain name to this project's."""
        stem, _, kind = unit.rpartition(".")
        return f"{stem}{self.tag}.{kind}"

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(map(self.of, UNITS))


PLAIN = Names()


def render_units(plan: Plan, names: Names = PLAIN) -> dict[str, str]:
    """Texts of the units by file name, with the lane's if planned."""
    environment = f"Environment={CHECK_HOURS}={plan.interval.hours:.10g}\n" if plan.overrides_env else ""
    values = {
        "calendar": plan.calendar or plan.interval.calendar,
        "random_delay": plan.interval.random_delay,
        "user": plan.user,
        "folder": _escape_unit_path(plan.folder),
        "executable": _quote_program(plan.executable),
        "environment": environment,
        "start_timeout": _format_span(START_TIMEOUT),
        "watch_calendar": WATCH_EVERY.calendar,
        "limits": _NO_LIMITS if plan.local_gpu else _LIMITS,
        "requests": _escape_unit_path(plan.lane_requests) if plan.lane_requests else "",
    }
    folder, units = resources.files("batchscribe.deploy"), UNITS if plan.lane_requests else UNITS[:4]
    return {names.of(name): Template((folder / name).read_text("utf-8")).substitute(values) for name in units}


def find_unit_folder(text: str) -> Path | None:
    """Project folder in a service of ours; None for other texts."""
    found = re.search(r"^WorkingDirectory=(.+)$", text, re.MULTILINE)
    return Path(found[1].replace("%%", "%")) if found and text.startswith(MARK) else None


def render_cron(plan: Plan) -> str:
    """Our block of a crontab, without a final newline."""
    environment = f"{CHECK_HOURS}={plan.interval.hours:.10g} " if plan.overrides_env else ""
    commands = ((plan.interval, "tick --no-wait"), (WATCH_EVERY, "watchdog"))
    folder, program, log = map(_quote_cron_word, (plan.folder, plan.executable, plan.log_dir / CRON_LOG))
    lines = [
        f"{interval.cron} cd {folder} && {environment}{program} {command} >> {log} 2>&1"
        for interval, command in commands
    ]
    return "\n".join([BEGIN, *lines, END])


def replace_block(crontab: str, block: str, folder: Path) -> str:
    """Replaces the project's block in a crontab, or appends it.

    An empty block removes it. Blocks of other folders stay.
    """
    remaining = [f"{block}\n"] if block else []

    def replaced(found: re.Match[str]) -> str:
        if find_block_folder(found[0]) != folder:
            return found[0]
        return remaining.pop() if remaining else ""

    after = _BLOCK.sub(replaced, crontab)
    gap = "\n" if remaining and after and not after.endswith("\n") else ""
    return after + gap + "".join(remaining)


def find_blocks(crontab: str) -> dict[Path | None, str]:
    """Our blocks in a crontab by project folder."""
    return {find_block_folder(found[0]): found[0] for found in _BLOCK.finditer(crontab)}


def find_block_folder(block: str) -> Path | None:
    """The folder that the lines of a block change to."""
    found = re.search(r" cd (.+?) && ", block)
    try:
        return Path(*shlex.split(found[1].replace(r"\%", "%"))[:1]) if found else None
    except ValueError:
        return None


def _check_path(path: Path, forbidden: str = "\\") -> str:
    """An absolute path as text without line breaks, which would add lines."""
    text = str(path)
    if not path.is_absolute() or not text.isprintable() or any(character in text for character in forbidden):
        raise MisconfiguredError(
            f"{text!r} is not supported in a schedule: move it to an absolute path without control "
            f"characters and {' '.join(forbidden)}"
        )
    return text


def _escape_unit_path(path: Path) -> str:
    """A path for WorkingDirectory=: unquoted, with specifiers escaped."""
    return _check_path(path).replace("%", "%%")


def _quote_program(path: Path) -> str:
    """Quotes a program for ExecStart=, which allows no quotes and expands specifiers."""
    return '"' + _check_path(path, "\\\"'").replace("%", "%%") + '"'


def _quote_cron_word(path: Path) -> str:
    """Quotes a word for cron's shell; cron ends lines at bare `%`."""
    return shlex.quote(_check_path(path)).replace("%", r"\%")


def _format_span(length: timedelta) -> str:
    """A time span in systemd's format: `2h 30min`, `45s`."""
    seconds = round(length.total_seconds())
    parts = ((seconds // 3600, "h"), (seconds % 3600 // 60, "min"), (seconds % 60, "s"))
    return " ".join(f"{value}{unit}" for value, unit in parts if value) or "0"
