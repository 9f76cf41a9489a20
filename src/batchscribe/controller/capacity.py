"""Changes a stopped instance's type if its own has no capacity."""

from __future__ import annotations

from dataclasses import replace

from batchscribe.controller.context import Terms, World, log, save
from batchscribe.core.decide.money import cost
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.runs import Outcome, Run
from batchscribe.errors import CredentialsError, MisconfiguredError, NoCapacityError, QuotaError


def take_another_type(world: World, terms: Terms, run: Run, error: NoCapacityError) -> Run:
    """Requests the next type, or begins teardown if none is left.

    Only records the request: `become_that_type` repeats the change until polls show it.
    """
    refused = run.wanted_type or run.instance_type
    tried = (*run.tried_types, refused)
    for other in terms.instance_types:
        if other not in tried and _is_payable(world, terms, run, other):
            changed = replace(run, tried_types=tried, wanted_type=other)
            return save(world, changed, f"no capacity for {refused}: changing the instance to {other}")
    outcome = Outcome.QUOTA if isinstance(error, QuotaError) else Outcome.NO_CAPACITY
    listed = f" (tried: {', '.join(tried)})" if len(tried) > 1 else ""
    return save(world, run.releasing(outcome, f"{error}{listed}"))


def become_that_type(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """Requests the recorded type until polls show it, then updates the rate.

    Skips a type that the instance cannot have.
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


def _is_payable(world: World, terms: Terms, run: Run, instance_type: str) -> bool:
    """True if the type has a known price within the daily budget."""
    try:
        rate = terms.rate_of(instance_type)
    except MisconfiguredError as error:
        log.warning("instance type skipped", instance_type=instance_type, error=str(error))
        return False
    budget = terms.policy.daily_budget
    midnight = world.clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    if budget is not None and world.ledger.spent(midnight) + cost(rate, run.planned_seconds) > budget:
        log.warning("instance type skipped: it would exceed the daily budget", instance_type=instance_type)
        return False
    return True
