"""Access of one controller to the simulated cloud.

The states that it shows may be older than the true ones; requests on foreign machines are recorded, and
checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from batchscribe.core.run.instances import MANIFEST_TAG, RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.errors import BatchscribeError
from batchscribe.testing.compute import Cloud
from simulation.gate import Gate
from simulation.timeline import Timeline

T = TypeVar("T")
UP = frozenset({InstanceState.PENDING, InstanceState.RUNNING})


@dataclass(frozen=True, slots=True)
class Act:
    """A controller's request on an instance, with its time.

    The call may last long.
    """

    call: str
    instance: str
    asked: float
    claim: Claim | None = None
    force: bool = False


class Access:
    """Access of one controller to the cloud.

    `lag` is the age of the next poll in seconds, `late_tags` the further age of its tags. `refused` may
    return an error of a start; `polled` gets every polled state, `acted` every request before its effect.
    """

    def __init__(self, cloud: Cloud, line: Timeline, gate: Gate) -> None:
        self.lag: Callable[[], float] = lambda: 0.0
        self.late_tags: Callable[[], float] = lambda: 0.0
        self.refused: Callable[[], BatchscribeError | None] = lambda: None
        self.polled: Callable[[float, float, Instance], None] = lambda _asked, _at, _seen: None
        self.acted: Callable[[Act], None] = lambda _act: None
        self._asked = 0.0
        self._cloud = cloud
        self._line = line
        self._gate = gate

    def _call(self, name: str, subject: str, act: Callable[[], T]) -> T:
        self._asked = self._line.seconds
        return self._gate.call(f"compute.{name}", subject, act)


class CloudApi(Access):
    """A protocols.Compute on the cloud."""

    def describe(self, instance: str) -> Instance:
        at, seen = self._call("describe", instance, lambda: self._poll(instance))
        # Not within the call: a poll whose reply was lost showed nothing.
        self.polled(self._asked, at, seen)
        return seen

    def claim(self, claim: Claim) -> None:
        self._call("tag", claim.run, lambda: self._tag(claim))

    def start(self, claim: Claim) -> None:
        # Two requests, as on EC2: the tags come first, and the process may die after either.
        self.claim(claim)
        self._call("start", claim.run, lambda: self._start(claim))

    def announce(self, instance: str, manifest: str) -> None:
        self._call("announce", instance, lambda: self._cloud.tag(instance, {MANIFEST_TAG: manifest}))

    def stop(self, instance: str, *, force: bool = False) -> None:
        self._call("stop", instance, lambda: self._stop(instance, force=force))

    def release(self, instance: str) -> None:
        self._call("release", instance, lambda: self._release(instance))

    def change_type(self, instance: str, instance_type: str) -> None:
        self._call("change_type", instance, lambda: self._retype(instance, instance_type))

    def _act(self, call: str, instance: str, claim: Claim | None = None, *, force: bool = False) -> None:
        self.acted(Act(call, instance, self._asked, claim, force))

    def _poll(self, instance: str) -> tuple[float, Instance]:
        """Returns the shown state, and the moment that it showed."""
        machine = self._cloud.machines.get(instance)
        if machine is None:
            return self._line.seconds, Instance(id=instance, state=InstanceState.MISSING)
        then = self._line.seconds - self.lag()
        at, seen = machine.shown_at(then)
        if late := self.late_tags():
            seen = replace(seen, tags=machine.shown_at(then - late)[1].tags)
        return max(at, then), seen

    def _tag(self, claim: Claim) -> None:
        self._cloud.machine(claim.instance)
        self._act("tag", claim.instance, claim)
        self._cloud.tag(claim.instance, claim.tags)

    def _start(self, claim: Claim) -> None:
        self._act("start", claim.instance, claim)
        if error := self.refused():
            raise error
        self._cloud.begin_start(claim.instance, claim.run)

    def _stop(self, instance: str, *, force: bool) -> None:
        self._act("stop", instance, force=force)
        self._cloud.begin_stop(instance, force=force)

    def _release(self, instance: str) -> None:
        if instance in self._cloud.machines:
            self._act("release", instance)
            self._cloud.tag(instance, RELEASED_TAGS)

    def _retype(self, instance: str, instance_type: str) -> None:
        self._act("change_type", instance)
        self._cloud.retype(instance, instance_type)
