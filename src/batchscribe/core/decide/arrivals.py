"""Arrivals of audio for replays, from a CSV, a listing, or runs."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter, itemgetter

from batchscribe.core.decide.packing import Priors
from batchscribe.core.objects import ObjectInfo
from batchscribe.core.run.report import QueueSample
from batchscribe.core.run.runs import Run
from batchscribe.errors import MisconfiguredError

COLUMNS = ("arrived", "audio_seconds")
_REST = "further values"
LONGEST_SECONDS = 3_600_000
"""A thousand hours, the largest BATCH_MAX_AUDIO_HOURS."""
LAST_YEAR = 9000
"""Of an arrival, so that its wait ends before the calendar does."""


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """One chunk of a trace."""

    at: datetime
    audio_seconds: float


def parse_arrivals(lines: Iterable[str], name: str) -> tuple[Arrival, ...]:
    """Parses a CSV with the header `arrived,audio_seconds`; other columns are ignored.

    A time without a zone is UTC. Returns the arrivals in order of time. Raises MisconfiguredError with the
    line of the first error.
    """
    rows = csv.DictReader(lines, skipinitialspace=True, restkey=_REST)
    try:
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise MisconfiguredError(
                f"{name} has no column {' and no '.join(missing)}: its first line must be "
                f"{','.join(COLUMNS)}; nothing was simulated"
            )
        return tuple(sorted(_parse_rows(rows, name)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise MisconfiguredError(
            f"{name} is not a CSV text in UTF-8 ({error}): export it again; nothing was simulated"
        ) from error


def _parse_rows(rows: csv.DictReader[str], name: str) -> Iterator[Arrival]:
    for row in rows:
        try:
            _refuse_rest(row)
            yield Arrival(_parse_time(row["arrived"]), _parse_seconds(row["audio_seconds"]))
        except ValueError as error:
            raise MisconfiguredError(
                f"line {rows.line_num} of {name}: {error}; correct the line, nothing was simulated"
            ) from None


def _refuse_rest(row: dict[str, str]) -> None:
    """Raises ValueError for a row that a decimal comma makes too long."""
    if any(row.get(_REST) or ""):
        raise ValueError("it has more values than the header has columns; write decimals with a point")


def _parse_time(text: str | None) -> datetime:
    try:
        found = datetime.fromisoformat((text or "").strip())
        at = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        at = datetime.max.replace(tzinfo=UTC)
    if at.year > LAST_YEAR:
        raise ValueError(f"arrived is {text!r}, not an ISO time such as 2026-11-23T12:00:00Z")
    return at


def _parse_seconds(text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"audio_seconds is {text!r}, not a number above 0, up to {LONGEST_SECONDS}")
    return seconds


def make_arrivals(audio: Iterable[ObjectInfo], priors: Priors) -> tuple[Arrival, ...]:
    """Arrivals by the objects' time stamps, with lengths estimated from sizes."""
    return tuple(
        sorted(
            Arrival(info.modified, priors.estimate_seconds(info.key, info.size))
            for info in audio
            if info.size
        )
    )


@dataclass(frozen=True, slots=True)
class MatchedArrival:
    """A chunk in the records of checks and runs."""

    at: datetime
    """The check that listed it first, or the run that found it."""
    run: Run | None = None
    """The run that transcribed it. None if no run did."""


def match_arrivals(samples: Iterable[QueueSample], runs: Iterable[Run]) -> list[MatchedArrival]:
    """Returns the chunks that checks and runs recorded, in order.

    A chunk arrives when the backlog first grew by it. Runs take the oldest chunks, and a backlog that
    shrinks without a run loses these.
    """
    events: list[tuple[datetime, int, Run | None]] = [(each.at, each.pending, None) for each in samples]
    events += [(run.created, 0, run) for run in runs if run.chunks_done]
    queue, found = deque[datetime](), list[MatchedArrival]()
    for at, listed, run in sorted(events, key=itemgetter(0, 1)):
        known = max(run.chunks_done, len(queue)) if run else listed
        queue.extend([at] * (known - len(queue)))
        gone = run.chunks_done if run else len(queue) - known
        found += [MatchedArrival(queue.popleft(), run) for _ in range(gone)]
    found += [MatchedArrival(at) for at in queue]
    return sorted(found, key=attrgetter("at"))


def make_recorded_arrivals(samples: Iterable[QueueSample], runs: Sequence[Run]) -> tuple[Arrival, ...]:
    """Arrivals from the backlogs that ticks and runs recorded.

    All have the mean length of the chunks that the runs transcribed; without such a run there are none.
    """
    chunks = sum(run.chunks_done for run in runs)
    audio = sum(run.audio_seconds for run in runs)
    if not chunks or not audio:
        return ()
    return tuple(Arrival(each.at, audio / chunks) for each in match_arrivals(samples, runs))
