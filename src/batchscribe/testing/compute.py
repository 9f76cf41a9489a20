"""In-memory cloud with transitions, bills, planned faults and hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from batchscribe.core.run.instances import (
    MACHINE_TAG,
    MANIFEST_TAG,
    RELEASED_TAGS,
    RUN_TAG,
    Claim,
    Instance,
    InstanceState,
)
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, MisconfiguredError
from batchscribe.testing.clock import FakeClock

_GONE = frozenset({InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED})
FORGOTTEN_SECONDS = 3600.0
"""EC2 shows a terminated instance for about an hour."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Error that a call raises; `applied` if the call still takes effect."""

    error: BatchscribeError
    applied: bool = False


class FaultPlan:
    """Records the calls of a double, and raises their planned faults."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._faults: dict[str, deque[Fault | None]] = {}

    def fail(self, call: str, *faults: Fault | BatchscribeError | None) -> None:
        """Plans faults of the next calls of a method; None is none."""
        planned = (Fault(each) if isinstance(each, BatchscribeError) else each for each in faults)
        self._faults.setdefault(call, deque()).extend(planned)

    def _take_fault(self, call: str) -> Fault | None:
        faults = self._faults.get(call)
        return faults.popleft() if faults else None

    @contextmanager
    def _meet_fault(self, call: str, instance: str) -> Iterator[bool]:
        """Yields True if the call takes effect, then raises its planned fault."""
        self.calls.append((call, instance))
        fault = self._take_fault(call)
        yield fault is None or fault.applied
        if fault:
            raise fault.error


@dataclass(slots=True)
class Span:
    """Billed period of a machine, in seconds; `end` is None meanwhile."""

    holder: str
    begin: float
    type: str
    end: float | None = None


@dataclass(slots=True)
class CloudMachine:
    id: str
    type: str
    market: str = ""
    """Empty for an existing instance; a created one terminates instead of stopping."""
    zone: str = ""
    state: InstanceState = InstanceState.STOPPED
    tags: dict[str, str] = field(default_factory=dict)
    holder: str = ""
    """Id of the run, or name of the foreign user, that started it; empty while it is free."""
    since: float = 0.0
    """Time at which the holder started it."""
    starts: int = 0
    launched_at: datetime | None = None
    stopped_at: datetime | None = None
    """Begin of its end, if it was created for a run."""
    reason: str = ""
    stuck: bool = False
    """Its transition does not end, unless by a forced stop."""
    broken: bool = False
    """Its start falls back to stopped."""
    breaks: bool = False
    """So do all of its starts."""
    due: float = 0.0
    """Time at which its transition ends."""
    move: int = 0
    """Number of state changes: an event planned before the last one is void."""
    shown: list[tuple[float, Instance]] = field(default_factory=list)
    """States that polls show, with the time of each change."""
    spans: list[Span] = field(default_factory=list)

    def shown_at(self, then: float) -> tuple[float, Instance]:
        """(time since which it is shown, state shown) at that moment."""
        return next((shown for shown in reversed(self.shown) if shown[0] <= then), self.shown[0])


@dataclass(frozen=True, slots=True)
class Start:
    """Course of a start; a `broken` one falls back to stopped."""

    pending: float = 20.0
    broken: bool = False


class Cloud:
    """Machines of an account, with their true states.

    They change by events planned on the clock, as EC2's do: a stop is refused while a machine is pending,
    a start while it is stopping. Addresses and the launch time are new at every start.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.machines: dict[str, CloudMachine] = {}
        self._named: dict[str, list[CloudMachine]] = {}
        self.refused_types: frozenset[str] = frozenset()
        """Types that no machine can have."""
        self.next_start: Callable[[], Start] = Start
        self.next_stop: Callable[[], float] = lambda: 30.0
        self.gets_stuck: Callable[[], bool] = lambda: False
        self.on_running: Callable[[CloudMachine], None] = lambda _machine: None
        self.on_down: Callable[[CloudMachine], None] = lambda _machine: None
        self.on_change: Callable[[str], None] = lambda _text: None
        self._clock = clock

    def add(self, instance: str, *, instance_type: str = "g5.xlarge") -> CloudMachine:
        """Adds a stopped machine."""
        machine = self.machines[instance] = CloudMachine(instance, instance_type)
        self._show(machine)
        return machine

    def create(
        self, name: str, instance_type: str, market: str, zone: str, tags: dict[str, str]
    ) -> CloudMachine:
        """Creates and starts a machine of this name; names may repeat."""
        instance = f"i-{len(self.machines):017x}"
        machine = CloudMachine(instance, instance_type, market, zone, tags={**tags, MACHINE_TAG: name})
        self.machines[instance] = machine
        self._named.setdefault(name, []).append(machine)
        self._show(machine)
        self.begin_start(instance, machine.tags[RUN_TAG])
        return machine

    def list_named(self, name: str) -> list[CloudMachine]:
        """Machines created with this name that are still shown."""
        now = self._clock.seconds
        return [
            machine
            for machine in self._named.get(name, ())
            if machine.state is not InstanceState.TERMINATED or now - machine.due < FORGOTTEN_SECONDS
        ]

    def begin_start(self, instance: str, holder: str) -> None:
        """Starts it for `holder`; does nothing if it is up already."""
        machine = self.machine(instance)
        if machine.state in _GONE or machine.state is InstanceState.STOPPING:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if machine.state is not InstanceState.STOPPED:
            return
        machine.holder, machine.since = holder, self._clock.seconds
        machine.starts += 1
        machine.launched_at = self._clock.now()
        machine.reason = ""
        self._move(machine, InstanceState.PENDING)
        start = self.next_start()
        machine.broken = start.broken
        self._end_later(machine, start.pending)

    def start_unclaimed(self, instance: str) -> None:
        """Starts it as a user would."""
        self.begin_start(instance, "a user")

    def begin_stop(self, instance: str, *, force: bool = False) -> None:
        """Requests the stop for any holder; refused while pending."""
        machine = self.machines.get(instance)
        if machine is None or machine.state in {InstanceState.STOPPED, *_GONE}:
            return
        if machine.market:
            self.terminate(instance)
            return
        if machine.state is InstanceState.PENDING:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if machine.state is InstanceState.RUNNING:
            # A forced stop does not wait for the operating system, so it cannot hang.
            machine.stuck = not force and (machine.stuck or self.gets_stuck())
            self._move(machine, InstanceState.STOPPING)
            self._end_later(machine, self.next_stop())
        elif force and machine.stuck:
            machine.stuck = False
            self._end_later(machine, self.next_stop())

    def terminate(self, instance: str) -> None:
        """Terminates the machine; does nothing if that was requested before."""
        machine = self.machine(instance)
        if machine.state in _GONE:
            return
        self._move(machine, InstanceState.SHUTTING_DOWN)
        self._end_later(machine, self.next_stop())

    def hold(self, instance: str, *, stuck: bool = True) -> None:
        """Keeps the transition from its end; a forced stop frees it."""
        machine = self.machine(instance)
        machine.stuck = stuck
        self._end_transition(machine)

    def tag(self, instance: str, tags: dict[str, str]) -> None:
        machine = self.machine(instance)
        machine.tags = {**machine.tags, **tags}
        self._show(machine)

    def untag(self, instance: str) -> None:
        """Removes all tags."""
        self.machine(instance).tags = {}
        self.tag(instance, {})

    def retype(self, instance: str, instance_type: str) -> None:
        machine = self.machine(instance)
        if machine.state is not InstanceState.STOPPED:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if instance_type in self.refused_types:
            raise MisconfiguredError(f"{instance} cannot be {instance_type}: correct GPU_INSTANCE_TYPES")
        machine.type = instance_type
        self._show(machine)

    def machine(self, instance: str) -> CloudMachine:
        if instance not in self.machines:
            raise MisconfiguredError(f"there is no instance {instance}: correct GPU_INSTANCE_ID")
        return self.machines[instance]

    def billed(self, holder: str) -> float:
        """True billed time of `holder` so far, in seconds."""
        return self._sum_spans(
            span for machine in self.machines.values() for span in machine.spans if span.holder == holder
        )

    def billed_seconds(self, instance: str) -> float:
        """True billed time of the machine so far."""
        return self._sum_spans(self.machine(instance).spans)

    def _sum_spans(self, spans: Iterable[Span]) -> float:
        now = self._clock.seconds
        return sum((now if span.end is None else span.end) - span.begin for span in spans)

    def _end_later(self, machine: CloudMachine, seconds: float) -> None:
        """Plans the end of the transition, unless another one begins before."""
        machine.due, move = self._clock.seconds + seconds, machine.move
        if seconds:
            self._clock.at(seconds, lambda: self._end_transition(machine) if machine.move == move else None)
        else:
            self._end_transition(machine)

    def _end_transition(self, machine: CloudMachine) -> None:
        if machine.stuck or self._clock.seconds < machine.due:
            return
        if machine.state is InstanceState.PENDING and not (machine.broken or machine.breaks):
            machine.spans.append(Span(machine.holder, self._clock.seconds, machine.type))
            self._move(machine, InstanceState.RUNNING)
            self.on_running(machine)
        elif machine.state is InstanceState.SHUTTING_DOWN or machine.market:
            self._move(machine, InstanceState.TERMINATED)
        elif machine.state.moving:
            if machine.state is InstanceState.PENDING:
                machine.reason = "Client.InternalError: broken boot"
            machine.holder = ""
            self._move(machine, InstanceState.STOPPED)

    def _move(self, machine: CloudMachine, state: InstanceState) -> None:
        if machine.state is InstanceState.RUNNING:
            machine.spans[-1].end = self._clock.seconds
            self.on_down(machine)
        machine.state = state
        if machine.market and not machine.stopped_at and state in _GONE:
            machine.stopped_at = self._clock.now()
        machine.move += 1
        self.on_change(f"{machine.id} is {state} for {machine.holder or 'no holder'}")
        self._show(machine)

    def _show(self, machine: CloudMachine) -> None:
        up = not machine.state.proved_stopped
        seen = Instance(
            id=machine.id,
            state=machine.state,
            type=machine.type,
            market=machine.market,
            zone=machine.zone,
            public_address=f"203.0.113.{machine.starts % 254 + 1}" if up else None,
            private_address="10.0.0.7",
            launched_at=machine.launched_at,
            stopped_at=machine.stopped_at,
            tags=machine.tags,
            state_reason=machine.reason,
        )
        machine.shown.append((self._clock.seconds, seen))


class FakeCompute(FaultPlan, Cloud):
    """A protocols.Compute whose starts and stops take a fixed time."""

    def __init__(
        self,
        clock: FakeClock,
        *,
        pending: timedelta = timedelta(seconds=20),
        stopping: timedelta = timedelta(seconds=30),
    ) -> None:
        FaultPlan.__init__(self)
        Cloud.__init__(self, clock)
        self.lag = timedelta(0)
        """Age of what `describe` shows."""
        self.next_start = partial(Start, pending.total_seconds())
        self.next_stop = stopping.total_seconds

    def break_boot(self, instance: str, *, broken: bool = True) -> None:
        """Makes the next starts fall back to stopped."""
        self.machine(instance).breaks = broken

    def describe(self, instance: str) -> Instance:
        with self._meet_fault("describe", instance):
            if instance not in self.machines:
                return Instance(id=instance, state=InstanceState.MISSING)
            then = self._clock.seconds - self.lag.total_seconds()
            return self.machines[instance].shown_at(then)[1]

    def claim(self, claim: Claim) -> None:
        with self._meet_fault("claim", claim.instance) as applied:
            if applied:
                self.tag(claim.instance, claim.tags)

    def start(self, claim: Claim) -> None:
        with self._meet_fault("start", claim.instance) as applied:
            if applied:
                self.tag(claim.instance, claim.tags)
                self.begin_start(claim.instance, claim.run)

    def announce(self, instance: str, manifest: str) -> None:
        with self._meet_fault("announce", instance) as applied:
            if applied:
                self.tag(instance, {MANIFEST_TAG: manifest})

    def stop(self, instance: str, *, force: bool = False) -> None:
        with self._meet_fault("stop", instance) as applied:
            if applied:
                self.begin_stop(instance, force=force)

    def release(self, instance: str) -> None:
        with self._meet_fault("release", instance) as applied:
            if applied and instance in self.machines:
                self.tag(instance, RELEASED_TAGS)

    def change_type(self, instance: str, instance_type: str) -> None:
        with self._meet_fault("change_type", instance) as applied:
            if applied:
                self.retype(instance, instance_type)
