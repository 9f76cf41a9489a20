"""Simulated cloud with delays, refusals, stale reads, bills and foreign users.

The machines change by events on the timeline. The states that `CloudApi` shows may be older than the true
ones; its requests on foreign machines are recorded, and checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from batchscribe.core.run.instances import MANIFEST_TAG, RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, MisconfiguredError
from simulation.gate import Gate
from simulation.timeline import Timeline

T = TypeVar("T")
_GONE = frozenset({InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED})
UP = frozenset({InstanceState.PENDING, InstanceState.RUNNING})


@dataclass(slots=True)
class Span:
    """Billed period of a machine, in seconds of the timeline; `end` is None while it runs."""

    holder: str
    begin: float
    type: str
    end: float | None = None


@dataclass(slots=True)
class Machine:
    id: str
    type: str
    state: InstanceState = InstanceState.STOPPED
    tags: dict[str, str] = field(default_factory=dict)
    holder: str = ""
    """Id of our run, or name of the foreign user, that started it; empty while it is free."""
    since: float = 0.0
    """Time at which the holder started it."""
    starts: int = 0
    launched_at: datetime | None = None
    reason: str = ""
    stuck: bool = False
    """Its stop does not end unless it is forced."""
    move: int = 0
    """Number of state changes: an event planned before the last one is void."""
    shown: list[tuple[float, Instance]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Start:
    """Course of the next start: seconds until it runs; `broken` if it falls back to stopped."""

    pending: float = 20.0
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Act:
    """A controller's request on an instance, with its time: the call may last long."""

    call: str
    instance: str
    asked: float
    claim: Claim | None = None
    force: bool = False


class Cloud:
    """Machines of an account, with their true states."""

    def __init__(self, line: Timeline) -> None:
        self.machines: dict[str, Machine] = {}
        self.refused_types: frozenset[str] = frozenset()
        """Types that no machine can have."""
        self.next_start: Callable[[], Start] = Start
        self.next_stop: Callable[[], float] = lambda: 30.0
        self.gets_stuck: Callable[[], bool] = lambda: False
        self.on_running: Callable[[Machine], None] = lambda _machine: None
        self.on_down: Callable[[Machine], None] = lambda _machine: None
        self.on_change: Callable[[str], None] = lambda _text: None
        self._line = line

    def add(self, instance: str, *, instance_type: str = "g5.xlarge") -> Machine:
        """Adds a stopped machine."""
        machine = self.machines[instance] = Machine(instance, instance_type)
        self._show(machine)
        return machine

    def start(self, instance: str, holder: str) -> None:
        """Starts it for `holder`; does nothing if it is up already."""
        machine = self.machine(instance)
        if machine.state in _GONE or machine.state is InstanceState.STOPPING:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if machine.state is not InstanceState.STOPPED:
            return
        machine.holder, machine.since = holder, self._line.seconds
        machine.starts += 1
        machine.launched_at = self._line.now()
        machine.reason = ""
        self._move(machine, InstanceState.PENDING)
        start = self.next_start()
        self._later(start.pending, machine, lambda: self._up(machine, broken=start.broken))

    def start_unclaimed(self, instance: str) -> None:
        """Starts it as a user would."""
        self.start(instance, "a user")

    def stop(self, instance: str, *, force: bool = False) -> None:
        """Requests the stop for any holder; refused while pending."""
        machine = self.machines.get(instance)
        if machine is None or machine.state in {InstanceState.STOPPED, *_GONE}:
            return
        if machine.state is InstanceState.PENDING:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if machine.state is InstanceState.RUNNING:
            # A forced stop does not wait for the operating system, so it cannot hang.
            machine.stuck = not force and self.gets_stuck()
            self._move(machine, InstanceState.STOPPING)
            self._later(self.next_stop(), machine, lambda: self._stopped(machine))
        elif force and machine.stuck:
            machine.stuck = False
            self._later(self.next_stop(), machine, lambda: self._down(machine))

    def tag(self, instance: str, tags: dict[str, str]) -> None:
        machine = self.machine(instance)
        machine.tags = {**machine.tags, **tags}
        self._show(machine)

    def retype(self, instance: str, instance_type: str) -> None:
        machine = self.machine(instance)
        if machine.state is not InstanceState.STOPPED:
            raise ComputeUnavailableError(f"{instance} is {machine.state}: will retry")
        if instance_type in self.refused_types:
            raise MisconfiguredError(f"{instance} cannot be {instance_type}: correct GPU_INSTANCE_TYPES")
        machine.type = instance_type
        self._show(machine)

    def machine(self, instance: str) -> Machine:
        if instance not in self.machines:
            raise MisconfiguredError(f"there is no instance {instance}: correct GPU_INSTANCE_ID")
        return self.machines[instance]

    def billed(self, holder: str) -> float:
        """True billed time of `holder` so far, in seconds."""
        now = self._line.seconds
        spans = [span for machine in self.machines.values() for span in machine.spans]
        return sum((now if s.end is None else s.end) - s.begin for s in spans if s.holder == holder)

    def _up(self, machine: Machine, *, broken: bool) -> None:
        if broken:
            machine.reason = "Client.InternalError: the boot is broken"
            self._down(machine)
            return
        machine.spans.append(Span(machine.holder, self._line.seconds, machine.type))
        self._move(machine, InstanceState.RUNNING)
        self.on_running(machine)

    def _stopped(self, machine: Machine) -> None:
        if not machine.stuck:
            self._down(machine)

    def _down(self, machine: Machine) -> None:
        machine.holder = ""
        self._move(machine, InstanceState.STOPPED)

    def _move(self, machine: Machine, state: InstanceState) -> None:
        if machine.state is InstanceState.RUNNING:
            machine.spans[-1].end = self._line.seconds
            self.on_down(machine)
        machine.state = state
        machine.move += 1
        self.on_change(f"{machine.id} is {state} for {machine.holder or 'no holder'}")
        self._show(machine)

    def _later(self, seconds: float, machine: Machine, act: Callable[[], object]) -> None:
        """Plans an event of this state, void once the machine has left it."""
        move = machine.move
        self._line.at(seconds, lambda: act() if machine.move == move else None)

    def _show(self, machine: Machine) -> None:
        up = not machine.state.proved_stopped
        seen = Instance(
            id=machine.id,
            state=machine.state,
            type=machine.type,
            public_address=f"203.0.113.{machine.starts % 254 + 1}" if up else None,
            private_address="10.0.0.7",
            launched_at=machine.launched_at,
            tags=machine.tags,
            state_reason=machine.reason,
        )
        machine.shown.append((self._line.seconds, seen))


class CloudApi:
    """A protocols.Compute on the cloud, as one controller reaches it.

    `lag` is the age of the next poll in seconds, `late_tags` the further age of its tags. `refused` may
    return an error of a start; `looked` gets every polled state, `acted` every request before its effect.
    """

    def __init__(self, cloud: Cloud, line: Timeline, gate: Gate) -> None:
        self.lag: Callable[[], float] = lambda: 0.0
        self.late_tags: Callable[[], float] = lambda: 0.0
        self.refused: Callable[[], BatchscribeError | None] = lambda: None
        self.looked: Callable[[float, float, Instance], None] = lambda _asked, _at, _seen: None
        self.acted: Callable[[Act], None] = lambda _act: None
        self._asked = 0.0
        self._cloud = cloud
        self._line = line
        self._gate = gate

    def describe(self, instance: str) -> Instance:
        return self._call("describe", instance, lambda: self._look(instance))

    def start(self, claim: Claim) -> None:
        # Two requests, as on EC2: the tags come first, and the process may die after either.
        self._call("tag", claim.run, lambda: self._tag(claim))
        self._call("start", claim.run, lambda: self._start(claim))

    def announce(self, instance: str, manifest: str) -> None:
        self._call("announce", instance, lambda: self._cloud.tag(instance, {MANIFEST_TAG: manifest}))

    def stop(self, instance: str, *, force: bool = False) -> None:
        self._call("stop", instance, lambda: self._stop(instance, force=force))

    def release(self, instance: str) -> None:
        self._call("release", instance, lambda: self._release(instance))

    def change_type(self, instance: str, instance_type: str) -> None:
        self._call("change_type", instance, lambda: self._retype(instance, instance_type))

    def _call(self, name: str, subject: str, act: Callable[[], T]) -> T:
        self._asked = self._line.seconds
        return self._gate.call(f"compute.{name}", subject, act)

    def _act(self, call: str, instance: str, claim: Claim | None = None, *, force: bool = False) -> None:
        self.acted(Act(call, instance, self._asked, claim, force))

    def _look(self, instance: str) -> Instance:
        machine = self._cloud.machines.get(instance)
        if machine is None:
            return Instance(id=instance, state=InstanceState.MISSING)
        then = self._line.seconds - self.lag()
        at, seen = _shown(machine, then)
        if late := self.late_tags():
            seen = replace(seen, tags=_shown(machine, then - late)[1].tags)
        self.looked(self._asked, max(at, then), seen)
        return seen

    def _tag(self, claim: Claim) -> None:
        self._cloud.machine(claim.instance)
        self._act("tag", claim.instance, claim)
        self._cloud.tag(claim.instance, claim.tags)

    def _start(self, claim: Claim) -> None:
        self._act("start", claim.instance, claim)
        if error := self.refused():
            raise error
        self._cloud.start(claim.instance, claim.run)

    def _stop(self, instance: str, *, force: bool) -> None:
        self._act("stop", instance, force=force)
        self._cloud.stop(instance, force=force)

    def _release(self, instance: str) -> None:
        if instance in self._cloud.machines:
            self._act("release", instance)
            self._cloud.tag(instance, RELEASED_TAGS)

    def _retype(self, instance: str, instance_type: str) -> None:
        self._act("change_type", instance)
        self._cloud.retype(instance, instance_type)


def _shown(machine: Machine, then: float) -> tuple[float, Instance]:
    """State shown at that moment, with the time since which it is shown."""
    return next((shown for shown in reversed(machine.shown) if shown[0] <= then), machine.shown[0])
