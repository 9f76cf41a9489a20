"""Replays a policy on a trace of arrivals, through the `decide` of the scheduler.

A check is made at each multiple of the policy's interval, while no run is in progress. Chunks that arrive
during a run wait for the next start, although a real run may still take them: costs and waits are upper
bounds. Every start succeeds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from batchscribe.core.decide.arrivals import Arrival
from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, ZERO, Usd
from batchscribe.core.decide.observation import Observation, Policy
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.packing import Batch
from batchscribe.core.decide.policy import Hold, Launch, decide
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.scan.backlog import MAX_CANDIDATES, Backlog
from batchscribe.core.scan.chunks import Chunk

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BYTES = 1_000_000
"""Bytes of a simulated audio second: sizes are whole numbers."""
INSTANCE = Instance(id="simulated", state=InstanceState.STOPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Result of one policy on one trace."""

    starts: tuple[datetime, ...] = ()
    cost: Usd = ZERO
    billed_seconds: float = 0.0
    waits: tuple[float, ...] = ()
    """Seconds from the arrival of each chunk to its transcript, in order of arrival."""


def first_check(at: datetime, interval: timedelta) -> datetime:
    """The first check at `at` or later."""
    return EPOCH - (EPOCH - at) // interval * interval


def replay(
    arrivals: Sequence[Arrival],
    policy: Policy,
    offer: Offer,
    report: Callable[[int], None] = lambda _done: None,
) -> Replay:
    """Replays the policy until each chunk has a transcript; `arrivals` are in order of time.

    `report` gets the number of chunks that each start takes.
    """
    trace = _Trace(arrivals, policy.check_interval)
    offer = replace(offer, priors=replace(offer.priors, bytes_per_second={"webm": BYTES}))
    done: dict[int, datetime] = {}
    batches: list[tuple[datetime, Batch]] = []
    now = trace.find_next_check(EPOCH)
    while now is not None:
        trace.receive(now)
        last_start = batches[-1][0] if batches else None
        decision = decide(_observe(now, trace.pending, offer, last_start), policy)
        after = now + policy.check_interval
        if isinstance(decision, Launch):
            batch = decision.batch
            batches.append((now, batch))
            done |= _complete(now, batch, offer)
            trace.take(batch.chunks)
            report(len(batch.chunks))
            now = trace.find_next_check(max(after, now + _span(batch.estimate.seconds)))
        else:
            # BATCH_HOURS may move a start to an earlier check than the expected one.
            expected = decision.expected if isinstance(decision, Hold) and not policy.hours else None
            now = trace.find_next_check(after, expected)
    seconds = (max(MINIMUM_BILLED_SECONDS, batch.estimate.seconds) for _at, batch in batches)
    return Replay(
        starts=tuple(at for at, _batch in batches),
        cost=sum((batch.estimate.cost for _at, batch in batches), ZERO),
        billed_seconds=sum(seconds),
        waits=tuple((done[n] - each.at).total_seconds() for n, each in enumerate(arrivals)),
    )


class _Trace:
    """Chunks of a trace: those to come, and those that are pending."""

    def __init__(self, arrivals: Iterable[Arrival], interval: timedelta) -> None:
        self._chunks = [_make_chunk(number, each) for number, each in enumerate(arrivals)]
        self._interval = interval
        self._received = 0
        self.pending: list[Chunk] = []

    def receive(self, now: datetime) -> None:
        """Adds the chunks that have arrived by now."""
        before, self._received = self._received, bisect_right(self._chunks, now, key=_get_time)
        self.pending += self._chunks[before : self._received]

    def take(self, chunks: Iterable[Chunk]) -> None:
        taken = {chunk.number for chunk in chunks}
        self.pending = [chunk for chunk in self.pending if chunk.number not in taken]

    def find_next_check(self, at: datetime, expected: datetime | None = None) -> datetime | None:
        """The first check from `at` on whose decision may differ. None if there is no further one.

        Before `expected`, only an arrival changes the decision.
        """
        rest = self._chunks[self._received : self._received + 1]
        changes = [each.modified for each in rest]
        if self.pending:
            changes.append(expected or at)
        return first_check(max(at, min(changes)), self._interval) if changes else None


def _make_chunk(number: int, arrival: Arrival) -> Chunk:
    key = f"{number}.webm"
    size = round(arrival.audio_seconds * BYTES)
    return Chunk(key=key, size=size, modified=arrival.at, etag="", session=key, number=number, transcript="")


def _get_time(chunk: Chunk) -> datetime:
    return chunk.modified


def _observe(
    now: datetime, pending: Sequence[Chunk], offer: Offer, last_start: datetime | None
) -> Observation:
    backlog = Backlog(
        sessions=len(pending),
        pending=len(pending),
        pending_bytes=sum(chunk.size for chunk in pending),
        oldest=pending[0].modified,
        candidates=tuple(pending[:MAX_CANDIDATES]),
    )
    return Observation(
        now=now, backlog=backlog, instances=(INSTANCE,), offers=(offer,), last_start=last_start
    )


def _complete(start: datetime, batch: Batch, offer: Offer) -> dict[int, datetime]:
    """Times of the transcripts of a batch, by the numbers of its chunks."""
    priors = offer.priors
    ends = accumulate(priors.audio_seconds(chunk) / priors.speed for chunk in batch.chunks)
    return {
        chunk.number or 0: start + _span(priors.setup_seconds + end)
        for chunk, end in zip(batch.chunks, ends, strict=True)
    }


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
