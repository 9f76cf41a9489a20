"""A run: one attempt at a batch, from intent to settlement, as a persisted state machine.

State is where it is, outcome is how it ended, step is what moves it on. Every step may be repeated;
a controller that died is no special case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS, ZERO, Rate, Usd, cost
from batchscribe.core.run.manifest import Worked, WorkerName
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.errors import RefusedError


class RunState(StrEnum):
    PLANNED = "planned"
    """The intent is in the ledger and in the store; nothing has happened yet."""
    ARMED = "armed"
    """The guard outside this machine is armed, or switched off by name."""
    PROVISIONING = "provisioning"
    """The start was asked for, or may have been."""
    DISPATCHING = "dispatching"
    """The instance was seen running; its worker is being started."""
    TRANSCRIBING = "transcribing"
    """The worker was started; its progress comes through the store."""
    RELEASING = "releasing"
    """The stop was asked for, or is due; not yet seen stopped."""
    VERIFYING = "verifying"
    """Seen stopped (or handed back): the store is listed again."""
    SETTLED = "settled"


class Outcome(StrEnum):
    """How a run ended; each is a success, or a failure with a name."""

    COMPLETED = "completed"
    """Every chunk of its batch is done or quarantined."""
    INCOMPLETE = "incomplete"
    """Some chunk of its batch is neither done nor quarantined."""
    TIMED_OUT = "timed-out"
    INTERRUPTED = "interrupted"
    NO_CAPACITY = "no-capacity"
    QUOTA = "quota"
    """The account's quota does not allow the start."""
    CREDENTIALS = "credentials"
    """The cloud did not accept the credentials for the start."""
    THROTTLED = "throttled"
    """The cloud did not take the start in time: too many requests, or no answer."""
    STAYED_STOPPED = "stayed-stopped"
    """The start was accepted, and the instance was stopped again all the same."""
    START_FAILED = "start-failed"
    """The start was refused, or the instance was not there to be started."""
    LAUNCH_FAILED = "launch-failed"
    """The box was up, but no worker could be started on it."""
    GPU_BROKEN = "gpu-broken"
    """The box is up, but its GPU or its driver is not usable."""
    WORKER_FAILED = "worker-failed"
    WORKER_LOST = "worker-lost"
    """It went silent, or died, without a last word."""
    INSTANCE_LOST = "instance-lost"
    """Its instance was stopped by somebody else, or is in other hands now."""
    HUNG = "hung"
    """Only in runs of version 0.1: its controller stopped moving and was ended by the watchdog."""
    ABANDONED = "abandoned"
    """Its start was not asked for in time, or its instance was not free."""

    @property
    def success(self) -> bool:
        return self is Outcome.COMPLETED

    @property
    def no_start(self) -> bool:
        """The instance did not come up: nothing was paid for, and the next check tries again."""
        return self in _NO_START


VERSION = 2
"""Of a run as it is stored; version 1 had an intent and a settlement with fields of their own."""
_NO_START = frozenset(
    {
        Outcome.NO_CAPACITY,
        Outcome.QUOTA,
        Outcome.CREDENTIALS,
        Outcome.THROTTLED,
        Outcome.STAYED_STOPPED,
        Outcome.START_FAILED,
    }
)


class Step(StrEnum):
    ARM = "arm"
    PROVISION = "provision"
    AWAIT_RUNNING = "await-running"
    DISPATCH = "dispatch"
    FOLLOW = "follow"
    RELEASE = "release"
    SETTLE = "settle"


LEGAL: dict[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset({RunState.ARMED, RunState.RELEASING}),
    RunState.ARMED: frozenset({RunState.PROVISIONING, RunState.RELEASING}),
    RunState.PROVISIONING: frozenset({RunState.DISPATCHING, RunState.RELEASING}),
    RunState.DISPATCHING: frozenset({RunState.TRANSCRIBING, RunState.RELEASING}),
    # Back to dispatching: work was left, time too, so the next worker gets the next manifest.
    RunState.TRANSCRIBING: frozenset({RunState.DISPATCHING, RunState.RELEASING}),
    RunState.RELEASING: frozenset({RunState.VERIFYING}),
    RunState.VERIFYING: frozenset({RunState.SETTLED}),
    RunState.SETTLED: frozenset(),
}

_STEPS = {
    RunState.PLANNED: Step.ARM,
    RunState.ARMED: Step.PROVISION,
    RunState.PROVISIONING: Step.AWAIT_RUNNING,
    RunState.DISPATCHING: Step.DISPATCH,
    RunState.TRANSCRIBING: Step.FOLLOW,
    RunState.RELEASING: Step.RELEASE,
    RunState.VERIFYING: Step.SETTLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that is known of a run, as it is stored. Times are aware UTC; None is not observed (yet)."""

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
    instances: tuple[str, ...]
    region: str = ""
    source: str = ""
    output: str = ""
    """URLs of its stores: a run is finished where it was opened, whatever the settings say by then."""
    guard: str = ""
    """Kind of guard that was configured for it (BATCH_CLOUD_GUARD); empty in records without it."""
    control: str = ""
    """URL of the scheduler's control objects when it was opened; empty if they are below the output."""
    borrowed: bool = False
    """The instance ran before the run and stays running after it (GPU_IF_RUNNING=use)."""
    policy: str
    reason: str
    created: datetime
    deadline: datetime
    rate: Rate
    instance_type: str = ""
    """The type that the last poll showed; `rate` is the price of that."""
    wanted_type: str = ""
    """The type that the instance gets before it is started; empty if it stays as it is."""
    own_type: str = ""
    """The instance's type before the run; restored after a run that had to take another."""
    tried_types: tuple[str, ...] = ()
    """Types that the cloud had no machine for, in this run."""
    trouble: str = ""
    """The cloud's last answer to a start request that failed."""
    launch: str = ""
    """How its workers are started: boot, ssh or local; empty until that is known."""
    by_hand: bool = False
    """Requested by a user (`batchscribe run`): age and live locks do not hold chunks back."""
    limit: int | None = None
    """Maximum number of chunks."""
    planned_chunks: int = 0
    planned_audio_seconds: float = 0.0
    planned_seconds: float = 0.0
    """Of paid time."""
    manifests: tuple[str, ...] = ()
    """Keys of the manifests, one for each worker, in the order in which they were written."""
    meter: Meter = field(default_factory=Meter)
    """What polls showed of the instance: what is billed, and whether it is still ours."""
    reaching_since: Moment | None = None
    """Since when the host is asked for a worker; set again for each worker."""
    dispatched: datetime | None = None
    worker_since: datetime | None = None
    """Start of its first worker, by the worker's own clock."""
    first_window: datetime | None = None
    work_ended: datetime | None = None
    stop_requested: Moment | None = None
    abandoned_gpu: bool = False
    """The instance was in use by another owner when the run let go of it: not proved stopped."""
    settled: datetime | None = None
    chunks_done: int = 0
    chunks_failed: int = 0
    audio_seconds: float = 0.0
    worked: Worked = field(default_factory=Worked, hash=False)
    cost: Usd = ZERO

    @property
    def instance(self) -> str:
        return self.instances[0]

    @property
    def worker(self) -> WorkerName:
        """Its last worker."""
        return WorkerName(run=self.id, worker=len(self.manifests) - 1)

    @property
    def open(self) -> bool:
        return self.state is not RunState.SETTLED

    @property
    def ending(self) -> bool:
        """True on the way out: stop, verify, settle."""
        return self.state in {RunState.RELEASING, RunState.VERIFYING}

    @property
    def started(self) -> bool:
        """True if the start was asked for, or may have been."""
        return self.meter.start_requested is not None

    @property
    def billed_seconds(self) -> float:
        """Upper bound, in seconds. A run whose instance was up is never billed 0.

        If the clocks contradict each other across a reboot, the whole time up to the deadline is billed.
        """
        seconds = self.meter.billed_seconds
        if seconds is None:
            return (self.deadline - self.created).total_seconds()
        return max(1.0, seconds) if self.meter.ran and self.meter.is_ended else seconds

    def bill(self) -> Usd:
        return cost(self.rate, self.billed_seconds, minimum=0 if self.borrowed else MINIMUM_BILLED_SECONDS)

    def moved(self, state: RunState, **changes: object) -> Run:
        """The run in another state. Raises RefusedError for a move that is not in the table."""
        if state is not self.state and state not in LEGAL[self.state]:
            raise RefusedError(f"run {self.id} cannot go from {self.state} to {state}")
        return replace(self, state=state, **changes)  # type: ignore[arg-type]

    def releasing(self, outcome: Outcome | None, detail: str = "") -> Run:
        """The run on its way out; the first outcome stands."""
        if self.ending or not self.open:
            return self
        return self.moved(RunState.RELEASING, outcome=self.outcome or outcome, detail=self.detail or detail)


def next_step(run: Run) -> Step | None:
    """The next step of a run; None if it is settled."""
    return _STEPS.get(run.state)
