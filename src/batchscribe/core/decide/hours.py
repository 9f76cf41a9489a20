"""Hours in which starts are allowed (BATCH_HOURS).

The grammar is `[DAYS] [TIMES]`, several separated by `;`, then `[ZONE]`, whose wall clock applies. DAYS are
`mon-fri` or `Sat,Sun`, TIMES are `22:00-06:00`. As in calendars of systemd, a range may have `..`, the date
`*-*-*` may stand before the times, and `22..23:*` are whole hours. Times that pass midnight belong to the day
on which they begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import product
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY_WORD = re.compile(rf"({'|'.join(f'{day}|{day[:3]}' for day in _DAYS)})([-.,]|$)", re.IGNORECASE)
_TIMES = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?:-|\.\.)([0-9]{1,2}):([0-5][0-9])")
_WHOLE_HOURS = re.compile(r"([0-9]{1,2})(?:\.\.([0-9]{1,2}))?")
_MIDNIGHT = 24 * 60
_AHEAD = 10
"""Days whose hours are computed: each weekday, and the days before and after a week."""


class UnknownPartError(ValueError):
    """Names the part of BATCH_HOURS that cannot be parsed."""


@dataclass(frozen=True, slots=True)
class DailyHours:
    """Minutes after midnight on weekdays (0: Monday); `end` may pass midnight."""

    days: frozenset[int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Hours:
    text: str
    """As written in the settings."""
    zone: str
    windows: tuple[DailyHours, ...]

    def find_last(self, at: datetime) -> tuple[datetime, datetime]:
        """Begin and end of the latest hours that begin by a time."""
        return next(span for span in reversed(self._list_spans(at - _WEEK)) if span[0] <= at)

    def find_next(self, at: datetime) -> datetime:
        """The time itself within the hours, else their next begin."""
        return next((max(begin, at) for begin, end in self._list_spans(at) if end > at), at)

    def format_time(self, at: datetime) -> str:
        """Formats a time by the clock of the hours, and in UTC."""
        if self.zone == "UTC":
            return f"{at:%Y-%m-%d %H:%M} UTC"
        return f"{at.astimezone(ZoneInfo(self.zone)):%Y-%m-%d %H:%M} {self.zone} ({at:%a %H:%M} UTC)"

    def __str__(self) -> str:
        return self.text

    def _list_spans(self, at: datetime) -> tuple[tuple[datetime, datetime], ...]:
        """Spans from the day before on, in UTC, adjoining ones joined."""
        zone = ZoneInfo(self.zone)
        return _join_spans(self.windows, zone, at.astimezone(zone).date() - _DAY)


@lru_cache(maxsize=64)
def _join_spans(
    windows: tuple[DailyHours, ...], zone: ZoneInfo, first: date
) -> tuple[tuple[datetime, datetime], ...]:
    """Spans of the days from `first` on; a replay repeats this."""
    days = [first + number * _DAY for number in range(_AHEAD)]
    spans: list[tuple[datetime, datetime]] = []
    for span in sorted(
        (min(_read_wall_clock(day, window.begin, zone)), max(_read_wall_clock(day, window.end, zone)))
        for day, window in product(days, windows)
        if day.weekday() in window.days
    ):
        last = spans[-1] if spans else span
        if span[0] <= last[1]:
            spans[-1:] = [(last[0], max(last[1], span[1]))]
        else:
            spans.append(span)
    return tuple(spans)


def parse_hours(text: str) -> Hours:
    """Parses the grammar; raises UnknownPartError for anything else."""
    words = text.split()
    named = bool(words) and words[-1][0].isalpha() and not _DAY_WORD.match(words[-1])
    zone = words.pop() if named else "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        kind = f"unknown time zone {zone}" if words else f"{zone} is neither a day nor a time zone"
        raise UnknownPartError(kind) from error
    parts = " ".join(words).split(";")
    return Hours(text, zone, tuple(window for part in parts for window in _parse_part(part.split())))


def _parse_part(words: list[str]) -> Iterator[DailyHours]:
    dated = [word for word in words if word != "*-*-*"]
    days = _parse_days(dated.pop(0)) if dated and dated[0][0].isalpha() else frozenset(range(7))
    times = dated.pop(0) if dated else "0:00-24:00"
    if dated or not words:
        raise UnknownPartError(f"{dated[0]} is superfluous" if dated else "a part is empty")
    for begin, end in _parse_times(times):
        yield DailyHours(days, begin, end)


def _parse_days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for item in text.lower().split(","):
        first, _, last = item.replace("..", "-").partition("-")
        begin = _find_day(first)
        days |= {(begin + number) % 7 for number in range((_find_day(last or first) - begin) % 7 + 1)}
    return frozenset(days)


def _find_day(word: str) -> int:
    for number, day in enumerate(_DAYS):
        if word in {day, day[:3]}:
            return number
    raise UnknownPartError(f"{word or 'a missing word'} is not a day")


def _parse_times(text: str) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) in minutes after midnight."""
    whole = text.removesuffix(":*") if text.endswith(":*") else ""
    for item in (whole or text).split(","):
        match = (_WHOLE_HOURS if whole else _TIMES).fullmatch(item)
        wrong = UnknownPartError(f"{item} is not a range of times")
        if match is None:
            raise wrong
        if whole:
            begin, end = int(match[1]) * 60, int(match[2] or match[1]) * 60 + 60
        else:
            begin, end = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
        if begin in {end, _MIDNIGHT} or max(begin, end) > _MIDNIGHT:
            raise wrong
        yield begin, end if end > begin else end + _MIDNIGHT


def _read_wall_clock(day: date, minutes: int, zone: ZoneInfo) -> Iterator[datetime]:
    """Yields both times that a changed clock may mean; else one twice."""
    days, minute = divmod(minutes, _MIDNIGHT)
    clock = time(minute // 60, minute % 60, tzinfo=zone)
    for fold in (0, 1):
        yield datetime.combine(day + days * _DAY, clock.replace(fold=fold)).astimezone(UTC)
