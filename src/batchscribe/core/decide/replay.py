"""Replays a policy on a trace of arrivals, through the scheduler's `decide`.

A check is made at each multiple of the policy's interval, while no run is in progress. Chunks that arrive
during a run wait for the next start, although a real run may still take them. Every start succeeds.
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


def last_check(at: datetime, interval: timedelta) -> datetime:
    """The last check at `at` or earlier."""
    return EPOCH + (at - EPOCH) // interval * interval


def replay(
    arrivals: Sequence[Arrival],
    policy: Policy,
    offers: Sequence[Offer],
    lane: Offer | None = None,
    report: Callable[[int], None] = lambda _done: None,
) -> Replay:
    """Replays the policy until each chunk has a transcript.

    `arrivals` are in order of time. `lane`: this machine's processor, whose work is no start. `report` gets
    the number of chunks that each check starts.
    """
    player = _Player(arrivals, policy, offers, lane)
    now = player.find_next_check(EPOCH)
    while now is not None:
        taken = len(player.done)
        now = player.check(now)
        report(len(player.done) - taken)
    batches = [batch for _at, batch in player.starts]
    return Replay(
        starts=tuple(at for at, _batch in player.starts),
        cost=sum((batch.estimate.cost for batch in batches), ZERO),
        billed_seconds=sum(max(MINIMUM_BILLED_SECONDS, batch.estimate.seconds) for batch in batches),
        waits=tuple((player.done[n] - each.at).total_seconds() for n, each in enumerate(arrivals)),
    )


class _Player:
    """A replay in progress."""

    def __init__(
        self, arrivals: Iterable[Arrival], policy: Policy, offers: Sequence[Offer], lane: Offer | None
    ) -> None:
        self._policy = policy
        self._offers = tuple(map(_with_bytes, offers))
        self._lane = _with_bytes(lane) if lane else None
        self._chunks = [_make_chunk(number, each) for number, each in enumerate(arrivals)]
        self._received = 0
        self._pending: list[Chunk] = []
        self.starts: list[tuple[datetime, Batch]] = []
        self.done: dict[int, datetime] = {}
        """Times of the transcripts, by the chunks' numbers."""

    def check(self, now: datetime) -> datetime | None:
        """Makes a decision and its start; returns the next check, if any."""
        self._receive_chunks(now)
        decision = decide(self._observe(now), self._policy)
        after = now + self._policy.check_interval
        if isinstance(decision, Launch):
            self._start(now, decision)
            return self.find_next_check(max(after, now + timedelta(seconds=decision.batch.estimate.seconds)))
        expected = decision.expected if isinstance(decision, Hold) else None
        return self.find_next_check(after, expected)

    def find_next_check(self, at: datetime, expected: datetime | None = None) -> datetime | None:
        """The first check from `at` on whose decision may differ, if any.

        Before `expected`, only an arrival changes the decision.
        """
        rest = self._chunks[self._received : self._received + 1]
        changes = [each.modified for each in rest]
        if self._pending:
            changes.append(expected or at)
        return first_check(max(at, min(changes)), self._policy.check_interval) if changes else None

    def _receive_chunks(self, now: datetime) -> None:
        before = self._received
        self._received = bisect_right(self._chunks, now, key=lambda chunk: chunk.modified)
        self._pending += self._chunks[before : self._received]

    def _observe(self, now: datetime) -> Observation:
        pending = self._pending
        backlog = Backlog(
            sessions=len(pending),
            pending=len(pending),
            pending_bytes=sum(chunk.size for chunk in pending),
            oldest=pending[0].modified,
            candidates=tuple(pending[:MAX_CANDIDATES]),
        )
        return Observation(
            now=now,
            backlog=backlog,
            instances=(INSTANCE,),
            offers=self._offers,
            lane=self._lane,
            last_start=self.starts[-1][0] if self.starts else None,
        )

    def _start(self, now: datetime, decision: Launch) -> None:
        batch, priors = decision.batch, decision.offer.priors
        ends = accumulate(priors.audio_seconds(chunk) / priors.speed for chunk in batch.chunks)
        taken = {
            chunk.number or 0: now + timedelta(seconds=priors.setup_seconds + end)
            for chunk, end in zip(batch.chunks, ends, strict=True)
        }
        self.done |= taken
        if not decision.lane:
            self.starts.append((now, batch))
        self._pending = [chunk for chunk in self._pending if chunk.number not in taken]


def _with_bytes(offer: Offer) -> Offer:
    return replace(offer, priors=replace(offer.priors, bytes_per_second={"webm": BYTES}))


def _make_chunk(number: int, arrival: Arrival) -> Chunk:
    key = f"{number}.webm"
    size = round(arrival.audio_seconds * BYTES)
    return Chunk(key=key, size=size, modified=arrival.at, etag="", session=key, number=number, transcript="")
