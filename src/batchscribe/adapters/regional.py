"""Capacity and guard of several regions, from one adapter each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import structlog

from batchscribe.core.decide.offers import Offer
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    combine_errors,
)
from batchscribe.protocols import Capacity, Guard

log = structlog.get_logger("batchscribe")

_FAILURES = (ComputeUnavailableError, MisconfiguredError)


class RegionalCapacity:
    """A protocols.Capacity of created machines, from one capacity for each region.

    The first region is the run's own and has the name "". A machine counts as absent only if every region
    answered without it: the reply to its request may have been lost in any of them.
    """

    def __init__(self, regions: Mapping[str, Capacity]) -> None:
        self._regions = regions

    def offers(self, seen: Instance) -> tuple[Offer, ...]:
        first, *own = self._list_offers(seen.region, seen)
        return (first, *self._list_other_offers(seen, own))

    def acquire(self, claim: Claim, offer: Offer, seen: Instance) -> bool:
        return self._regions[offer.region].acquire(claim, offer, seen)

    def announce(self, instance: str, manifest: str) -> None:
        (seen,) = self.poll((instance,))
        self._regions[seen.region].announce(instance, manifest)

    def poll(self, instances: tuple[str, ...]) -> tuple[Instance, ...]:
        """Polls each region for the machines that none before showed up.

        Leaves out machines that a region without an answer may have; raises its error if no other is left.
        """
        found: dict[str, Instance] = {}
        failures: list[Exception] = []
        left = instances
        for region, capacity in self._regions.items():
            try:
                polled = capacity.poll(left) if left else ()
            except _FAILURES as error:
                failures.append(error)
                continue
            for seen in polled:
                shown = _place(seen, region)
                found[seen.id] = min(found.get(seen.id, shown), shown, key=_rank)
            left = tuple(name for name in instances if name not in found or _rank(found[name]))
        observed = [name for name in instances if name not in left] if failures else instances
        if failures and not observed:
            raise failures[0]
        return tuple(found[name] for name in observed)

    def list_created(self) -> Iterator[Instance]:
        """Yields the answering regions' machines, then raises a failing one's error."""
        found: dict[str, Instance] = {}
        failures: list[BatchscribeError] = []
        for region, capacity in self._regions.items():
            try:
                for seen in capacity.list_created():
                    shown = _place(seen, region)
                    found[seen.id] = min(found.get(seen.id, shown), shown, key=_rank)
            except _FAILURES as error:
                failures.append(error)
        yield from found.values()
        if failures:
            raise combine_errors(failures)

    def teardown(self, instance: str, *, force: bool = False) -> None:
        _call_each(partial(each.teardown, instance, force=force) for each in self._regions.values())

    def restore(self, instance: str, instance_type: str) -> None:
        """Does nothing: a created machine has no type of its own."""

    def release(self, instance: str) -> None:
        _call_each(partial(each.release, instance) for each in self._regions.values())

    def _list_offers(self, region: str, seen: Instance) -> tuple[Offer, ...]:
        return tuple(replace(offer, region=region) for offer in self._regions[region].offers(seen))

    def _list_other_offers(self, seen: Instance, own: Sequence[Offer]) -> Iterator[Offer]:
        """Yields all other offers, in the order of the regions."""
        for region in self._regions:
            if region == seen.region:
                yield from own
                continue
            try:
                yield from self._list_offers(region, Instance(id=seen.id, state=InstanceState.STOPPED))
            except MisconfiguredError as error:
                log.info("offer.skipped", region=region, error=str(error))


class RegionalGuard:
    """A protocols.Guard over all regions in which machines may be created."""

    def __init__(self, guards: Sequence[Guard]) -> None:
        self.description = guards[0].description
        self._guards = guards

    def arm(self, claim: Claim) -> None:
        for guard in self._guards:
            guard.arm(claim)

    def disarm(self, instance: str, run: str) -> None:
        _call_each(partial(guard.disarm, instance, run) for guard in self._guards)

    def armed(self, instance: str) -> frozenset[str]:
        """Runs with an armed order in some region."""
        return frozenset[str]().union(*(guard.armed(instance) for guard in self._guards))


def _place(seen: Instance, region: str) -> Instance:
    """The machine with its region; one without a type is in none."""
    return replace(seen, region=region) if seen.type else seen


def _rank(seen: Instance) -> int:
    """Rank of a region's poll result: up, ended, not proved absent, absent."""
    if seen.state is InstanceState.MISSING:
        return 2
    if seen.state.proved_stopped:
        return 1 if seen.type else 3
    return 0


def _call_each(calls: Iterable[Callable[[], None]]) -> None:
    """Makes each call, even if one before fails. Raises the first error."""
    failures: list[Exception] = []
    for call in calls:
        try:
            call()
        except _FAILURES as error:
            failures.append(error)
    if failures:
        raise failures[0]
