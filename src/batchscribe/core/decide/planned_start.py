"""The start that would be made now, and the cost of waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from batchscribe.core.decide.money import ZERO, Usd, cost
from batchscribe.core.decide.observation import InstanceChoice, Observation, Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import LEAST_PORTION_SECONDS, ONE, Batch, Outlook, Priors, foresee, pack
from batchscribe.core.figures import format_count, format_minutes
from batchscribe.core.run.instances import InstanceState

ALREADY_UP = frozenset({InstanceState.PENDING, InstanceState.RUNNING})
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class BacklogWait:
    """Sums over the listed chunks that never failed."""

    audio_hours: float
    waited: float
    """Audio hours times hours of waiting."""
    newest: datetime | None
    tightest: float
    """Longest of the waits so far, in hours, each with the work up to the end of its chunk in one run."""

    def cost(self, price: Usd) -> Usd:
        """Cost at a price for each audio hour and hour."""
        return Usd(round(self.waited * price.micros))

    def describe_cost(self, price: Usd) -> str:
        """Describes the cost at a price for each audio hour and hour."""
        return (
            f"waiting has cost {self.cost(price)} so far at ${price.dollars:g} for each audio hour and hour"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStart:
    offer: Offer
    batch: Batch
    outlook: Outlook
    """For the whole backlog."""
    waits: BacklogWait
    note: str = ""
    """Why this offer was chosen; empty if there was no choice."""
    runner_up: str = ""
    """Name of the second best offer."""
    difference: Usd = ZERO
    """What the runner-up would cost more."""

    @property
    def setup_cost(self) -> Usd:
        """Cost of a start without its work."""
        priors = self.offer.priors
        each = cost(self.offer.rate, priors.setup_seconds + priors.release_seconds)
        return Usd(each.micros * self.outlook.machines)


def plan_start(seen: Observation, policy: Policy) -> PlannedStart:
    """Plans a start of the backlog with the offer of the policy."""
    up = any(instance.state in ALREADY_UP for instance in seen.instances)
    # A created machine has no type of its own that a choice could prefer.
    ordered = bool(seen.instances) and (policy.choice is InstanceChoice.ORDERED or up)
    # A further region is for missing capacity: its rates lack the transfer of the audio.
    here = [offer for offer in seen.offers if offer.region == seen.offers[0].region]
    first, *others = [_plan_with(offer, seen, policy) for offer in here[: 1 if ordered else None]]
    return _choose_cheapest([first, *others], seen, policy) if others else first


def plan_lane(seen: Observation, policy: Policy, start: PlannedStart) -> PlannedStart | None:
    """Plans the whole backlog on this machine's processor, instead of `start`.

    None if it could not be done before the next check, or takes no work now. A user's run is for the GPU.
    """
    if seen.lane is None or policy.manual or not seen.backlog.triggering:
        return None
    runtime = min(policy.max_runtime, policy.check_interval)
    plan = _plan_with(seen.lane, seen, replace(policy, max_runtime=runtime))
    if plan.batch.left or plan.outlook.seconds > runtime.total_seconds():
        return None
    return replace(
        plan,
        note=f"{format_minutes(plan.outlook.audio_seconds)} of audio on this machine at {plan.outlook.cost}, "
        f"done in about {format_minutes(plan.outlook.seconds)}; the GPU would cost {start.outlook.cost}",
        runner_up=start.offer.instance_type,
        difference=start.outlook.cost - plan.outlook.cost,
    )


def _choose_cheapest(plans: list[PlannedStart], seen: Observation, policy: Policy) -> PlannedStart:
    """The cheapest plan within the longest wait, else the fastest."""
    left = _find_time_left(seen, policy)
    in_time = sorted(
        (plan for plan in plans if plan.outlook.seconds <= left), key=lambda plan: plan.outlook.cost
    )
    late = sorted(
        (plan for plan in plans if plan.outlook.seconds > left), key=lambda plan: plan.outlook.seconds
    )
    best, second = (in_time + late)[:2]
    rank = "is the fastest, and no type keeps the longest wait"
    if in_time:
        rank = "is the cheapest that keeps the longest wait" if late else "is the cheapest"
    return replace(
        best,
        note="; ".join(filter(None, (best.note, _compare_plans(best, second, rank)))),
        runner_up=second.offer.name,
        difference=second.outlook.cost - best.outlook.cost,
    )


def _compare_plans(best: PlannedStart, second: PlannedStart, rank: str) -> str:
    more = second.outlook.cost - best.outlook.cost
    difference = f"{more} more" if more >= ZERO else f"{best.outlook.cost - second.outlook.cost} less"
    return (
        f"{best.offer.name} {rank}, at about {best.outlook.cost}; next is {second.offer.name}, {difference}"
    )


def find_waiting_since(seen: Observation) -> datetime | None:
    """Begin of the longest wait of chunks that may start a GPU.

    A later date than now is a wrong clock, and counts as now.
    """
    since = min(filter(None, (seen.backlog.oldest, seen.backlog.oldest_retry)), default=None)
    return min(since, seen.now) if since else None


def _find_time_left(seen: Observation, policy: Policy) -> float:
    """Seconds until the longest wait of the oldest chunk; infinite without one."""
    since = find_waiting_since(seen)
    return (since + policy.max_wait - seen.now).total_seconds() if since else math.inf


def _plan_with(offer: Offer, seen: Observation, policy: Policy) -> PlannedStart:
    runtime = policy.max_runtime.total_seconds()
    numbers = ONE if offer.market is Market.LANE else seen.machine_numbers
    outlooks = foresee(
        seen.backlog,
        offer.priors,
        offer.rate,
        runtime=runtime,
        pause=policy.check_interval.total_seconds(),
        limit=policy.limit,
        machines=numbers,
    )
    outlook, note = _choose_number(outlooks, offer.priors, _find_time_left(seen, policy))
    return PlannedStart(
        offer=offer,
        batch=pack(
            seen.backlog.candidates,
            pending=seen.backlog.pending,
            priors=offer.priors,
            rate=offer.rate,
            seconds=runtime,
            limit=policy.limit,
            machines=outlook.machines,
        ),
        outlook=outlook,
        waits=_measure_waits(seen, offer, outlook.machines),
        note=note,
    )


def _choose_number(outlooks: Sequence[Outlook], priors: Priors, left: float) -> tuple[Outlook, str]:
    """The number of machines for a run, and the sentence for it.

    The cheapest number for one run within the longest wait. If no number does both, the one that needs the
    fewest runs, then the least time. Each machine has at least one portion of work.
    """
    if len(outlooks) == 1:
        return outlooks[0], ""
    portions = outlooks[0].audio_seconds / priors.speed // LEAST_PORTION_SECONDS
    outlooks = outlooks[: max(1, int(portions))]
    able = [outlook for outlook in outlooks if outlook.runs == 1 and outlook.seconds <= left]
    if able:
        best, rank = min(able, key=lambda outlook: outlook.cost), "for one run within the longest wait"
    else:
        best = min(outlooks, key=lambda outlook: (outlook.runs, outlook.seconds))
        rank = f"for {format_count(best.runs, 'run')}: no number keeps the longest wait in one run"
    return best, f"{format_count(best.machines, 'machine')} {rank}, at about {best.cost}"


def _measure_waits(seen: Observation, offer: Offer, machines: int) -> BacklogWait:
    audio = waited = 0.0
    tightest, newest = 0.0, None
    for chunk in seen.backlog.candidates:
        if chunk.previously_failed:
            continue
        hours = offer.priors.audio_seconds(chunk) / _HOUR
        audio += hours
        wait = max(0.0, (seen.now - chunk.modified).total_seconds() / _HOUR)
        waited += hours * wait
        newest = max(newest or chunk.modified, chunk.modified)
        tightest = max(tightest, wait + audio / offer.priors.speed / machines)
    return BacklogWait(audio, waited, newest, tightest)
