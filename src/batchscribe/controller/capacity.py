"""A stopped instance becomes another type where the cloud has no machine of its own."""

from __future__ import annotations

from dataclasses import replace

from batchscribe.controller.context import Terms, World, log, save
from batchscribe.core.decide.money import cost
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.runs import Outcome, Run
from batchscribe.errors import CredentialsError, MisconfiguredError, NoCapacityError, QuotaError


def take_another_type(world: World, terms: Terms, run: Run, error: NoCapacityError) -> Run:
    """The run that wants the next type of the list; on its way out where none is left.

    Only recorded here: the change itself is made, and made again, until it shows.
    """
    refused = run.wanted_type or run.instance_type
    tried = (*run.tried_types, refused)
    for other in terms.instance_types:
        if other not in tried and _payable(world, terms, run, other):
            changed = replace(run, tried_types=tried, wanted_type=other)
            return save(world, changed, f"no {refused} to be had: the instance becomes {other}")
    outcome = Outcome.QUOTA if isinstance(error, QuotaError) else Outcome.NO_CAPACITY
    which = f" (tried: {', '.join(tried)})" if len(tried) > 1 else ""
    return save(world, run.releasing(outcome, f"{error}{which}"))


def become_that_type(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """Asks for the change that was recorded, until it shows: from then on the run is priced as that.

    A type that the instance cannot have is passed over.
    """
    if seen.type == run.wanted_type:
        rate = terms.rate_of(seen.type)
        become = replace(run, instance_type=seen.type, wanted_type="", rate=rate)
        return save(world, become, f"the instance is {seen.type}")
    try:
        world.compute.change_type(run.instance, run.wanted_type)
    except CredentialsError:
        raise
    except MisconfiguredError as error:
        return take_another_type(world, terms, run, NoCapacityError(str(error)))
    return run


def _payable(world: World, terms: Terms, run: Run, instance_type: str) -> bool:
    """Whether it is known what the type costs, and whether that stays within the day's budget."""
    try:
        rate = terms.rate_of(instance_type)
    except MisconfiguredError as error:
        log.warning("a type is left out", instance_type=instance_type, error=str(error))
        return False
    budget = terms.policy.daily_budget
    midnight = world.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if budget is not None and world.ledger.spent(midnight) + cost(rate, run.planned_seconds) > budget:
        log.warning("a type is left out: it would pass the day's budget", instance_type=instance_type)
        return False
    return True
