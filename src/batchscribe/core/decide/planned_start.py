"""The start that would be made now: its offer, batch and cost, and what waiting costs so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from batchscribe.core.decide.money import Usd, cost
from batchscribe.core.decide.observation import Observation, Policy
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.packing import Batch, Outlook, foresee, pack

_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class BacklogWait:
    """Sums over the listed chunks that never failed."""

    audio_hours: float
    waited: float
    """Audio hours times hours of waiting."""
    newest: datetime | None

    def cost(self, price: Usd) -> Usd:
        """Cost at a price for each audio hour and hour."""
        return Usd(round(self.waited * price.micros))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStart:
    offer: Offer
    batch: Batch
    outlook: Outlook
    """For the whole backlog."""
    waits: BacklogWait

    @property
    def setup_cost(self) -> Usd:
        """Cost of a start without its work."""
        priors = self.offer.priors
        return cost(self.offer.rate, priors.setup_seconds + priors.release_seconds)


def plan_start(seen: Observation, policy: Policy) -> PlannedStart:
    """Plans a start of the current backlog."""
    offer, runtime = seen.offer, policy.max_runtime.total_seconds()
    return PlannedStart(
        offer=offer,
        batch=pack(
            seen.backlog.candidates,
            pending=seen.backlog.pending,
            priors=offer.priors,
            rate=offer.rate,
            seconds=runtime,
            limit=policy.limit,
        ),
        outlook=foresee(
            seen.backlog,
            offer.priors,
            offer.rate,
            runtime=runtime,
            pause=policy.check_interval.total_seconds(),
            limit=policy.limit,
        ),
        waits=_measure_waits(seen, offer),
    )


def _measure_waits(seen: Observation, offer: Offer) -> BacklogWait:
    audio = waited = 0.0
    newest = None
    for chunk in seen.backlog.candidates:
        if chunk.previously_failed:
            continue
        hours = offer.priors.audio_seconds(chunk) / _HOUR
        audio += hours
        waited += hours * max(0.0, (seen.now - chunk.modified).total_seconds() / _HOUR)
        newest = max(newest or chunk.modified, chunk.modified)
    return BacklogWait(audio, waited, newest)
