"""The schedule as text: an interval, the units of systemd, the lines for cron. No file is touched here."""

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
TIMERS = (TIMER, WATCHDOG_TIMER)
UNITS = (TIMER, SERVICE, WATCHDOG_TIMER, WATCHDOG_SERVICE)
MARK = "# Written by `batchscribe install systemd`"
BEGIN, END = "# >>> batchscribe >>>", "# <<< batchscribe <<<"
CRON_LOG = "scheduler-cron.log"
CHECK_HOURS = "BATCH_SCHEDULER_CHECK_HOURS"
START_TIMEOUT = timedelta(hours=2)
"""Of a pass: none waits, and one that hangs is killed long before; a listing of 100 million keys fits."""
TAG_DIGITS = 8
TAGGED_SERVICE = re.compile(rf"{UNIT}-[0-9a-f]{{{TAG_DIGITS}}}\.service")
_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_MINUTES = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)
_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
_MOST_RANDOM_SECONDS = 300
# These would let a tick crawl where its own process does the speech recognition.
_LIMITS = "# The scheduler only watches: it needs little.\nCPUQuota=50%\nMemoryMax=2G"
_NO_LIMITS = "# The GPU is this machine: no cap on its processor or memory."


@dataclass(frozen=True, slots=True)
class Interval:
    """How often a tick is due; one of the intervals that both systemd and cron can say."""

    minutes: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `30m`, `1h` or `1d`. Raises MisconfiguredError with what is allowed."""
        match = re.fullmatch(r"([1-9][0-9]{0,3})([mhd])", text.strip())
        minutes = int(match[1]) * {"m": 1, "h": 60, "d": 1440}[match[2]] if match else 0
        return cls._allowed(minutes, text)

    @classmethod
    def of_hours(cls, hours: float) -> Self:
        """From BATCH_SCHEDULER_CHECK_HOURS. Raises MisconfiguredError with what is allowed."""
        minutes = round(hours * 60)
        # A third of an hour is not exact in binary.
        exact = abs(minutes - hours * 60) < 1e-6
        return cls._allowed(minutes if exact else 0, f"{hours:g} h")

    @classmethod
    def _allowed(cls, minutes: int, text: str) -> Self:
        if minutes in _MINUTES or (minutes % 60 == 0 and minutes // 60 in _HOURS):
            return cls(minutes)
        allowed = ", ".join([f"{value}m" for value in _MINUTES] + [f"{value}h" for value in _HOURS])
        raise MisconfiguredError(f"a tick every {text} is no schedule of even steps: allowed is {allowed}")

    @property
    def hours(self) -> float:
        return self.minutes / 60

    @property
    def calendar(self) -> str:
        """For OnCalendar=."""
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
        """Up to five minutes, and never more than a sixth of the interval."""
        return _span(timedelta(seconds=min(_MOST_RANDOM_SECONDS, self.minutes * 10)))

    def __str__(self) -> str:
        return f"{self.minutes // 60}h" if self.minutes % 60 == 0 else f"{self.minutes}m"


WATCH_EVERY = Interval(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to run, where, as whom and how often."""

    executable: Path
    """The `batchscribe` of the virtual environment that is installed from."""
    folder: Path
    """Where `.env` lies."""
    user: str
    interval: Interval
    told: bool = False
    """The interval is not the one of `.env`, so the schedule tells it to the policy."""
    local_gpu: bool
    log_dir: Path


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one project's units: plain ones, or with a tag if another project has those."""

    tag: str = ""

    @classmethod
    def tagged(cls, folder: Path) -> Self:
        """The names that no other project's folder gives."""
        return cls(f"-{hashlib.sha256(str(folder).encode()).hexdigest()[:TAG_DIGITS]}")

    def of(self, unit: str) -> str:
        """From a plain name to this project's."""
        stem, _, kind = unit.rpartition(".")
        return f"{stem}{self.tag}.{kind}"

    @property
    def timers(self) -> tuple[str, ...]:
        return tuple(map(self.of, TIMERS))

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(map(self.of, UNITS))


PLAIN = Names()


def render_units(plan: Plan, names: Names = PLAIN) -> dict[str, str]:
    """The texts of the timers and the services by their file names."""
    told = f"Environment={CHECK_HOURS}={plan.interval.hours:.10g}\n" if plan.told else ""
    values = {
        "calendar": plan.interval.calendar,
        "random_delay": plan.interval.random_delay,
        "user": plan.user,
        "folder": _unit_path(plan.folder),
        "executable": _quoted(plan.executable),
        "environment": told,
        "start_timeout": _span(START_TIMEOUT),
        "watch_calendar": WATCH_EVERY.calendar,
        "limits": _NO_LIMITS if plan.local_gpu else _LIMITS,
    }
    return {names.of(name): Template(_template(name)).substitute(values) for name in UNITS}


def folder_of_unit(text: str) -> Path | None:
    """The project's folder in the text of a service that batchscribe wrote; None in any other text."""
    found = re.search(r"^WorkingDirectory=(.+)$", text, re.MULTILINE)
    return Path(found[1].replace("%%", "%")) if found and text.startswith(MARK) else None


def render_cron(plan: Plan) -> str:
    """Our block of a crontab, without a newline at its end."""
    told = f"{CHECK_HOURS}={plan.interval.hours:.10g} " if plan.told else ""
    commands = ((plan.interval, "tick --no-wait"), (WATCH_EVERY, "watchdog"))
    lines = [
        f"{interval.cron} cd {_cron_word(plan.folder)} && {told}{_cron_word(plan.executable)} {command} "
        f">> {_cron_word(plan.log_dir / CRON_LOG)} 2>&1"
        for interval, command in commands
    ]
    return "\n".join([BEGIN, *lines, END])


def with_block(crontab: str, block: str, folder: Path) -> str:
    """The crontab with this project's block in it, once: where it was, else at the end. Empty takes it
    out. The blocks of other folders stay.
    """
    remaining = [f"{block}\n"] if block else []

    def replaced(found: re.Match[str]) -> str:
        if folder_of_block(found[0]) != folder:
            return found[0]
        return remaining.pop() if remaining else ""

    after = _BLOCK.sub(replaced, crontab)
    gap = "\n" if remaining and after and not after.endswith("\n") else ""
    return after + gap + "".join(remaining)


def blocks(crontab: str) -> dict[Path | None, str]:
    """Our blocks in a crontab by the folders of their projects."""
    return {folder_of_block(found[0]): found[0] for found in _BLOCK.finditer(crontab)}


def folder_of_block(block: str) -> Path | None:
    """The folder that the lines of a block change to."""
    found = re.search(r" cd (.+?) && ", block)
    try:
        return Path(*shlex.split(found[1].replace(r"\%", "%"))[:1]) if found else None
    except ValueError:
        return None


def _template(name: str) -> str:
    return (resources.files("batchscribe.deploy") / name).read_text(encoding="utf-8")


def _checked(path: Path, forbidden: str = "\\") -> str:
    """An absolute path as text. A line break in it would be a line of its own in the schedule."""
    text = str(path)
    if not path.is_absolute() or not text.isprintable() or any(character in text for character in forbidden):
        raise MisconfiguredError(
            f"{text!r} cannot stand in a schedule: move it to an absolute path without control characters "
            f"and {' '.join(forbidden)}"
        )
    return text


def _unit_path(path: Path) -> str:
    """A path as WorkingDirectory= takes it: spaces as they are, no specifiers."""
    return _checked(path).replace("%", "%%")


def _quoted(path: Path) -> str:
    """A program as ExecStart= takes it: systemd allows no quotes in its path, and expands specifiers."""
    return '"' + _checked(path, "\\\"'").replace("%", "%%") + '"'


def _cron_word(path: Path) -> str:
    """A word for cron's shell. Cron itself would read a bare percent sign as the end of the line."""
    return shlex.quote(_checked(path)).replace("%", r"\%")


def _span(length: timedelta) -> str:
    """A time span as systemd writes it: `2h 30min`, `45s`."""
    seconds = round(length.total_seconds())
    parts = ((seconds // 3600, "h"), (seconds % 3600 // 60, "min"), (seconds % 60, "s"))
    return " ".join(f"{value}{unit}" for value, unit in parts if value) or "0"
