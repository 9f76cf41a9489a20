"""Kinds and rates of an episode's faults, drawn from its seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

from batchscribe.core.decide.observation import IfRunning, InstanceChoice, Policy, PolicyName

T = TypeVar("T")

MINUTE = 60.0
HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Probabilities of faults, and counts for each episode.

    A probability is for each step, call, start, boot, chunk or tick.
    """

    crash: float = 0.0
    """That the controller dies at a step."""
    fault: float = 0.0
    """That a call of the cloud, the store, the guard or the launcher fails."""
    lost_reply: float = 0.4
    """That a failed call still took effect."""
    slow: float = 0.0
    """That a call takes minutes."""
    hang: float = 0.0
    """That a call returns only after hours."""
    stale: float = 0.0
    """That a poll shows a state that is some seconds old."""
    late_tags: float = 0.0
    """That a poll shows tags that are older than its state."""
    ledger: float = 0.0
    """That a write to the ledger fails."""
    full_disks: int = 0
    """Times in which nothing can be written on the controller's host."""
    broken_boot: float = 0.0
    deaf_boot: float = 0.0
    """That a GPU host boots but runs no units and never answers."""
    lost_agent: float = 0.0
    """That the host's agent dies after a while, and only the dead-man timer is left."""
    dies: float = 0.0
    """That the worker dies at a chunk."""
    hangs: float = 0.0
    poison: float = 0.0
    """That a chunk fails by itself."""
    killer: float = 0.0
    """That a chunk kills its worker."""
    forgotten: float = 0.0
    """That a worker reports a chunk as done without publishing it."""
    endless: float = 0.0
    """That a chunk keeps its worker busy for good."""
    torn: float = 0.0
    """That a worker's progress or exit record is unreadable."""
    stuck: float = 0.0
    """That a stop does not end unless it is forced."""
    signal: float = 0.0
    """That a running tick gets SIGTERM."""
    outages: int = 0
    """Outages of the controller's host; its timers continue after each."""
    lost_disk: float = 0.0
    """That a host comes back from an outage without its ledger."""
    partitions: int = 0
    host_partitions: int = 0
    jumps: int = 0
    """Jumps of the host's wall clock, by up to an hour."""
    droughts: int = 0
    """Times without capacity, without quota, or with expired credentials."""
    refused_types: float = 0.0
    """That the instance cannot have a type."""
    use: float = 0.15
    """That a GPU which is up for another user is borrowed."""
    policies: float = 0.5
    """That another policy than `threshold` decides."""
    people: int = 0
    foreign_runs: int = 0
    """Runs of other schedulers with their own claims."""
    bystanders: int = 0
    """Processes started manually while a tick runs."""
    second_host: float = 0.0
    """That another scheduler's host works on the same bucket and instance."""
    cloned: float = 0.0
    """That its state directory is a copy of the first one's, with the scheduler's id."""
    edits: int = 0
    """Changes of the settings, each for a while."""
    ledger_files: int = 0
    """Times at which the ledger is damaged, set aside, or rolled back to an older copy."""
    forgeries: int = 0
    """Control objects that are forged or deleted by a user who may write the bucket."""
    lane: float = 0.0
    """That the processor of the controller's host works beside the GPU."""
    set_back: float = 0.0
    """That the host's clock is set back by hours while a run works."""
    fleet: int = 0
    """The most machines that a run creates; 0: one existing instance."""
    interruptions: int = 0
    """Spot machines that the cloud interrupts, with a notice or without."""
    slow_machines: float = 0.0
    """That a created machine works at a fraction of the others' speed."""
    at_once: float = 0.0
    """That all audio is there at once: short chunks for two machines, with time to spare in a run."""
    lost_tokens: float = 0.0
    """That a repeated request creates a second machine of the same name."""
    dry_offers: int = 0
    """Times in which one offer has no capacity."""


CALM = Weather()
_SPICES: dict[str, Sequence[float | int]] = {
    "fault": (0.01, 0.03, 0.1),
    "slow": (0.002, 0.01),
    "hang": (0.0005, 0.002),
    "stale": (0.05, 0.3),
    "late_tags": (0.1, 0.5),
    "ledger": (0.005, 0.02),
    "full_disks": (1, 2),
    "broken_boot": (0.1, 0.3),
    "deaf_boot": (0.1, 0.3),
    "lost_agent": (0.2,),
    "dies": (0.01, 0.05),
    "hangs": (0.01, 0.05),
    "poison": (0.1, 0.3),
    "killer": (0.03, 0.1),
    "endless": (0.03,),
    "forgotten": (0.1,),
    "torn": (0.02, 0.1),
    "stuck": (0.2,),
    "signal": (0.1, 0.3),
    "outages": (1, 2, 3),
    "partitions": (1, 2),
    "host_partitions": (1, 2),
    "jumps": (1, 2),
    "droughts": (1, 2),
    "refused_types": (0.5,),
    "people": (1, 2, 3),
    "foreign_runs": (1, 2),
    "bystanders": (2, 5),
}
_CRASHES = (0.0, 0.0005, 0.002, 0.005, 0.02)
_SPICED = 0.22
_FOCUSED = 0.3
_ACTED = 0.25

Focus = Mapping[str, float]
"""Fields of the weather with fixed values; the others are drawn."""
FOCI: Mapping[str, Focus] = {
    "a doubtful start": {"people": 3, "crash": 0.005, "fault": 0.1, "lost_reply": 0.8, "broken_boot": 0.3},
    "foreign claims": {"foreign_runs": 3, "people": 2, "fault": 0.05, "lost_reply": 0.8, "stale": 0.1},
    "stale polls": {"stale": 0.3, "late_tags": 0.5, "people": 3, "fault": 0.03, "lost_reply": 0.8},
    "a borrowed machine": {"use": 1.0, "people": 3, "crash": 0.005, "slow": 0.01},
    "long calls": {"slow": 0.02, "people": 3, "hang": 0.002},
    "a tick that hangs": {"hang": 0.004, "crash": 0.002},
    "other types": {"droughts": 3, "refused_types": 0.3, "stale": 0.3, "crash": 0.005},
    "a lost ledger": {"outages": 3, "lost_disk": 0.6, "stuck": 0.2, "fault": 0.03, "droughts": 2},
    "a wrong clock": {"jumps": 2, "crash": 0.005, "slow": 0.01},
    "a full disk": {"full_disks": 2, "crash": 0.005, "people": 1},
    "unreadable records": {"torn": 0.2, "crash": 0.005, "dies": 0.05},
    "stops that hang": {"stuck": 0.5, "fault": 0.1, "crash": 0.01},
    "work alone": {"crash": 0.0, "fault": 0.0, "hangs": 0.05, "dies": 0.05},
}
"""Weathers in which rare pairs of faults meet."""


ACTORS: Mapping[str, Focus] = {
    "two hosts": {"second_host": 1.0, "crash": 0.002},
    "a cloned host": {"second_host": 1.0, "cloned": 1.0, "crash": 0.002},
    "edited settings": {"edits": 4, "crash": 0.005},
    "an old ledger": {"ledger_files": 3, "crash": 0.002},
    "a writer of the bucket": {"forgeries": 6, "crash": 0.002},
    "a clock set back": {"set_back": 0.7},
    "a CPU lane": {"lane": 1.0, "crash": 0.002, "dies": 0.02},
}
"""Weathers with other programs and users who change what the scheduler works with."""


_FLEET_SPICES: dict[str, Sequence[float | int]] = {
    "interruptions": (1, 3, 10),
    "slow_machines": (0.1, 0.4),
    "lost_tokens": (0.5, 1.0),
    "dry_offers": (2, 6),
}
_NOT_WITH_FLEETS = (
    "people",
    "foreign_runs",
    "second_host",
    "edits",
    "forgeries",
    "stuck",
    "late_tags",
    "lane",
    "use",
)
FLEETS: Mapping[str, Focus] = {
    "a fleet": {"fleet": 20},
    "a slow machine": {"fleet": 4, "slow_machines": 0.5, "at_once": 1.0, "crash": 0.002},
    "a fleet without faults": {"fleet": 20, "crash": 0.0, **dict.fromkeys(_SPICES, 0), "interruptions": -1},
    "a spot market": {"fleet": 12, "interruptions": 12, "dry_offers": 6, "crash": 0.002},
    "a fleet whose ledger is lost": {"fleet": 8, "outages": 3, "lost_disk": 1.0, "ledger_files": 2},
    "lost replies of a fleet": {
        "fleet": 8,
        "fault": 0.1,
        "lost_reply": 0.8,
        "lost_tokens": 0.5,
        "crash": 0.005,
    },
}
"""Weathers of runs that create their machines."""


def add_fleet_faults(rng: random.Random, weather: Weather) -> Weather:
    """Replaces faults of existing instances by those of created machines."""
    spices = {
        name: pick(rng, levels)
        for name, levels in _FLEET_SPICES.items()
        if not getattr(weather, name) and rng.random() < _SPICED
    }
    fields: dict[str, float] = dict.fromkeys(_NOT_WITH_FLEETS, 0) | spices
    return replace(weather, **fields)  # type: ignore[arg-type]


def draw_weather(
    rng: random.Random, focus: Focus | None = None, actors: random.Random | None = None
) -> Weather:
    """Draws the weather of an episode; some have a focus.

    `actors` is a separate random source, so that an episode without actors is the same with and without it.
    """
    crash = pick(rng, _CRASHES)
    spices = {name: pick(rng, levels) for name, levels in _SPICES.items() if rng.random() < _SPICED}
    lost_disk = pick(rng, (0.0, 0.3))
    own = pick(rng, tuple(FOCI.values())) if rng.random() < _FOCUSED else {}
    acted = pick(actors, tuple(ACTORS.values())) if actors and actors.random() < _ACTED else {}
    drawn_fields = {"crash": crash, "lost_disk": lost_disk, **spices}
    fields: dict[str, float] = {**drawn_fields, **own, **acted, **(focus or {})}
    return replace(CALM, **fields)  # type: ignore[arg-type]


def pick(rng: random.Random, among: Sequence[T]) -> T:
    """Picks one element."""
    return among[int(rng.random() * len(among))]


def between(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def draw_policy(rng: random.Random, weather: Weather) -> Policy:
    policy = Policy(
        threshold=pick(rng, (1, 2, 4, 6)),
        max_wait=timedelta(hours=pick(rng, (2, 4, 8))),
        max_runtime=timedelta(minutes=pick(rng, (20, 40, 60, 90))),
        check_interval=timedelta(minutes=pick(rng, (15, 30, 60))),
        if_running=IfRunning.USE if rng.random() < weather.use else IfRunning.HOLD,
    )
    if not weather.policies or rng.random() >= weather.policies:
        return policy
    name = pick(rng, (PolicyName.DEADLINE, PolicyName.BALANCED, PolicyName.NOW))
    return replace(policy, name=name, choice=pick(rng, tuple(InstanceChoice)))
