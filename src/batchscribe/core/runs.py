"""A run: one attempt at a batch, from intent to settlement, as a persisted state machine.

State is where it is, outcome is how it ended, step is what moves it on. Every step may be repeated;
a controller that died is no special case.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from batchscribe.core.manifest import Worked
from batchscribe.core.money import MINIMUM_BILLED_SECONDS, ZERO, Rate, Usd, cost
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
    """Its controller stopped moving and was ended by the watchdog."""
    ABANDONED = "abandoned"
    """Its controller died before the start was asked for, or its intent was refused."""

    @property
    def success(self) -> bool:
        return self is Outcome.COMPLETED

    @property
    def no_start(self) -> bool:
        """The instance did not come up: nothing was paid for, and the next check tries again."""
        return self in _NO_START


LONGEST_PENDING = timedelta(minutes=5)
"""From an accepted start to `running`, or back to `stopped`."""
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
    """All that is known of a run. Times are aware UTC; None is what was not seen (yet)."""

    id: str
    state: RunState = RunState.PLANNED
    outcome: Outcome | None = None
    detail: str = ""
    provider: str
    instances: tuple[str, ...]
    region: str = ""
    source: str = ""
    output: str = ""
    """Where it belongs: a run is driven with the settings that it was begun with, or not at all."""
    borrowed: bool = False
    """It was running before us and stays running after us (GPU_IF_RUNNING=use)."""
    policy: str
    reason: str
    created: datetime
    deadline: datetime
    rate: Rate
    instance_type: str = ""
    """What it is, by the last look that was about its type; `rate` is the price of that."""
    wanted_type: str = ""
    """What it is to become before it is started: asked for until it shows; empty where it stays as it is."""
    own_type: str = ""
    """The instance's type before the run; it gets it back where the run had to take another."""
    tried_types: tuple[str, ...] = ()
    """Types that the cloud had no machine for, in this run."""
    trouble: str = ""
    """What the cloud said last, while a start was being asked for."""
    launch: str = ""
    """How its workers come to life: boot, ssh or local; empty where that was not told yet."""
    by_hand: bool = False
    """Asked for by a person (`batchscribe run`): age and live locks do not hold chunks back."""
    limit: int | None = None
    """At most so many chunks."""
    planned_chunks: int = 0
    planned_audio_seconds: float = 0.0
    planned_seconds: float = 0.0
    """Of paid time."""
    manifests: tuple[str, ...] = ()
    """Keys of the manifests, one for each worker, in the order they were dispatched."""
    launched_before: datetime | None = None
    """The instance's launch time as it was before our start: a later one tells that it was started since,
    however little of that was seen."""
    launched: datetime | None = None
    """Its launch time while it was up for us: with a later one it is up for somebody else."""
    start_requested: datetime | None = None
    start_accepted: datetime | None = None
    """The cloud said yes to the start; what it then did is another matter."""
    seen_up: datetime | None = None
    """The first look, after the start request, that did not show `stopped`. Until then `stopped`
    proves nothing: what the cloud shows may be older than our start."""
    idle_until: datetime | None = None
    """The last look, after the start request, at which it was not running yet."""
    running_since: datetime | None = None
    """The first look that saw it running."""
    running_until: datetime | None = None
    """The last look that saw it running."""
    reaching_since: datetime | None = None
    """Since when the box is being asked for a worker; anew for each worker."""
    dispatched: datetime | None = None
    worker_since: datetime | None = None
    """When its first worker came to life, by the worker's own word."""
    first_window: datetime | None = None
    work_ended: datetime | None = None
    stop_requested: datetime | None = None
    stopped: datetime | None = None
    """The first look, after the stop request, at which it was no longer billable."""
    abandoned_gpu: bool = False
    """It was in other hands when we let go of it: nobody says that it was stopped."""
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
    def open(self) -> bool:
        return self.state is not RunState.SETTLED

    def started_since(self, launched_at: datetime | None) -> bool:
        """Whether an instance with this launch time was started after the run was begun."""
        if self.launched_before is None:
            return launched_at is not None  # it had never run before
        return launched_at is not None and launched_at > self.launched_before

    def started_again(self, launched_at: datetime | None) -> bool:
        """Whether somebody stopped and started it after our own start: it is up, but not for us."""
        return self.launched is not None and launched_at is not None and launched_at > self.launched

    def idle(self, until: datetime, *, never_started: bool = False) -> Run:
        """The run after a look that did not see its instance up yet: what comes before it is not billed.

        Unless it was seen running before, or nobody looked for so long that an earlier start may have run,
        unseen, to its end. A launch time of before the run tells that none has.
        """
        looked = self.idle_until or self.start_requested
        unseen = not never_started and looked is not None and until - looked > LONGEST_PENDING
        return self if unseen or self.running_since is not None else replace(self, idle_until=until)

    @property
    def billed_seconds(self) -> float:
        """An upper bound: from the last look before it ran to the first after it stopped.

        0 where it was never seen to leave `stopped`. What may have run unseen, between two looks, is
        billed too. A borrowed instance is billed from our start to our end, since it runs anyway.
        """
        begin = self.idle_until or self.start_requested
        end = self.stopped or self.running_until
        ran = self.borrowed or self.seen_up is not None or self.running_since is not None
        if begin is None or end is None or not ran:
            return 0.0
        return max(0.0, (end - begin).total_seconds())

    def bill(self) -> Usd:
        return cost(self.rate, self.billed_seconds, minimum=0 if self.borrowed else MINIMUM_BILLED_SECONDS)

    def moved(self, state: RunState, **changes: object) -> Run:
        """The run in another state. Raises RefusedError for a move that the table does not have."""
        if state is not self.state and state not in LEGAL[self.state]:
            raise RefusedError(f"run {self.id} cannot go from {self.state} to {state}")
        return replace(self, state=state, **changes)  # type: ignore[arg-type]

    def releasing(self, outcome: Outcome | None, detail: str = "") -> Run:
        """The run on its way out; the first outcome stands."""
        if self.state in {RunState.RELEASING, RunState.VERIFYING, RunState.SETTLED}:
            return self
        return self.moved(RunState.RELEASING, outcome=self.outcome or outcome, detail=self.detail or detail)


def next_step(run: Run) -> Step | None:
    """What to do next with a run; None when it is settled."""
    return _STEPS.get(run.state)
