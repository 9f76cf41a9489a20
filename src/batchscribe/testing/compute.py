"""In-memory cloud with start and stop times and planned faults."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from batchscribe.core.run.instances import MANIFEST_TAG, RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, MisconfiguredError
from batchscribe.protocols import Clock

_NEXT = {
    InstanceState.PENDING: InstanceState.RUNNING,
    InstanceState.STOPPING: InstanceState.STOPPED,
    InstanceState.SHUTTING_DOWN: InstanceState.TERMINATED,
}
_GONE = frozenset({InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED})


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

    def fail(self, call: str, *faults: Fault | None) -> None:
        """Plans faults of the next calls of a method; None is none."""
        self._faults.setdefault(call, deque()).extend(faults)

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
class _Machine:
    seen: Instance
    since: datetime
    starts: int = 0
    broken_boot: bool = False
    stuck: bool = False
    history: list[tuple[datetime, InstanceState]] = field(default_factory=list)


class FakeCompute(FaultPlan):
    """A protocols.Compute whose machines move by the injected clock, as EC2's do.

    `pending` and `stopping` are the durations of a start and a stop. A stop is refused while a machine
    is pending, a start while it is stopping. Addresses and the launch time are new at every start.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        pending: timedelta = timedelta(seconds=20),
        stopping: timedelta = timedelta(seconds=30),
    ) -> None:
        super().__init__()
        self.lag = timedelta(0)
        """Age of the states that `describe` shows."""
        self._clock = clock
        self._windows = {
            InstanceState.PENDING: pending,
            InstanceState.STOPPING: stopping,
            InstanceState.SHUTTING_DOWN: stopping,
        }
        self._machines: dict[str, _Machine] = {}

    def add(self, instance: str, *, instance_type: str = "g5.xlarge") -> None:
        """Adds a stopped machine."""
        now = self._clock.now()
        stopped = Instance(
            id=instance, state=InstanceState.STOPPED, type=instance_type, private_address="10.0.0.7"
        )
        self._machines[instance] = _Machine(stopped, now, history=[(now, InstanceState.STOPPED)])

    def break_boot(self, instance: str, *, broken: bool = True) -> None:
        """Makes the next starts fall back to stopped."""
        self._advance_machine(instance).broken_boot = broken

    def hold(self, instance: str, *, stuck: bool = True) -> None:
        """Keeps the machine pending or stopping while held; a forced stop frees it."""
        self._advance_machine(instance).stuck = stuck

    def terminate(self, instance: str) -> None:
        """Terminates the machine from outside."""
        self._change_state(self._advance_machine(instance), InstanceState.SHUTTING_DOWN, self._clock.now())

    def start_unclaimed(self, instance: str) -> None:
        """Starts the machine as a user would."""
        machine = self._advance_machine(instance)
        state = machine.seen.state
        if state is InstanceState.STOPPING or state in _GONE:
            raise ComputeUnavailableError(f"{instance} is {state}: will retry")
        if state is not InstanceState.STOPPED:
            return
        now = self._clock.now()
        machine.starts += 1
        address = f"203.0.113.{machine.starts % 254 + 1}"
        machine.seen = replace(machine.seen, launched_at=now, public_address=address, state_reason="")
        self._change_state(machine, InstanceState.PENDING, now)

    def tag(self, instance: str, tags: dict[str, str]) -> None:
        """Sets tags from outside."""
        machine = self._advance_machine(instance)
        machine.seen = replace(machine.seen, tags={**machine.seen.tags, **tags})

    def untag(self, instance: str) -> None:
        """Removes all tags from outside."""
        machine = self._advance_machine(instance)
        machine.seen = replace(machine.seen, tags={})

    def billed_seconds(self, instance: str) -> float:
        """True billed time so far, in seconds."""
        machine = self._advance_machine(instance)
        ends = [at for at, _ in machine.history[1:]] + [self._clock.now()]
        return sum(
            (end - at).total_seconds()
            for (at, state), end in zip(machine.history, ends, strict=True)
            if state.billable
        )

    def describe(self, instance: str) -> Instance:
        with self._meet_fault("describe", instance):
            if instance not in self._machines:
                return Instance(id=instance, state=InstanceState.MISSING)
            machine = self._advance_machine(instance)
            state = self._find_lagged_state(machine)
            return replace(machine.seen, state=state, tags=dict(machine.seen.tags))

    def start(self, claim: Claim) -> None:
        with self._meet_fault("start", claim.instance) as applied:
            if applied:
                self.tag(claim.instance, claim.tags)
                self.start_unclaimed(claim.instance)

    def announce(self, instance: str, manifest: str) -> None:
        with self._meet_fault("announce", instance) as applied:
            if applied:
                self.tag(instance, {MANIFEST_TAG: manifest})

    def stop(self, instance: str, *, force: bool = False) -> None:
        with self._meet_fault("stop", instance) as applied:
            if applied and instance in self._machines:
                self._begin_stop(instance, force=force)

    def release(self, instance: str) -> None:
        with self._meet_fault("release", instance) as applied:
            if applied and instance in self._machines:
                self.tag(instance, RELEASED_TAGS)

    def change_type(self, instance: str, instance_type: str) -> None:
        with self._meet_fault("change_type", instance) as applied:
            if applied:
                machine = self._advance_machine(instance)
                if machine.seen.state is not InstanceState.STOPPED:
                    raise ComputeUnavailableError(f"{instance} is {machine.seen.state}: will retry")
                machine.seen = replace(machine.seen, type=instance_type)

    def _find_lagged_state(self, machine: _Machine) -> InstanceState:
        """State as it was `lag` ago: a cloud's answers are only eventually consistent."""
        then = self._clock.now() - self.lag
        known = [state for at, state in machine.history if at <= then]
        return known[-1] if known else machine.history[0][1]

    def _begin_stop(self, instance: str, *, force: bool) -> None:
        machine = self._advance_machine(instance)
        machine.stuck = machine.stuck and not force
        state = machine.seen.state
        if state is InstanceState.PENDING:
            raise ComputeUnavailableError(f"{instance} is {state}: will retry")
        if state is InstanceState.RUNNING:
            self._change_state(machine, InstanceState.STOPPING, self._clock.now())

    def _advance_machine(self, instance: str) -> _Machine:
        """Returns the machine, advanced to the current time."""
        if instance not in self._machines:
            raise MisconfiguredError(f"there is no instance {instance}: correct GPU_INSTANCE_ID")
        machine = self._machines[instance]
        window = self._windows.get(machine.seen.state)
        if window is not None and not machine.stuck and self._clock.now() - machine.since >= window:
            fell = machine.broken_boot and machine.seen.state is InstanceState.PENDING
            onward = InstanceState.STOPPED if fell else _NEXT[machine.seen.state]
            self._change_state(machine, onward, machine.since + window)
            if fell:
                machine.seen = replace(machine.seen, state_reason="Client.InternalError: broken boot")
        return machine

    def _change_state(self, machine: _Machine, state: InstanceState, at: datetime) -> None:
        address = None if state.proved_stopped else machine.seen.public_address
        machine.seen = replace(machine.seen, state=state, public_address=address)
        machine.since = at
        machine.history.append((at, state))
