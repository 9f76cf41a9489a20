"""Estimates time and cost of a backlog, and packs runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from batchscribe.core.decide.money import Rate, Usd, cost
from batchscribe.core.scan.backlog import Backlog
from batchscribe.core.scan.chunks import Chunk

BYTES_PER_SECOND = {
    **dict.fromkeys(("avi", "mov"), 40_000.0),
    **dict.fromkeys(("aif", "aifc", "aiff", "caf", "w64", "wav"), 32_000.0),
    **dict.fromkeys(("flac", "wv"), 18_000.0),
    **dict.fromkeys(("asf", "m4v", "mkv", "mp4", "ogv", "qt", "wmv"), 16_000.0),
    **dict.fromkeys(("3gp", "aac", "ac3", "au", "m4a", "m4b", "mp2", "mp3", "mpga", "wma"), 8_000.0),
    **dict.fromkeys(("mka", "oga", "ogg"), 5_000.0),
    **dict.fromkeys(("opus", "weba", "webm"), 4_000.0),
    "spx": 3_000.0,
    "amr": 1_600.0,
}
"""Bitrates (bytes per audio second) until runs of this source show better ones: 16 kHz mono PCM for wav,
usual speech bitrates for the rest; low if unsure, so that a batch is over- rather than underestimated."""

ONE = range(1, 2)
LEAST_PORTION_SECONDS = 600.0
"""Estimated work of a portion at least: each costs a start of a worker, and a cut of a session some audio."""
LAST_ROUND = 16
"""From here on a portion is the least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """Values learned from earlier runs: speed, setup time, and bitrates."""

    speed: float = 20.0
    """Audio seconds for each second of work (RTFx)."""
    setup_seconds: float = 150.0
    """From the start call to the first window; the median."""
    setup_p95_seconds: float = 300.0
    """The same, for a slow start (95th percentile); twice the median until ten starts are measured."""
    release_seconds: float = 60.0
    bytes_per_second: Mapping[str, float] = field(default_factory=dict)
    """By file extension."""
    learned: bool = False

    def audio_seconds(self, chunk: Chunk) -> float:
        """Estimated audio seconds; the true duration is known only after decoding."""
        return self.estimate_seconds(chunk.key, chunk.size)

    def estimate_seconds(self, key: str, size: int) -> float:
        """Estimated audio seconds of an object; an unknown type counts as webm."""
        kind = key.rpartition(".")[2].lower()
        if kind not in BYTES_PER_SECOND:
            kind = "webm"
        return size / (self.bytes_per_second.get(kind) or BYTES_PER_SECOND[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    chunks: int
    audio_seconds: float
    setup_seconds: float
    work_seconds: float
    release_seconds: float
    cost: Usd
    """Of all machines."""
    rate: Rate
    machines: int = 1

    @property
    def seconds(self) -> float:
        """Of each machine."""
        return self.setup_seconds + self.work_seconds + self.release_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Time and cost of the whole backlog, in all its runs."""

    audio_seconds: float
    runs: int
    seconds: float
    """From the first start to the last transcript, if every start is slow."""
    cost: Usd
    machines: int = 1
    """Of each run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The chunks of one run, and the number of those left."""

    chunks: tuple[Chunk, ...]
    estimate: Estimate
    left: int


def estimate(chunks: Sequence[Chunk], priors: Priors, rate: Rate, machines: int = 1) -> Estimate:
    """Estimates one run of these chunks, shared evenly by its machines."""
    audio = sum(priors.audio_seconds(chunk) for chunk in chunks)
    work = audio / priors.speed / machines
    return Estimate(
        chunks=len(chunks),
        audio_seconds=audio,
        setup_seconds=priors.setup_seconds,
        work_seconds=work,
        release_seconds=priors.release_seconds,
        cost=_sum_cost(rate, priors.setup_seconds + work + priors.release_seconds, machines),
        rate=rate,
        machines=machines,
    )


def _sum_cost(rate: Rate, seconds: float, machines: int) -> Usd:
    return Usd(cost(rate, seconds).micros * machines)


def foresee(
    backlog: Backlog,
    priors: Priors,
    rate: Rate,
    *,
    runtime: float,
    pause: float,
    limit: int | None,
    machines: range = ONE,
) -> tuple[Outlook, ...]:
    """Estimates the runs that all pending chunks need.

    A run has `runtime` seconds and `limit` chunks at most; `pause` seconds pass between two. Returns an
    outlook for each number of machines that share the work of a run.
    """
    audio = sum(priors.audio_seconds(chunk) for chunk in backlog.candidates)
    listed = sum(chunk.size for chunk in backlog.candidates)
    if listed < backlog.pending_bytes and listed:
        audio *= backlog.pending_bytes / listed
    overhead = priors.setup_seconds + priors.release_seconds
    slow = max(priors.setup_seconds, priors.setup_p95_seconds)

    def with_machines(number: int) -> Outlook:
        work = audio / priors.speed / number
        runs = _count_runs(backlog.pending, work, runtime - overhead, limit, number)
        between = max(0, runs - 1) * (priors.release_seconds + pause)
        return Outlook(
            audio_seconds=audio,
            runs=runs,
            seconds=runs * slow + work + between,
            cost=_sum_cost(rate, runs * overhead + work, number),
            machines=number,
        )

    return tuple(map(with_machines, machines))


def _count_runs(pending: int, work: float, budget: float, limit: int | None, machines: int) -> int:
    """Number of runs; each has at least a chunk for each machine."""
    turns = -(-pending // machines)
    by_time = math.ceil(min(turns, work / budget)) if budget > 0 else turns
    by_limit = -(-pending // limit) if limit else 0
    return min(pending, max(1, by_time, by_limit))


def pack(
    candidates: Sequence[Chunk],
    *,
    pending: int,
    priors: Priors,
    rate: Rate,
    seconds: float,
    limit: int | None = None,
    machines: int = 1,
) -> Batch:
    """Takes candidates in order until `seconds` of all machines are full.

    Takes at least one chunk if there is any. Prefers whole sessions: one that does not fit is left for the
    next run, unless it comes first and is too long for any run. A chunk that exceeds the time by itself is
    taken only if nothing else is left, and alone on its machine: the engine may be faster than estimated.
    """
    budget = max(0.0, seconds - priors.setup_seconds - priors.release_seconds) * priors.speed
    wanted = candidates[:limit]
    fitting = [chunk for chunk in wanted if priors.audio_seconds(chunk) <= budget]
    taken = _take_whole_sessions(fitting, priors, budget * machines) or list(wanted[:machines])
    return Batch(
        chunks=tuple(taken), estimate=estimate(taken, priors, rate, machines), left=pending - len(taken)
    )


def take_portion(
    chunks: Sequence[Chunk], *, total: float, given: int, machines: int, priors: Priors
) -> Sequence[Chunk]:
    """Takes one machine's next portion of the shared work, in order.

    Factoring: each round of one portion for each machine gives half of the rest, so that the first portions
    are long and the last ones end at about the same time (Hummel, Schonberg, Flynn, 1992). `total`: audio
    seconds of the shared work; `given`: portions so far. Whole sessions, unless one is longer than that; at
    least one chunk if there is any.
    """
    share = total / machines / 2 ** min(given // machines + 1, LAST_ROUND)
    audio = max(share, LEAST_PORTION_SECONDS * priors.speed)
    return _take_whole_sessions(chunks, priors, audio) or chunks[:1]


def _take_whole_sessions(chunks: Sequence[Chunk], priors: Priors, budget: float) -> list[Chunk]:
    taken: list[Chunk] = []
    for _session, group in groupby(chunks, key=lambda chunk: chunk.session):
        session = list(group)
        length = sum(priors.audio_seconds(chunk) for chunk in session)
        if length > budget:
            return taken or _take_first_fitting(session, priors, budget)
        taken += session
        budget -= length
    return taken


def _take_first_fitting(session: Sequence[Chunk], priors: Priors, budget: float) -> list[Chunk]:
    """The first chunks of a session, as many as fit."""
    ends = accumulate(priors.audio_seconds(chunk) for chunk in session)
    return [chunk for chunk, end in zip(session, ends, strict=True) if end <= budget]
