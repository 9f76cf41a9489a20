"""Observation of everything that a decision depends on, at one time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import takewhile

from batchscribe.controller.capacity import list_offers, read_priors
from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.external_state import read_instance_record
from batchscribe.controller.recovery import find_competing_run
from batchscribe.controller.rehearsal_place import is_rehearsal
from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.observation import HostFault, Observation
from batchscribe.core.decide.offers import CPU, LOCAL, Market, Offer
from batchscribe.core.decide.policy import LONGEST_PAUSE
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run

PAUSED = "paused_until"
FAILED_WITHIN = timedelta(days=7)
NOT_CREATED = Instance(id="", state=InstanceState.STOPPED)
"""The poll of a machine that a run would create."""


def observe(world: World, config: RunConfig) -> Observation:
    """Returns the present observation; a failed listing raises."""
    now = world.clock.now()
    found = world.ledger.runs(now - FAILED_WITHIN)
    recent = [run for run in found if not run.lane and not is_rehearsal(run)]
    unproductive = _list_unproductive_runs([run for run in recent if not run.open])
    fault = _find_host_fault(unproductive)
    record = read_instance_record(world, config.image or config.instances[0]) if fault else None
    instances = world.capacity.poll(config.instances) if config.instances else ()
    return Observation(
        now=now,
        backlog=world.scanner(config.policy.manual).backlog(),
        instances=instances,
        offers=list_offers(world, config, instances[0] if instances else NOT_CREATED),
        max_machines=config.max_machines,
        interrupted=_find_interrupted([run for run in recent if not run.open]),
        open_run=find_open_run(found),
        lane=None if find_lane_problem(world, config) else _make_lane_offer(world, config),
        lane_run=find_lane_run(found),
        paused_until=paused_until(world),
        spent_today=world.ledger.spent_today(now),
        unproductive=len(unproductive),
        last_unproductive=unproductive[-1].settled if unproductive else None,
        last_start=max((run.created for run in recent if run.started), default=None),
        host_fault=fault,
        access=config.access,
        set_up_at=record.at if record else None,
        foreign_claim=next(filter(None, (foreign_claim(world, each, now) for each in instances)), None)
        or (None if instances else find_competing_run(world, config) or None),
    )


def _list_unproductive_runs(settled: list[Run]) -> list[Run]:
    """Newest paid runs without any finished chunk, oldest first."""
    paid = [run for run in settled if run.cost.micros]
    return list(takewhile(lambda run: not run.chunks_done, reversed(paid)))[::-1]


def _find_interrupted(settled: list[Run]) -> str:
    """The latest run, if its spot machine was interrupted before the end.

    A run without a transcript waits for the usual triggers: interruptions may be frequent now.
    """
    last = settled[-1] if settled else None
    if last is None or last.outcome is Outcome.COMPLETED or not last.chunks_done:
        return ""
    outcomes = {last.outcome, *(machine.outcome for machine in last.machines)}
    return last.id if Outcome.SPOT_INTERRUPTED in outcomes else ""


def _find_host_fault(unproductive: list[Run]) -> HostFault | None:
    last = unproductive[-1] if unproductive else None
    if last is None or last.outcome is not Outcome.LAUNCH_FAILED or not last.blocked or not last.settled:
        return None
    return HostFault(at=last.settled, cause=last.detail, access=last.blocked)


def find_open_run(runs: Iterable[Run]) -> Run | None:
    """The first open run on the GPU."""
    return next((run for run in runs if run.open and not run.lane), None)


def find_lane_run(runs: Iterable[Run]) -> Run | None:
    """The first run at work on this machine's processor."""
    return next((run for run in runs if run.lane and run.open and not run.in_teardown), None)


def find_lane_problem(world: World, config: RunConfig) -> str:
    """Reason why this machine's processor takes no work now, or empty."""
    if config.lane is None or (problem := config.find_lane_problem()):
        return problem if config.lane else "the GPU is in this machine"
    now = world.clock.now()
    used = [run for run in world.ledger.runs(now - LONGEST_PAUSE) if run.lane]
    if any(run.open for run in used):
        return "it is at work"
    last = used[-1].outcome if used else None
    if last in {None, Outcome.COMPLETED, Outcome.INTERRUPTED}:
        return ""
    return f"its last run, {used[-1].id}, was {last}: it is used again a day later; `batchscribe report`"


def _make_lane_offer(world: World, config: RunConfig) -> Offer | None:
    if config.lane is None:
        return None
    priors = read_priors(world, config.lane, CPU)
    return Offer(provider=LOCAL, instance_type=CPU, market=Market.LANE, rate=FREE, priors=priors)


def paused_until(world: World) -> datetime | None:
    value = world.ledger.get(PAUSED)
    return datetime.fromisoformat(value) if value else None


def foreign_claim(world: World, instance: Instance, now: datetime) -> str | None:
    """Reason why the instance belongs to another scheduler, or None.

    A claim is foreign if its run is unknown here and its deadline has not passed.
    """
    if instance.run is None or world.ledger.run(instance.run) is not None:
        return None
    if instance.deadline is None or instance.deadline <= now:
        return None
    return (
        f"instance {instance.id} is claimed by run {instance.run} of another scheduler "
        f"until {instance.deadline:%Y-%m-%d %H:%M} UTC: not touched"
    )
