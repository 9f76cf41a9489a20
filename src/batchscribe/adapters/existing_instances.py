"""Capacity of instances that exist already: started and stopped, never created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import Claim, Instance
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Compute

log = structlog.get_logger("batchscribe")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingInstances:
    """A protocols.Capacity over a protocols.Compute."""

    compute: Compute
    provider: str
    rate_of: Callable[[str], Rate]
    """Returns the rate of an instance type. Raises MisconfiguredError if it is unknown."""
    own_type: str = ""
    """The instance's type if no poll shows it."""
    types: tuple[str, ...] = ()
    """Types that the instance may get, in this order, if its own one has no capacity."""
    market: Market = Market.ON_DEMAND

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        own_type = seen.type or self.own_type
        return (self._make_offer(own_type), *self._make_other_offers(own_type))

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:
        if offer.instance_type != (seen.type or self.own_type):
            # The claim first: another scheduler would take the new type of a free instance for its own.
            self.compute.claim(claim)
            self.compute.change_type(claim.instance, offer.instance_type)
            return False
        self.compute.start(claim)
        return True

    def announce(self, instance: str, manifest: str) -> None:
        self.compute.announce(instance, manifest)

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        return tuple(self.compute.describe(instance) for instance in instances)

    def list_created(self) -> tuple[Instance, ...]:
        return ()

    def teardown(self, instance: str, *, force: bool = False) -> None:
        self.compute.stop(instance, force=force)

    def restore(self, instance: str, instance_type: str) -> None:
        self.compute.change_type(instance, instance_type)

    def release(self, instance: str) -> None:
        self.compute.release(instance)

    def _make_offer(self, instance_type: str) -> Offer:
        return Offer(
            provider=self.provider,
            instance_type=instance_type,
            market=self.market,
            rate=self.rate_of(instance_type),
        )

    def _make_other_offers(self, own_type: str) -> Iterator[Offer]:
        for other in self.types:
            try:
                if other != own_type:
                    yield self._make_offer(other)
            except MisconfiguredError as error:
                log.info("offer.skipped", instance_type=other, error=str(error))
