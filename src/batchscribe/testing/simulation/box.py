"""A box beside a GPU, from boot to power-off, with the production agent and a dead-man below it.

Its disk remembers which workers were started; the workers are played. The dead-man needs neither store
nor agent, only the markers of this boot. Both go by the box's own clock, which is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchscribe.core import keys
from batchscribe.core.box import (
    BoxPlace,
    BoxReply,
    EndRequest,
    InstanceRecord,
    StartRequest,
    WorkerName,
    read,
)
from batchscribe.core.manifest import Manifest
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.errors import StoreUnavailableError
from batchscribe.reading import read_record
from batchscribe.testing.simulation.cloud import Cloud, Machine
from batchscribe.testing.simulation.seams import Bucket
from batchscribe.testing.simulation.timeline import START, Timeline
from batchscribe.testing.simulation.worker import Hands, Worker
from batchscribe.worker import boot as production
from batchscribe.worker.boot import BoxAgent, BoxSeams

AGENT_SECONDS = 15.0
"""At least so long between two looks of the agent: it looks more often, and sees no more."""
DEADMAN_SECONDS = 30.0
SILENCE_SECONDS = 900.0
RESTART_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Boot:
    """How a boot goes: seconds until the box is up, whether it answers, and when its agent dies."""

    seconds: float = 30.0
    deaf: bool = False
    agent_lasts: float = float("inf")
    restarts: bool = True
    """The agent comes again after it died."""


class Marks:
    """The markers of one boot, and what the dead-man makes of them."""

    def __init__(self) -> None:
        self.limit: float | None = None
        self.moved = 0.0
        self.asked = False

    def take(self, run: str, *, limit: float, now: float) -> float:  # noqa: ARG002  one boot, one claim
        if self.limit is None:
            self.limit, self.moved = limit, now
        return self.limit

    def alive(self, now: float) -> None:
        self.moved = now

    def off(self) -> None:
        self.asked = True

    def release(self) -> None:
        self.limit = None

    def over(self, now: float) -> bool:
        """Whether the power is to be switched off."""
        return self.limit is not None and (
            self.asked or now >= self.limit or now - self.moved >= SILENCE_SECONDS
        )


class FromTheBox:
    """The bucket as the box reaches it."""

    def __init__(self, bucket: Bucket, online: Callable[[], bool]) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._online = online

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._reached().list(prefix, after=after)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        return self._reached().get(key, limit=limit)

    def create(self, key: str, data: bytes) -> bool:
        return self._reached().create(key, data)

    def replace(self, key: str, data: bytes) -> None:
        self._reached().replace(key, data)

    def delete(self, key: str) -> None:
        self._reached().delete(key)

    def _reached(self) -> Bucket:
        if not self._online():
            raise StoreUnavailableError("the store does not answer")
        return self._bucket


class Box:
    """The box of one machine, through all its boots; the production agent's Workers, too."""

    def __init__(self, line: Timeline, cloud: Cloud, bucket: Bucket, machine: Machine, hands: Hands) -> None:
        self.next_boot: Callable[[], Boot] = Boot
        self.offline_until = 0.0
        self.up = False
        self.workers: dict[tuple[str, int], Worker] = {}
        self.powered_off = 0
        """How often it switched itself off."""
        self.agent_at: float | None = None
        """Since when an agent of this boot looks after a claim that it took up; None while none does."""
        self._line = line
        self._cloud = cloud
        self._bucket = bucket
        self._machine = machine
        self._hands = hands
        self._store = FromTheBox(bucket, lambda: self.online)
        self._boots = 0

    @property
    def online(self) -> bool:
        return self._line.seconds >= self.offline_until

    @property
    def reachable(self) -> bool:
        return self.up and self.online

    def played(self, run: str) -> list[Worker]:
        """Every worker that was started here for the run."""
        return [worker for (name, _number), worker in self.workers.items() if name == run]

    def given(self, run: str, worker: int) -> bool:
        """Whether there is work for that worker of the run."""
        return self._bucket.has(keys.manifest(run, worker))

    def record(self) -> InstanceRecord:
        return read(self._bucket.get(keys.instance(self._machine.id)).data, InstanceRecord)

    def begin(self) -> None:
        """The machine runs: its system boots."""
        self._boots += 1
        boot, number = self.next_boot(), self._boots
        if not boot.deaf:
            self._line.at(boot.seconds, lambda: self._booted(boot, number))

    def end(self) -> None:
        """The machine is going down, and everything on it."""
        self._boots += 1
        self.up, self.agent_at = False, None
        for worker in self.workers.values():
            worker.die()

    def play(self, manifest: Manifest) -> bool:
        """Starts a worker, once in the life of this disk."""
        name = (manifest.run, manifest.worker)
        if name in self.workers:
            return False
        self.workers[name] = Worker(self._line, self._bucket, manifest, self._hands)
        return True

    def start(self, request: StartRequest) -> BoxReply:
        manifest = read_record(self._store, keys.manifest(request.run, request.worker), Manifest)
        return BoxReply(done=self.play(manifest))

    def started(self, name: WorkerName) -> bool:
        return (name.run, name.worker) in self.workers

    def alive(self, name: WorkerName) -> BoxReply:
        worker = self.workers.get((name.run, name.worker))
        return BoxReply(done=worker is not None and worker.alive)

    def cancel(self, name: EndRequest) -> BoxReply:
        worker = self.workers.get((name.run, name.worker))
        if worker is None or not worker.alive:
            return BoxReply(done=False)
        if name.force:
            worker.die()
        else:
            worker.ask_to_end()
        return BoxReply(done=True)

    def _booted(self, boot: Boot, number: int) -> None:
        if self._boots != number:
            return
        self.up = True
        if self.record().boots:
            marks = Marks()
            self._agent(self._new_agent(marks, boot), marks, boot, number)
            self._deadman(marks, number)

    def _new_agent(self, marks: Marks, boot: Boot) -> BoxAgent:
        seams = BoxSeams(
            clock=self._line,
            workers=self,
            marks=marks,
            home=lambda: self._store,
            runs=lambda _claim: self._store,
        )
        launched = self._machine.launched_at or START
        this = production.Boot(id=f"{self._machine.id}-{self._boots}", at=launched)
        assert boot.seconds >= 0
        return BoxAgent(BoxPlace(instance=self._machine.id, home=self._store.url), this, seams)

    def _agent(self, agent: BoxAgent, marks: Marks, boot: Boot, number: int) -> None:
        """One look of the agent, unless it died; then another one may go on."""
        if self._boots != number:
            return
        if self._line.seconds - self._since() >= boot.agent_lasts:
            self.agent_at = None
            if boot.restarts:
                self._line.at(RESTART_SECONDS, lambda: self._again(marks, Boot(seconds=boot.seconds), number))
            return
        wait = agent.step()
        if self.agent_at is None and marks.limit is not None:
            self.agent_at = self._line.seconds
        if wait is not None:
            self._line.at(max(wait, AGENT_SECONDS), lambda: self._agent(agent, marks, boot, number))

    def _again(self, marks: Marks, boot: Boot, number: int) -> None:
        if self._boots == number:
            self._agent(self._new_agent(marks, boot), marks, boot, number)

    def _since(self) -> float:
        return self._machine.spans[-1].begin

    def _deadman(self, marks: Marks, number: int) -> None:
        if self._boots != number:
            return
        if marks.over(self._line.seconds):
            self.powered_off += 1
            self._cloud.stop(self._machine.id)
        elif marks.limit is not None or self._line.seconds - self._since() < 2 * SILENCE_SECONDS:
            self._line.at(DEADMAN_SECONDS, lambda: self._deadman(marks, number))
