"""Parts of a manifest for a host's GPUs, and merged reports."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import msgspec

from batchscribe.core.run.engine_time import sum_tables
from batchscribe.core.run.manifest import (
    ExitRecord,
    Manifest,
    ManifestChunk,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
)

_WORST_FIRST = (WorkerEnd.FAILED, WorkerEnd.STOPPED, WorkerEnd.FINISHED)
_PHASES = tuple(Phase)
_EARLIEST = ("since_boot", "manifest", "loaded", "first_audio", "first_window")
_LATEST = ("last_result", "published")


def split_manifest(manifest: Manifest, count: int) -> tuple[Manifest, ...]:
    """Splits a manifest into at most `count` parts of similar size.

    Sessions stay whole. The largest one goes first to the smallest part, in bytes, so no part exceeds another
    one by more than one session. Each part keeps the manifest's order. Fewer sessions make fewer parts.
    """
    sessions: defaultdict[str, list[int]] = defaultdict(list)
    for number, chunk in enumerate(manifest.chunks):
        sessions[chunk.session].append(number)

    def measure(numbers: Iterable[int]) -> int:
        return sum(manifest.chunks[number].size for number in numbers)

    parts: list[list[int]] = [[] for _ in range(min(count, len(sessions)))]
    for session in sorted(sessions.values(), key=measure, reverse=True):
        min(parts, key=lambda part: (measure(part), len(part))).extend(session)
    return tuple(_take(manifest, sorted(part)) for part in parts)


def _take(manifest: Manifest, numbers: Sequence[int]) -> Manifest:
    chunks: tuple[ManifestChunk, ...] = tuple(manifest.chunks[number] for number in numbers)
    return msgspec.structs.replace(manifest, chunks=chunks, seal="")


def merge_progress(parts: Sequence[Progress], *, sequence: int, total: int) -> Progress:
    """Merges the progress of at least one part; `total`: the manifest's chunks."""
    working = [part.phase for part in parts if part.phase is not Phase.ENDED]
    return Progress(
        run=parts[0].run,
        worker=parts[0].worker,
        sequence=sequence,
        phase=max(working, key=_PHASES.index, default=Phase.ENDED),
        at=max(part.at for part in parts),
        total=total,
        tally=_sum_tallies(part.tally for part in parts),
        timings=_merge_timings([part.timings for part in parts]),
        results=sum(part.results for part in parts),
        in_engine=sum(part.in_engine for part in parts),
        in_flight=tuple(sorted(key for part in parts for key in part.in_flight)),
    )


def merge_exit_records(parts: Sequence[ExitRecord]) -> ExitRecord:
    """Merges the exit records of all parts: the worst one decides."""
    end = min((part.end for part in parts), key=_WORST_FIRST.index)
    tally = _sum_tallies(part.tally for part in parts)
    reasons = [f"GPU {number}: {part.message}" for number, part in enumerate(parts) if part.end is end]
    devices = Counter(part.device for part in parts)
    return ExitRecord(
        run=parts[0].run,
        worker=parts[0].worker,
        end=end,
        message=tally.describe() if end is WorkerEnd.FINISHED else "; ".join(reasons),
        at=max(part.at for part in parts),
        tally=tally,
        timings=_merge_timings([part.timings for part in parts]),
        failures=tuple(failure for part in parts for failure in part.failures),
        device=", ".join(f"{number} x {device}" for device, number in devices.items()),
        gpu_broken=any(part.gpu_broken for part in parts),
        seconds_by_type=sum_tables(part.seconds_by_type for part in parts),
        bytes_by_type=sum_tables(part.bytes_by_type for part in parts),
        flags=sum_tables(part.flags for part in parts),
    )


def _sum_tallies(parts: Iterable[Tally]) -> Tally:
    return Tally(**sum_tables(msgspec.structs.asdict(part) for part in parts))


def _merge_timings(parts: Sequence[Timings]) -> Timings:
    """Times of the host, from the first begin to the last end.

    Engine time is the mean. So the audio seconds of all parts by these times are the speed of the host.
    """
    waits = sum_tables(part.starved_by for part in parts)
    return Timings(
        **{name: _choose(min, parts, name) for name in _EARLIEST},
        **{name: _choose(max, parts, name) for name in _LATEST},
        elapsed=max(part.elapsed for part in parts),
        busy=fmean(part.busy for part in parts),
        starved=fmean(part.starved for part in parts),
        blocked=fmean(part.blocked for part in parts),
        starved_by={stage: round(seconds / len(parts), 3) for stage, seconds in waits.items()},
    )


def _choose(choose: Callable[[list[float]], float], parts: Sequence[Timings], name: str) -> float | None:
    known = [getattr(part, name) for part in parts if getattr(part, name) is not None]
    return choose(known) if known else None
