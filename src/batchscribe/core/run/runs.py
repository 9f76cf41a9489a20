"""A run: one attempt at a batch, as a persisted state machine.

A run has a state; a step moves it to the next one; the outcome is how it ended. Every step may be repeated,
so a crashed controller is no special case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, ZERO, Rate, Usd, cost
from batchscribe.core.run.cloud_account import FurtherRegion
from batchscribe.core.run.manifest import EngineTimeSummary, WorkerName
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.errors import RefusedError


class RunState(StrEnum):
    PLANNED = "planned"
    """The intent is in the ledger and in the store; nothing else happened yet."""
    ARMED = "armed"
    """The external guard is armed, or disabled in the settings."""
    PROVISIONING = "provisioning"
    """The start was requested, or may have been."""
    DISPATCHING = "dispatching"
    """The instance was observed running; its worker is being started."""
    TRANSCRIBING = "transcribing"
    """The worker was started; its progress comes through the store."""
    RELEASING = "releasing"
    """The stop was requested, or is due; not yet observed stopped."""
    VERIFYING = "verifying"
    """Observed stopped (or released running): the store is listed again."""
    SETTLED = "settled"


VERSION = 3
"""Version of a stored run: 1 had separate intents and settlements, 2 one meter for one instance."""
ADOPTED = "adopted"
"""Policy of a run that was taken over: the instance's tag vouches for it, its seal is not ours."""
FAILURES_KEPT = 3
LEGAL: dict[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset({RunState.ARMED, RunState.RELEASING}),
    RunState.ARMED: frozenset({RunState.PROVISIONING, RunState.RELEASING}),
    RunState.PROVISIONING: frozenset({RunState.DISPATCHING, RunState.RELEASING}),
    RunState.DISPATCHING: frozenset({RunState.TRANSCRIBING, RunState.RELEASING}),
    # Back to dispatching if work and time are left: the next worker gets the next manifest.
    RunState.TRANSCRIBING: frozenset({RunState.DISPATCHING, RunState.RELEASING}),
    RunState.RELEASING: frozenset({RunState.VERIFYING}),
    RunState.VERIFYING: frozenset({RunState.SETTLED}),
    RunState.SETTLED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of a run."""

    id: str
    type: str = ""
    market: str = ""
    region: str = ""
    """Offer of a created machine, once its request was accepted or may have been; else empty."""
    rate: Rate | None = None
    """Its price. None is the run's: that of an existing instance, or while `type` is empty."""
    unconfirmed: Moment | None = None
    """Its last request without a reply, for its type and market. None if it may take another offer."""
    meter: Meter = field(default_factory=Meter)
    """Observations of the instance: the billed time, and if it is still ours."""
    reaching_since: Moment | None = None
    """Time of the first request to its host for its current worker; None until it was observed running."""
    refused_since: Moment | None = None
    """Time of the first connection since when its host refused every one."""
    over_since: Moment | None = None
    """Its stop is due since then."""
    outcome: Outcome | None = None
    """How its work ended, once it is over."""
    released: bool = False
    """True once it was observed stopped, handed back, or left to another owner."""

    @property
    def over(self) -> bool:
        """True if it does no more work for the run."""
        return self.over_since is not None

    @property
    def offer(self) -> tuple[str, str, str]:
        return self.type, self.market, self.region


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWorker:
    """A worker of a run: its manifest, and the machine for it."""

    manifest: str
    """Key of the manifest."""
    machine: str
    """Id of the machine."""
    launched: bool = False
    ended: datetime | None = None
    revoked: bool = False
    """Its unfinished chunks are for other workers of the run, as soon as it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as stored. Times are UTC; None is not observed (yet)."""

    version: int = VERSION
    id: str
    scheduler: str = ""
    """Id of the scheduler that opened it, from its state directory."""
    host: str = ""
    """Name of the machine that opened it."""
    state: RunState = RunState.PLANNED
    outcome: Outcome | None = None
    detail: str = ""
    provider: str
    machines: tuple[Machine, ...]
    region: str = ""
    further_regions: tuple[FurtherRegion, ...] = ()
    """Regions beside its own in which its machines may have been created."""
    source: str = ""
    output: str = ""
    """URLs of its stores: a run ends in the stores it was opened with, even if the settings change."""
    guard: str = ""
    """Kind of guard that was configured for it (BATCH_CLOUD_GUARD); empty in records without it."""
    control: str = ""
    """URL of the scheduler's control objects when it was opened; empty if they are below the output."""
    lane: bool = False
    """On this machine's processor, beside the GPU (BATCH_CPU_LANE): it has no bill."""
    borrowed: bool = False
    """The instance ran before the run and stays running after it (GPU_IF_RUNNING=use)."""
    policy: str
    reason: str
    created: datetime
    deadline: datetime
    rate: Rate
    instance_type: str = ""
    """The type that the last poll showed; `rate` is its price."""
    wanted_type: str = ""
    """The type to set before the start; empty if it stays as it is."""
    own_type: str = ""
    """The instance's type before the run; restored if the run used another."""
    chosen_type: str = ""
    """The type that it runs as, if that is not its own (GPU_INSTANCE_CHOICE=cheapest)."""
    tried_types: tuple[str, ...] = ()
    """Types for which the cloud had no capacity in this run."""
    trouble: str = ""
    """The last failure of its present step, which is repeated."""
    blocked: str = ""
    """Hash of the settings with which its host cannot be used until something is changed; else empty."""
    launch: str = ""
    """Start of its workers: boot, ssh or local; empty until known."""
    by_hand: bool = False
    """Requested by a user (`batchscribe run`): age and live locks do not hold chunks back."""
    limit: int | None = None
    """Maximum number of chunks."""
    planned_chunks: int = 0
    planned_audio_seconds: float = 0.0
    planned_seconds: float = 0.0
    """Of paid time."""
    workers: tuple[RunWorker, ...] = ()
    """In order of creation: the number of a worker is its place."""
    dispatched: datetime | None = None
    worker_since: datetime | None = None
    """Start of its first worker, by the worker's own clock."""
    first_window: datetime | None = None
    stop_requested: Moment | None = None
    abandoned_gpu: bool = False
    """The instance was in use by another owner when the run released it: not proved stopped."""
    settled: datetime | None = None
    chunks_done: int = 0
    chunks_failed: int = 0
    failures: dict[str, str] = field(default_factory=dict, hash=False)
    """Reasons of the first FAILURES_KEPT chunks that are quarantined or left, by key."""
    audio_seconds: float = 0.0
    worked: EngineTimeSummary = field(default_factory=EngineTimeSummary, hash=False)
    timeline: dict[str, float] = field(default_factory=dict, hash=False)
    """Seconds of its phases (core/run/timeline.py); empty in runs of 0.1."""
    cost: Usd = ZERO
    """Its bill once it is settled; 0 before. `bill` computes it at any time."""

    @property
    def retyped(self) -> bool:
        """True if its instance may have got another type."""
        return bool(self.chosen_type or self.tried_types)

    @property
    def adopted(self) -> bool:
        return self.policy == ADOPTED

    @property
    def instances(self) -> tuple[str, ...]:
        return tuple(machine.id for machine in self.machines)

    @property
    def instance(self) -> str:
        """Its first machine; its only one with a provider that has one."""
        return self.machines[0].id

    @property
    def creates_machines(self) -> bool:
        """True if its machines were created for it, named RUN-n."""
        return self.instance.startswith(f"{self.id}-")

    @property
    def manifests(self) -> tuple[str, ...]:
        """Keys of the manifests, in the order of the workers."""
        return tuple(worker.manifest for worker in self.workers)

    def manifest_url(self, worker: int) -> str:
        """URL of a worker's manifest."""
        return f"{self.output.rstrip('/')}/{self.manifests[worker]}"

    def name_of(self, worker: int) -> WorkerName:
        return WorkerName(run=self.id, worker=worker)

    def machine(self, instance: str) -> Machine:
        return next(machine for machine in self.machines if machine.id == instance)

    def workers_on(self, instance: str) -> tuple[int, ...]:
        """Numbers of the machine's workers."""
        return tuple(n for n, worker in enumerate(self.workers) if worker.machine == instance)

    def last_worker_on(self, instance: str) -> int | None:
        """Number of the machine's last worker. None if it has none."""
        return max(self.workers_on(instance), default=None)

    @property
    def last_workers(self) -> tuple[int, ...]:
        """Number of each machine's last worker."""
        last = {worker.machine: number for number, worker in enumerate(self.workers)}
        return tuple(last.values())

    @property
    def working(self) -> tuple[Machine, ...]:
        """Machines that work, or will."""
        return tuple(machine for machine in self.machines if not machine.over)

    @property
    def awaited(self) -> tuple[Machine, ...]:
        """Machines that were not observed up for it yet."""
        return tuple(machine for machine in self.working if machine.reaching_since is None)

    @property
    def undispatched(self) -> tuple[Machine, ...]:
        """Machines whose next worker is not launched yet."""
        return tuple(machine for machine in self.working if not self.is_at_work(machine))

    def stop_due(self, machine: Machine) -> Moment | None:
        """Time since when the machine's stop is due; None while it works."""
        return machine.over_since or self.stop_requested

    def is_at_work(self, machine: Machine) -> bool:
        number = self.last_worker_on(machine.id)
        return number is not None and self.workers[number].launched and self.workers[number].ended is None

    @property
    def work_ended(self) -> datetime | None:
        """End of its last worker. None while one works."""
        ends = [self.workers[number].ended for number in self.last_workers]
        return None if None in ends else max(filter(None, ends), default=None)

    @property
    def start_requested(self) -> Moment | None:
        """The first start request."""
        return _find_first(machine.meter.start_requested for machine in self.machines)

    @property
    def running_since(self) -> Moment | None:
        """The first poll that showed a machine running."""
        return _find_first(machine.meter.running_since for machine in self.machines)

    @property
    def stopped(self) -> Moment | None:
        """The end of the last machine's bill. None while one is billed."""
        ends = [machine.meter.stopped for machine in self.machines]
        return None if None in ends else max(filter(None, ends), key=lambda end: end.at)

    @property
    def open(self) -> bool:
        return self.state is not RunState.SETTLED

    @property
    def in_teardown(self) -> bool:
        """True during teardown: stop, verify, settle."""
        return self.state in {RunState.RELEASING, RunState.VERIFYING}

    @property
    def started(self) -> bool:
        """True if the start was requested, or may have been."""
        return self.start_requested is not None

    @property
    def gpu_started(self) -> bool:
        """True if it started a GPU, or may have."""
        return self.started and not self.borrowed and not self.lane

    @property
    def billed_seconds(self) -> float:
        """Upper bound of the billed time of all machines."""
        return sum(self.billed_seconds_of(machine) for machine in self.machines)

    def billed_seconds_of(self, machine: Machine) -> float:
        """Upper bound of the billed time, at least 1 s if up.

        All instances with the machine's name count. If the clocks contradict each other across a reboot, the
        whole time up to the deadline is billed.
        """
        if self.lane:
            return 0.0
        meter = machine.meter
        seconds = meter.billed_seconds
        if seconds is None:
            seconds = (self.deadline - self.created).total_seconds()
        elif meter.ran and meter.is_bounded:
            seconds = max(1.0, seconds)
        return seconds + meter.shared_seconds

    def bill(self) -> Usd:
        return sum((self.bill_of(machine) for machine in self.machines), start=ZERO)

    def bill_of(self, machine: Machine) -> Usd:
        """Cost of one machine at its own rate, at most."""
        minimum = 0 if self.borrowed else MINIMUM_BILLED_SECONDS
        return cost(machine.rate or self.rate, self.billed_seconds_of(machine), minimum=minimum)

    def with_machine(self, instance: str, **changes: object) -> Run:
        changed = replace(self.machine(instance), **changes)  # type: ignore[arg-type]
        return replace(self, machines=tuple(changed if m.id == instance else m for m in self.machines))

    def with_worker(self, number: int, **changes: object) -> Run:
        changed = replace(self.workers[number], **changes)  # type: ignore[arg-type]
        return replace(self, workers=(*self.workers[:number], changed, *self.workers[number + 1 :]))

    def with_work_ended(self, at: datetime) -> Run:
        """The run with all workers ended, at the latest now."""
        workers = tuple(replace(worker, ended=worker.ended or at) for worker in self.workers)
        return replace(self, workers=workers)

    def to_state(self, state: RunState, **changes: object) -> Run:
        """The run in another state, without trouble; raises RefusedError if illegal."""
        if state is not self.state and state not in LEGAL[self.state]:
            raise RefusedError(f"run {self.id} cannot go from {self.state} to {state}")
        trouble = self.trouble if state is self.state else ""
        return replace(self, state=state, trouble=trouble, **changes)  # type: ignore[arg-type]

    def to_teardown(self, outcome: Outcome | None, detail: str = "") -> Run:
        """The run in teardown; the first outcome stays."""
        if self.in_teardown or not self.open:
            return self
        return self.to_state(
            RunState.RELEASING, outcome=self.outcome or outcome, detail=self.detail or detail
        )


def _find_first(moments: Iterable[Moment | None]) -> Moment | None:
    return min(filter(None, moments), key=lambda moment: moment.at, default=None)
