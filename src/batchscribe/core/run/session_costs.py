"""Division of runs among the sessions that they transcribed, and sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from batchscribe.core.decide.money import Usd, split_cost
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.runs import Run

_HOUR = 3600.0


class DoneChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of a run that has a transcript."""

    session: str
    key: str
    size: int
    arrived: datetime


class SessionShare(msgspec.Struct, frozen=True, kw_only=True):
    """A session's part of one run."""

    run: str
    session: str
    chunks: int
    audio_seconds: float
    """By the bytes of its chunks and the run's bitrates; the sum is the run's."""
    cost_micros: int
    """Part of the run's bill, by audio."""
    waited_seconds: float
    """Sum over the chunks, each from its arrival to the end of the run's work."""
    longest_seconds: float
    late: int
    """Chunks that waited longer than BATCH_MAX_WAIT_HOURS."""


class SessionCost(msgspec.Struct, frozen=True, kw_only=True):
    """A session in a report; `cost` is an upper bound in dollars."""

    session: str
    runs: int
    chunks_done: int
    audio_hours: float
    cost: float
    cost_micros: int
    cost_per_audio_hour: float | None
    """None without audio."""
    mean_wait_hours: float
    max_wait_hours: float
    late: int


def divide_by_session(
    run: Run, done: Sequence[DoneChunk], bitrates: Mapping[str, float], max_wait: timedelta
) -> tuple[SessionShare, ...]:
    """Divides a settled run among the sessions of its transcripts.

    `bitrates`: bytes per audio second by extension.
    """
    priors, end = Priors(bytes_per_second=bitrates), run.work_ended or run.settled or run.created
    found: dict[str, list[DoneChunk]] = {}
    for chunk in done:
        found.setdefault(chunk.session, []).append(chunk)
    lengths = [
        sum(priors.estimate_seconds(each.key, each.size) for each in chunks) for chunks in found.values()
    ]
    scale = run.audio_seconds / sum(lengths) if sum(lengths) else 0.0
    shares = []
    for chunks, length, cost in zip(found.values(), lengths, split_cost(run.cost, lengths), strict=True):
        waits = [max(0.0, (end - each.arrived).total_seconds()) for each in chunks]
        shares.append(
            SessionShare(
                run=run.id,
                session=chunks[0].session,
                chunks=len(chunks),
                audio_seconds=length * scale,
                cost_micros=cost.micros,
                waited_seconds=sum(waits),
                longest_seconds=max(waits),
                late=sum(wait > max_wait.total_seconds() for wait in waits),
            )
        )
    return tuple(shares)


def sum_by_session(shares: Iterable[SessionShare]) -> tuple[SessionCost, ...]:
    """One row for each session, the most expensive first, then by name."""
    found: dict[str, list[SessionShare]] = {}
    for share in shares:
        found.setdefault(share.session, []).append(share)
    rows = (_make_row(session, parts) for session, parts in found.items())
    return tuple(sorted(rows, key=lambda row: (-row.cost_micros, row.session)))


def _make_row(session: str, parts: Sequence[SessionShare]) -> SessionCost:
    cost, chunks = Usd(sum(part.cost_micros for part in parts)), sum(part.chunks for part in parts)
    hours = sum(part.audio_seconds for part in parts) / _HOUR
    each = cost.per(hours)
    return SessionCost(
        session=session,
        runs=len(parts),
        chunks_done=chunks,
        audio_hours=hours,
        cost=cost.dollars,
        cost_micros=cost.micros,
        cost_per_audio_hour=each.dollars if each else None,
        mean_wait_hours=sum(part.waited_seconds for part in parts) / chunks / _HOUR,
        max_wait_hours=max(part.longest_seconds for part in parts) / _HOUR,
        late=sum(part.late for part in parts),
    )
