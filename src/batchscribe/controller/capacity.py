"""A stopped instance becomes another type where the cloud has no machine of its own."""

from __future__ import annotations

from dataclasses import replace

from batchscribe.controller.context import Terms, World, keep, log
from batchscribe.core.money import Rate, cost
from batchscribe.core.runs import Outcome, Run
from batchscribe.errors import CredentialsError, MisconfiguredError, NoCapacityError, QuotaError


def take_another_type(world: World, terms: Terms, run: Run, error: NoCapacityError) -> Run:
    """The run with the next type of the list, priced as that; on its way out where none is left.

    Only recorded here: the change itself is made, and made again, until it shows.
    """
    tried = (*run.tried_types, run.instance_type)
    for other in terms.instance_types:
        rate = None if other in tried else _payable(world, terms, run, other)
        if rate is not None:
            changed = replace(run, tried_types=tried, instance_type=other, rate=rate)
            return keep(world, changed, f"no {run.instance_type} to be had: the instance becomes {other}")
    outcome = Outcome.QUOTA if isinstance(error, QuotaError) else Outcome.NO_CAPACITY
    which = f" (tried: {', '.join(tried)})" if len(tried) > 1 else ""
    return keep(world, run.releasing(outcome, f"{error}{which}"))


def become_that_type(world: World, terms: Terms, run: Run) -> Run:
    """Asks for the change that was recorded; a type that the instance cannot have is passed over."""
    try:
        world.compute.change_type(run.instance, run.instance_type)
    except CredentialsError:
        raise
    except MisconfiguredError as error:
        return take_another_type(world, terms, run, NoCapacityError(str(error)))
    return run


def _payable(world: World, terms: Terms, run: Run, instance_type: str) -> Rate | None:
    """What the type costs; None where nobody knows, or where it would pass the day's budget."""
    try:
        rate = terms.rate_of(instance_type)
    except MisconfiguredError as error:
        log.warning("a type is left out", instance_type=instance_type, error=str(error))
        return None
    budget = terms.policy.daily_budget
    midnight = world.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if budget is not None and world.ledger.spent(midnight) + cost(rate, run.planned_seconds) > budget:
        log.warning("a type is left out: it would pass the day's budget", instance_type=instance_type)
        return None
    return rate
