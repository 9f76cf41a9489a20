"""What the workers of a run, or of many, say of their time: summed, as shares, and with whom to blame.

An engine that is loaded is busy, or starved of windows, or blocked by what comes after it. Every second in
which it is not busy is paid for all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from batchscribe.core.run.manifest import Timings, Worked
from batchscribe.core.text import flags

N = TypeVar("N", int, float)
PUBLISHING = "publishing"
"""The stage that comes after the engine."""
TOLERATED = 0.03
"""Of the time after loading: with more of it, the stage that took it is named."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """For reports. Seconds; shares are of the time after loading, None where no engine was loaded."""

    workers: int
    load_seconds: float
    after_load_seconds: float
    busy_seconds: float
    starved_seconds: float
    blocked_seconds: float
    starved_by: dict[str, float]
    """By the stage that was waited for."""
    busy_share: float | None
    starved_share: float | None
    blocked_share: float | None
    to_blame: tuple[str, ...]
    """Stages that took more of the engine's time than can be tolerated; empty where all is well."""
    flags: dict[str, int]
    """How many of the transcripts carry each flag."""


def worked(timings: Timings, counted: Mapping[str, int]) -> Worked:
    """Of one worker. What it did before its engine was loaded is no time of the engine's."""
    if timings.loaded is None:
        return Worked(workers=1, flags=dict(counted))
    return Worked(
        workers=1,
        load=timings.loaded,
        after_load=max(0.0, timings.elapsed - timings.loaded),
        busy=timings.busy,
        starved=timings.starved,
        blocked=timings.blocked,
        starved_by=dict(timings.starved_by),
        flags=dict(counted),
    )


def total(each: Iterable[Worked]) -> Worked:
    """The sums over several workers, or over several runs."""
    told = list(each)
    return Worked(
        workers=sum(one.workers for one in told),
        load=sum(one.load for one in told),
        after_load=sum(one.after_load for one in told),
        busy=sum(one.busy for one in told),
        starved=sum(one.starved for one in told),
        blocked=sum(one.blocked for one in told),
        starved_by=_summed(one.starved_by for one in told),
        flags=_summed(one.flags for one in told),
    )


def work_of(told: Worked) -> Work | None:
    """What a report says of it; None where no worker said anything."""
    if not told.workers:
        return None
    return Work(
        workers=told.workers,
        load_seconds=told.load,
        after_load_seconds=told.after_load,
        busy_seconds=told.busy,
        starved_seconds=told.starved,
        blocked_seconds=told.blocked,
        starved_by=told.starved_by,
        busy_share=_share(told.busy, told),
        starved_share=_share(told.starved, told),
        blocked_share=_share(told.blocked, told),
        to_blame=tuple(filter(None, (_starving(told), _blocking(told)))),
        flags=told.flags,
    )


def work_lines(work: Work | None) -> list[str]:
    """For people: a line on the engine's time, one on the flags, each where there is anything to say."""
    if work is None:
        return []
    counted = flag_text(work.flags)
    return list(filter(None, (_engine_line(work), f"Flags: {counted}" if counted else "")))


def flag_text(counted: Mapping[str, int]) -> str:
    """`3 repaired, 1 partial`: known flags in their order, then those that a newer worker brought."""
    order = (*flags.ALL, *sorted(set(counted) - set(flags.ALL)))
    return ", ".join(f"{counted[flag]} {flag}" for flag in order if counted.get(flag))


def _engine_line(work: Work) -> str:
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


def _starving(told: Worked) -> str:
    """The stage that the engine waited for most, where it starved too long."""
    if not told.starved_by or (_share(told.starved, told) or 0.0) <= TOLERATED:
        return ""
    return max(told.starved_by, key=lambda stage: told.starved_by[stage])


def _blocking(told: Worked) -> str:
    return PUBLISHING if (_share(told.blocked, told) or 0.0) > TOLERATED else ""


def _share(seconds: float, told: Worked) -> float | None:
    return round(seconds / told.after_load, 4) if told.after_load > 0 else None


def _summed(tables: Iterable[Mapping[str, N]]) -> dict[str, N]:
    sums: dict[str, N] = {}
    for table in tables:
        for name, value in table.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
