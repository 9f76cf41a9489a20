"""Time of workers: sums, shares, and the stages that delayed engines.

A loaded engine is busy, starved of windows, or blocked by the stage after it. Each second costs the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from batchscribe.core.run.manifest import EngineTimeSummary, Timings
from batchscribe.core.text import flags

N = TypeVar("N", int, float)
PUBLISHING = "publishing"
"""The stage after the engine."""
TOLERATED = 0.03
"""Share of the time after loading above which a report names the stage that delayed the engine."""


class EngineTime(msgspec.Struct, frozen=True, kw_only=True):
    """Engine time for reports, in seconds, with shares after loading."""

    workers: int
    load_seconds: float
    after_load_seconds: float
    busy_seconds: float
    starved_seconds: float
    blocked_seconds: float
    starved_by: dict[str, float]
    """By the stage that the engine waited for."""
    busy_share: float | None
    starved_share: float | None
    blocked_share: float | None
    to_blame: tuple[str, ...]
    """Stages that delayed the engine by more than TOLERATED."""
    flags: dict[str, int]
    """Number of transcripts with each flag."""


def measure_engine_time(timings: Timings, counted: Mapping[str, int]) -> EngineTimeSummary:
    """Engine time of one worker, from the loading of its engine on."""
    if timings.loaded is None:
        return EngineTimeSummary(workers=1, flags=dict(counted))
    return EngineTimeSummary(
        workers=1,
        load=timings.loaded,
        after_load=max(0.0, timings.elapsed - timings.loaded),
        busy=timings.busy,
        starved=timings.starved,
        blocked=timings.blocked,
        starved_by=dict(timings.starved_by),
        flags=dict(counted),
    )


def sum_engine_time(each: Iterable[EngineTimeSummary]) -> EngineTimeSummary:
    """Sums over several workers, or over several runs."""
    parts = list(each)
    return EngineTimeSummary(
        workers=sum(part.workers for part in parts),
        load=sum(part.load for part in parts),
        after_load=sum(part.after_load for part in parts),
        busy=sum(part.busy for part in parts),
        starved=sum(part.starved for part in parts),
        blocked=sum(part.blocked for part in parts),
        starved_by=sum_tables(part.starved_by for part in parts),
        flags=sum_tables(part.flags for part in parts),
    )


def make_engine_time(reported: EngineTimeSummary) -> EngineTime | None:
    """The engine time for a report; None if no worker reported any."""
    if not reported.workers:
        return None
    return EngineTime(
        workers=reported.workers,
        load_seconds=reported.load,
        after_load_seconds=reported.after_load,
        busy_seconds=reported.busy,
        starved_seconds=reported.starved,
        blocked_seconds=reported.blocked,
        starved_by=reported.starved_by,
        busy_share=_compute_share(reported.busy, reported),
        starved_share=_compute_share(reported.starved, reported),
        blocked_share=_compute_share(reported.blocked, reported),
        to_blame=tuple(filter(None, (_find_starving_stage(reported), _find_blocking_stage(reported)))),
        flags=reported.flags,
    )


def format_engine_time(work: EngineTime | None) -> list[str]:
    """Report lines on the engine's time and the flags, unless empty."""
    if work is None:
        return []
    counted = flag_text(work.flags)
    return list(filter(None, (_format_engine_line(work), f"Flags: {counted}" if counted else "")))


def flag_text(counted: Mapping[str, int]) -> str:
    """Text such as `3 repaired, 1 partial`, known flags first."""
    order = (*flags.ALL, *sorted(set(counted) - set(flags.ALL)))
    return ", ".join(f"{counted[flag]} {flag}" for flag in order if counted.get(flag))


def _format_engine_line(work: EngineTime) -> str:
    shares = (work.busy_share, work.starved_share, work.blocked_share)
    if None in shares:
        return ""
    busy, starved, blocked = (f"{share:.1%}".replace("%", " %") for share in shares)
    starving = next((f" ({stage})" for stage in work.to_blame if stage != PUBLISHING), "")
    blocking = f" ({PUBLISHING})" if PUBLISHING in work.to_blame else ""
    return (
        f"Engine: load {work.load_seconds:.1f} s, busy {busy}, starved {starved}{starving}, "
        f"blocked {blocked}{blocking}"
    )


def _find_starving_stage(reported: EngineTimeSummary) -> str:
    """The stage that starved the engine most, if above TOLERATED."""
    if not reported.starved_by or (_compute_share(reported.starved, reported) or 0.0) <= TOLERATED:
        return ""
    return max(reported.starved_by, key=lambda stage: reported.starved_by[stage])


def _find_blocking_stage(reported: EngineTimeSummary) -> str:
    return PUBLISHING if (_compute_share(reported.blocked, reported) or 0.0) > TOLERATED else ""


def _compute_share(seconds: float, reported: EngineTimeSummary) -> float | None:
    return round(seconds / reported.after_load, 4) if reported.after_load > 0 else None


def sum_tables(tables: Iterable[Mapping[str, N]]) -> dict[str, N]:
    """Sums by name."""
    sums: dict[str, N] = {}
    for table in tables:
        for name, value in table.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
