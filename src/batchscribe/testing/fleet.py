"""In-memory capacity that creates machines, like an EC2 Fleet of type `instant`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchscribe.core.decide.offers import Offer
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG, Claim, Instance, InstanceState
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import Cloud, CloudMachine, FaultPlan

_FROM_THE_END = (
    InstanceState.TERMINATED,
    InstanceState.SHUTTING_DOWN,
    InstanceState.PENDING,
    InstanceState.RUNNING,
)


class FakeFleet(FaultPlan, Cloud):
    """A protocols.Capacity whose machines are created under the names of a run.

    A repeated request with the same name and offer creates nothing: both make the client token.
    """

    def __init__(self, clock: FakeClock, offers: tuple[Offer, ...], *, zones: Iterable[str] = ("a",)) -> None:
        FaultPlan.__init__(self)
        Cloud.__init__(self, clock)
        self.zones = tuple(zones)
        """Zones in which the next machines are created, in turn."""
        self._offers = offers
        self._tokens: set[tuple[str, str]] = set()

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        own = [
            offer for offer in self._offers if (offer.instance_type, offer.market) == (seen.type, seen.market)
        ]
        return (*own, *(offer for offer in self._offers if offer not in own))

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:  # noqa: ARG002  the protocol's signature
        with self._meet_fault("acquire", claim.instance) as applied:
            token = (claim.instance, offer.name)
            if applied and token not in self._tokens:
                self._tokens.add(token)
                zone = self.zones[len(self._tokens) % len(self.zones)]
                self.create(claim.instance, offer.instance_type, offer.market.value, zone, claim.tags)
        return True

    def announce(self, instance: str, manifest: str) -> None:
        with self._meet_fault("announce", instance) as applied:
            for machine in self.list_named(instance) if applied else ():
                self.tag(machine.id, {MANIFEST_TAG: manifest})

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        with self._meet_fault("poll", " ".join(instances)):
            return tuple(show_named(name, self.list_named(name), self._clock.seconds) for name in instances)

    def list_created(self) -> tuple[Instance, ...]:
        with self._meet_fault("list_created", ""):
            return show_created(self, self._clock.seconds)

    def teardown(self, instance: str, *, force: bool = False) -> None:  # noqa: ARG002  the protocol's signature
        with self._meet_fault("teardown", instance) as applied:
            for machine in self.list_named(instance) if applied else ():
                self.terminate(machine.id)

    def restore(self, instance: str, instance_type: str) -> None:
        """Its machines have no type of their own."""

    def release(self, instance: str) -> None:
        with self._meet_fault("release", instance) as applied:
            for machine in self.list_named(instance) if applied else ():
                self.terminate(machine.id)


def show_named(name: str, machines: Iterable[CloudMachine], at: float) -> Instance:
    """A poll's answer: of this name, the machine furthest from ending."""
    shown = [seen for since, seen in (machine.shown_at(at) for machine in machines) if since <= at]
    shown = [seen for seen in shown if seen.state in _FROM_THE_END]
    if not shown:
        return Instance(id=name, state=InstanceState.STOPPED)
    first, *others = sorted(shown, key=lambda seen: _FROM_THE_END.index(seen.state), reverse=True)
    return replace(first, id=name, beside=tuple(others))


def show_created(cloud: Cloud, at: float) -> tuple[Instance, ...]:
    """Answer of `list_created` at a moment of the clock."""
    names = sorted({machine.tags.get(MACHINE_TAG, "") for machine in cloud.machines.values()} - {""})
    shown = [show_named(name, cloud.list_named(name), at) for name in names]
    return tuple(seen for seen in shown if not seen.state.proved_stopped)
