"""Access of one controller to a simulated cloud that creates machines."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import MANIFEST_TAG, Claim, Instance
from batchscribe.errors import NoCapacityError
from batchscribe.testing.compute import Cloud, CloudMachine
from batchscribe.testing.fleet import show_created, show_named
from batchscribe.testing.guard import FakeGuard
from simulation.cloud import Access, Act
from simulation.gate import Gate
from simulation.timeline import Timeline

ZONES = ("a", "b", "c")
_PRICES = {
    ("g4dn.xlarge", Market.SPOT): "0.2",
    ("g5.xlarge", Market.SPOT): "0.4",
    ("g4dn.xlarge", Market.ON_DEMAND): "0.526",
    ("g5.xlarge", Market.ON_DEMAND): "1.006",
}


def price(instance_type: str, market: str, zone: str) -> Rate:
    """Price of a machine; a spot machine's depends on its zone."""
    dollars = Usd.parse(_PRICES[instance_type, Market(market)])
    cheaper = ZONES.index(zone) * 0.1 if market == Market.SPOT else 0.0
    return Rate(per_hour=dollars.times(1.0 - cheaper), source="simulated")


OFFERS = tuple(
    Offer(provider="fleet", instance_type=kind, market=market, rate=price(kind, market, ZONES[0]))
    for kind, market in _PRICES
)


class Tokens:
    """Client tokens: a repeated request creates nothing unless its token is lost."""

    def __init__(self, rng: random.Random, line: Timeline, cloud: Cloud) -> None:
        self.lost = 0.0
        """Probability that a repeated request creates a second machine."""
        self.dry: dict[str, float] = {}
        """Time until which an offer has no capacity, by its name."""
        self.created: list[CloudMachine] = []
        """All machines that were created, the last one last."""
        self._known: set[tuple[str, str]] = set()
        self._rng = rng
        self._line = line
        self._cloud = cloud

    def create(self, claim: Claim, offer: Offer) -> None:
        if self._line.seconds < self.dry.get(offer.name, 0.0):
            raise NoCapacityError(f"the cloud has no {offer.name} now")
        token = (claim.instance, offer.name)
        if token in self._known and not (self.lost and self._rng.random() < self.lost):
            return
        self._known.add(token)
        zone = ZONES[int(self._rng.random() * len(ZONES))]
        tags = claim.tags
        self.created.append(
            self._cloud.create(claim.instance, offer.instance_type, offer.market.value, zone, tags)
        )


class FleetApi(Access):
    """A protocols.Capacity on the cloud."""

    def __init__(self, cloud: Cloud, tokens: Tokens, line: Timeline, gate: Gate) -> None:
        super().__init__(cloud, line, gate)
        self._tokens = tokens

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        if not seen.type:
            return OFFERS
        rate = price(seen.type, seen.market, seen.zone)
        own = [each for each in OFFERS if (each.instance_type, each.market) == (seen.type, seen.market)]
        return (*(replace(each, rate=rate) for each in own), *(each for each in OFFERS if each not in own))

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:  # noqa: ARG002  the protocol's signature
        self._call("create", f"{claim.instance} {offer.name}", lambda: self._create(claim, offer))
        return True

    def announce(self, instance: str, manifest: str) -> None:
        self._call("announce", instance, lambda: self._announce(instance, manifest))

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        if not instances:
            return ()
        then, shown = self._call("poll", f"{len(instances)}", lambda: self._poll(instances))
        # Not within the call: a poll whose reply was lost showed nothing.
        for seen in shown:
            self.polled(self._asked, then, seen)
        return shown

    def list_created(self) -> tuple[Instance, ...]:
        return self._call("list", "", lambda: show_created(self._cloud, self._line.seconds - self.lag()))

    def teardown(self, instance: str, *, force: bool = False) -> None:
        self._call("terminate", instance, lambda: self._terminate(instance, force=force))

    def restore(self, instance: str, instance_type: str) -> None:
        """Its machines have no type of their own."""

    def release(self, instance: str) -> None:
        """The tags of its machines end with them."""

    def _create(self, claim: Claim, offer: Offer) -> None:
        self.acted(Act("start", claim.instance, self._asked, claim))
        if error := self.refused():
            raise error
        self._tokens.create(claim, offer)

    def _announce(self, instance: str, manifest: str) -> None:
        for machine in self._cloud.list_named(instance):
            self._cloud.tag(machine.id, {MANIFEST_TAG: manifest})

    def _terminate(self, instance: str, *, force: bool) -> None:
        self.acted(Act("terminate", instance, self._asked, force=force))
        for machine in self._cloud.list_named(instance):
            self._cloud.terminate(machine.id)

    def _poll(self, instances: tuple[str, ...]) -> tuple[float, tuple[Instance, ...]]:
        """Returns the moment that the poll shows, and the machines at it."""
        then = self._line.seconds - self.lag()
        return then, tuple(show_named(name, self._cloud.list_named(name), then) for name in instances)


class NamedGuard(FakeGuard):
    """A FakeGuard whose orders terminate by name.

    It accepts instance ids only, so each name gets one.
    """

    def __init__(self, line: Timeline, terminate: Callable[[str], None]) -> None:
        self._names: dict[str, str] = {}
        super().__init__(line, lambda alias: terminate(self._names[alias]), plan=line.at)

    def arm(self, claim: Claim) -> None:
        super().arm(replace(claim, instance=self._alias(claim.instance)))

    def disarm(self, instance: str, run: str) -> None:
        super().disarm(self._alias(instance), run)

    def armed(self, instance: str) -> frozenset[str]:
        return super().armed(self._alias(instance))

    def standing(self, instance: str) -> frozenset[str]:
        alias = instance if instance in self._names else self._alias(instance)
        return super().standing(alias)

    def has_fired(self, instance: str) -> bool:
        """True if an order tried to stop the machine."""
        return any(firing.instance == self._alias(instance) for firing in self.fired)

    def _alias(self, name: str) -> str:
        alias = f"i-{sha256(name.encode()).hexdigest()[:17]}"
        self._names[alias] = name
        return alias
