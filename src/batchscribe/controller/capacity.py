"""Offers of the capacity for a run, and the next ones."""

from __future__ import annotations

from dataclasses import replace

from batchscribe.controller.context import RunConfig, World, end_machine, log, save
from batchscribe.core.decide.money import ZERO, Rate, cost
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.errors import MisconfiguredError, NoCapacityError, QuotaError


def poll_one(world: World, instance: str) -> Instance:
    """Polls one machine, of any owner."""
    (seen,) = world.capacity.poll((instance,))
    return seen


def read_priors(world: World, config: RunConfig, instance_type: str) -> Priors:
    """Measurements of earlier runs with this engine and type, or defaults."""
    return world.ledger.priors(
        engine=config.engine.engine,
        model=config.engine.model,
        instance_type=instance_type,
        default=config.priors,
    )


def list_offers(world: World, config: RunConfig, seen: Instance) -> tuple[Offer, ...]:
    """Offers in order of preference, with the priors of their types."""
    offers = world.capacity.offers(seen)
    return tuple(
        replace(offer, priors=read_priors(world, config, offer.instance_type))
        for offer in (offers[:1] if config.first_offer_only else offers)
    )


def choose_offer(world: World, config: RunConfig, run: Run, seen: Instance) -> Offer:
    """The offer to acquire. Raises NoCapacityError if it is no longer offered.

    That of an unconfirmed request is repeated: only the same offer has the same client token.
    """
    if not run.wanted_type:
        return list_offers(world, config, seen)[0]
    machine = run.machine(seen.id)
    for offer in _list_run_offers(world, config, run, seen):
        requested = (offer.instance_type, offer.market, offer.region) == machine.offer
        if requested if machine.unconfirmed else offer.name == run.wanted_type:
            return offer
    raise NoCapacityError(f"{machine.type or run.wanted_type} is no longer offered")


def _list_run_offers(world: World, config: RunConfig, run: Run, seen: Instance) -> tuple[Offer, ...]:
    """Offers as before the run, which may have changed the type."""
    return list_offers(world, config, replace(seen, type=run.own_type or seen.type))


def update_offer(world: World, run: Run, seen: Instance) -> Run:
    """The run with the type that a poll showed, and its price."""
    if not seen.type:
        return run
    if not run.creates_machines:
        return replace(run, instance_type=seen.type, rate=world.capacity.offers(seen)[0].rate)
    # It runs, and its offer had a price.
    known = run.machine(seen.id).rate or run.rate
    named = (seen, *(replace(each, region=seen.region) for each in seen.beside))
    rates = [find_rate(world, each, otherwise=known) for each in named]
    rate = max(rates, key=lambda rate: rate.per_hour)  # one bill for all with its name
    return run.with_machine(seen.id, type=seen.type, market=seen.market, region=seen.region, rate=rate)


def find_rate(world: World, seen: Instance, *, otherwise: Rate | None = None) -> Rate:
    """The price of a machine, else `otherwise`, else nothing with the reason."""
    try:
        return world.capacity.offers(seen)[0].rate
    except MisconfiguredError as error:
        log.warning("price.missing", instance=seen.id, error=str(error))
        return otherwise or Rate(per_hour=ZERO, source=str(error))


def update_offer_if_changed(world: World, run: Run, seen: Instance) -> Run:
    """The run with the price of a created machine's present offer."""
    if not run.creates_machines or not seen.type:
        return run
    recorded = run.machine(seen.id).offer
    same = recorded == (seen.type, seen.market, seen.region) and not seen.beside
    return run if same else update_offer(world, run, seen)


def take_another_offer(
    world: World, config: RunConfig, run: Run, seen: Instance, error: NoCapacityError
) -> Run:
    """Chooses the next offer, or ends the machine's work without one.

    A created machine's offer is also that of all that were not accepted yet. Only records the choice:
    `Capacity.acquire` is repeated until polls show it.
    """
    if not run.creates_machines and any(machine.meter.start_accepted for machine in run.machines):
        return end_machine(world, run, seen.id, Outcome.NO_CAPACITY, str(error))
    refused = run.wanted_type or run.instance_type
    tried = (*run.tried_types, refused)
    for offer in _list_run_offers(world, config, run, seen):
        other = offer.name
        if other not in tried and _is_within_budget(world, config, run, offer):
            changed = replace(run, tried_types=tried, wanted_type=other)
            if run.creates_machines:
                changed = replace(changed, instance_type=offer.instance_type, rate=offer.rate)
                return save(world, changed, f"no capacity for {refused}: trying {other}")
            return save(world, changed, f"no capacity for {refused}: changing the instance to {other}")
    outcome = Outcome.QUOTA if isinstance(error, QuotaError) else Outcome.NO_CAPACITY
    listed = f" (tried: {', '.join(tried)})" if len(tried) > 1 else ""
    return end_machine(world, run, seen.id, outcome, f"{error}{listed}")


def _is_within_budget(world: World, config: RunConfig, run: Run, offer: Offer) -> bool:
    """True if the planned time fits into the rest of the budget."""
    budget = config.policy.daily_budget
    planned = cost(offer.rate, run.planned_seconds)
    if budget is None or world.ledger.spent_today(world.clock.now()) + planned <= budget:
        return True
    log.warning("offer.skipped", reason="daily budget", instance_type=offer.instance_type)
    return False
