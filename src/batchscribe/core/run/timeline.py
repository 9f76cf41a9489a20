"""Timeline of a run's paid time, in phases from request to stop.

The worker measures its phases, the agent its start, the controller the rest by polls. A worker's last report
places them on the controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from batchscribe.core.run.manifest import Timings
from batchscribe.core.run.runs import Run

AUDIO = "audio"
"""The only phase beside others: audio is fetched, decoded and cut while the model loads."""
Moments = Iterator[tuple[str, datetime | None]]


def measure_timeline(
    run: Run, first: Timings, last: Timings, *, agent: float | None = None
) -> dict[str, float]:
    """Seconds of the run's measured phases, in order.

    `first` and `last`: timings of its first and last worker. `agent`: seconds from the host's boot to the
    agent's start, if its host booted for the run.
    """
    ends = {name: at for name, at in _list_ends(run, first, last, agent) if at is not None}
    before = run.start_requested.at if run.start_requested else None
    found: dict[str, float] = {}
    for name, at in ends.items():
        begin = ends.get("manifest") if name == AUDIO else before
        if begin is not None:
            found[name] = round(max(0.0, (at - begin).total_seconds()), 3)
        before = max(before or at, at)
    return found


def _list_ends(run: Run, first: Timings, last: Timings, agent: float | None) -> Moments:
    """Yields the end of each phase."""
    since = _subtract(run.workers[0].ended, first.elapsed) if run.workers else None
    if since := since or run.worker_since:
        yield from _list_starts(run, since, first, agent)
        yield "manifest", _add(since, first.manifest)
        yield "load", _add(since, first.loaded)
        yield AUDIO, _add(since, first.first_audio)
        yield "first_window", _add(since, first.first_window)
    begun = _subtract(run.work_ended, last.elapsed)
    yield "work", _add(begun, last.last_result)
    yield "publish", _add(begun, last.published)
    yield "end", run.stop_requested.at if run.stop_requested else None
    yield "teardown", run.stopped.at if run.stopped else None


def _list_starts(run: Run, since: datetime, first: Timings, agent: float | None) -> Moments:
    """Yields the phases before the worker; one on a running host."""
    boot = _subtract(since, first.since_boot)
    if agent is None or boot is None or run.start_requested is None or boot < run.start_requested.at:
        yield "worker", since
        return
    yield "start", boot
    yield "boot", _add(boot, agent)
    yield "agent", since


def _add(at: datetime | None, seconds: float | None) -> datetime | None:
    return at + timedelta(seconds=seconds) if at is not None and seconds is not None else None


def _subtract(at: datetime | None, seconds: float | None) -> datetime | None:
    return _add(at, -seconds if seconds is not None else None)


def format_timeline(timeline: Mapping[str, float]) -> str:
    """The phases in one line, as `manifest 0.9 s, load 7.8 s`."""
    return ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in timeline.items())
