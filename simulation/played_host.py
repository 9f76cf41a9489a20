"""A simulated GPU host with the production agent and a dead-man timer.

Its disk keeps the started workers and the controller's requests over ssh; the workers are
simulated. The dead-man timer needs neither store nor agent, only the state files of this boot. Both use the
host's own clock, which is correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from batchscribe.agent import boot as production
from batchscribe.agent.boot import AgentSeams, HostAgent
from batchscribe.agent.state_files import NoDeadman
from batchscribe.core import keys
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.host import HostClaim, HostPlace, InstanceRecord, StartPermit, StartRequest
from batchscribe.core.run.instances import MANIFEST_TAG
from batchscribe.core.run.manifest import Manifest, WorkerName
from batchscribe.errors import StoreUnavailableError
from batchscribe.reading import read_record
from batchscribe.testing.compute import Cloud, CloudMachine
from batchscribe.testing.worker import PlayedWorker, WorkerScript
from batchscribe.worker.trust import refuse_foreign_work
from simulation.seams import Bucket
from simulation.timeline import START, Timeline

AGENT_SECONDS = 15.0
"""Minimum time between two polls of the agent; the real one polls more often and observes no more."""
DEADMAN_SECONDS = 30.0
SILENCE_SECONDS = 900.0
RESTART_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Boot:
    """Course of a boot: duration, if the host answers, and agent death."""

    seconds: float = 30.0
    deaf: bool = False
    agent_lasts: float = float("inf")
    restarts: bool = True
    """The unit starts the agent again after it died."""


class PlayedDeadman:
    """State files of one boot, and the dead-man timer's decision from them."""

    powers_off = True

    def __init__(self) -> None:
        self.limit: float | None = None
        self.moved = 0.0
        self.asked = False

    def record_claim(self, run: str, *, limit: float, now: float) -> float:  # noqa: ARG002  one boot, one claim
        if self.limit is None:
            self.limit, self.moved = limit, now
        return self.limit

    def record_progress(self, now: float) -> None:
        self.moved = now

    def request_power_off(self) -> None:
        self.asked = True

    def delete_claim(self) -> None:
        self.limit = None

    def over(self, now: float) -> bool:
        """True if the power is to be switched off."""
        return self.limit is not None and (
            self.asked or now >= self.limit or now - self.moved >= SILENCE_SECONDS
        )


class RemoteBucket:
    """The bucket as the GPU host reaches it."""

    def __init__(self, bucket: Bucket, online: Callable[[], bool]) -> None:
        self.url = bucket.url
        self._bucket = bucket
        self._online = online

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self._reached().list(prefix, after=after)

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        return self._reached().get(key, limit=limit)

    def get_range(self, key: str, start: int, length: int) -> Blob:
        return self._reached().get_range(key, start, length)

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


class PlayedHost:
    """Host of one machine, through all its boots.

    Also the production agent's Workers.
    """

    def __init__(
        self, line: Timeline, cloud: Cloud, bucket: Bucket, machine: CloudMachine, script: WorkerScript
    ) -> None:
        self.next_boot: Callable[[], Boot] = Boot
        self.offline_until = 0.0
        self.up = False
        self.workers: dict[tuple[str, int], PlayedWorker] = {}
        self.begun: Callable[[Manifest], object] = lambda _manifest: None
        """Called with each manifest before its worker starts."""
        self.powered_off = 0
        """Number of its own power-offs."""
        self.agent_at: float | None = None
        """Time since which an agent of this boot supervises a claim; None without one."""
        self._line = line
        self._cloud = cloud
        self._bucket = bucket
        self._machine = machine
        self._script = script
        self._store = RemoteBucket(bucket, lambda: self.online)
        self._place = HostPlace(instance=machine.id, home=bucket.url, source=bucket.url)
        self._boots = 0
        self._permits: dict[str, StartPermit] = {}
        self._deadman_files: PlayedDeadman | None = None
        """None without units."""
        self._agent: HostAgent | None = None
        """The live agent."""

    @property
    def online(self) -> bool:
        return self._line.seconds >= self.offline_until

    @property
    def reachable(self) -> bool:
        return self.up and self.online

    @property
    def powers_off(self) -> bool:
        """True if the dead-man timer acts for a claim."""
        return self._deadman_files is not None and self._deadman_files.limit is not None

    def played(self, run: str) -> list[PlayedWorker]:
        """Workers that were started here for the run."""
        return [worker for (name, _number), worker in self.workers.items() if name == run]

    def given_at(self, run: str, worker: int) -> float | None:
        """Time at which that worker of the run got its manifest."""
        at = self._bucket.modified(keys.manifest(run, worker))
        return self._line.moment(at) if at else None

    def play(self, manifest: Manifest) -> None:
        """Starts a worker."""
        self.begun(manifest)
        self.workers[manifest.run, manifest.worker] = PlayedWorker(
            self._line, self._bucket, manifest, self._script
        )

    def record(self) -> InstanceRecord:
        return read_record(self._bucket, keys.instance(self._machine.id), InstanceRecord)

    def begin(self) -> None:
        """Boots the system of the running machine."""
        self._boots += 1
        boot, number = self.next_boot(), self._boots
        if not boot.deaf:
            self._line.at(boot.seconds, lambda: self._booted(boot, number))

    def end(self) -> None:
        """Ends everything on the machine when it goes down."""
        self._boots += 1
        self.up, self.agent_at, self._agent, self._deadman_files = False, None, None, None
        for worker in self.workers.values():
            worker.die()

    # requests of a controller over ssh

    def start(self, request: StartRequest) -> None:
        """Permits the run's workers, and starts an agent if none lives."""
        given = msgspec.structs.asdict(request)
        self._permits[request.run] = StartPermit(**given, boot=self._boot_id, at=self._line.now())
        if self._agent is None:
            self._start_agent(Boot(), request.run)

    # the protocol of its agent

    def permit(self, run: str) -> StartPermit | None:
        permit = self._permits.get(run)
        return permit if permit and permit.boot == self._boot_id else None

    def deadman_files(self, claim: HostClaim) -> PlayedDeadman | NoDeadman:
        """Records that the agent accepts the claim, and returns the state files."""
        if self.agent_at is None:
            self.agent_at = self._line.seconds
        return NoDeadman() if claim.borrowed or self._deadman_files is None else self._deadman_files

    def start_worker(
        self,
        name: WorkerName,
        url: str,  # noqa: ARG002  this and the next two: the protocol's
        *,
        region: str,  # noqa: ARG002
        endpoint: str,  # noqa: ARG002
        sha256: str,  # noqa: ARG002
    ) -> None:
        key = keys.manifest(name.run, name.worker)
        if not self.was_started(name):
            manifest = read_record(self._store, key, Manifest)
            refuse_foreign_work(manifest, root=self._store.url, key=key, place=self._place)
            self.play(manifest)

    def was_started(self, name: WorkerName) -> bool:
        return (name.run, name.worker) in self.workers

    def is_running(self, name: WorkerName) -> bool:
        worker = self.workers.get((name.run, name.worker))
        return worker is not None and worker.alive

    def end_worker(self, name: WorkerName, *, force: bool) -> None:
        worker = self.workers.get((name.run, name.worker))
        if worker and force:
            worker.die()
        elif worker:
            worker.ask_to_end()

    # its boots

    @property
    def _boot_id(self) -> str:
        return f"{self._machine.id}-{self._boots}"

    def _booted(self, boot: Boot, number: int) -> None:
        if self._boots != number:
            return
        self.up = True
        if self.record().boots:
            self._deadman_files = PlayedDeadman()
            self._start_agent(boot)
            self._deadman(self._deadman_files, number)

    def _make_seams(self) -> AgentSeams:
        return AgentSeams(
            clock=self._line,
            workers=self,
            deadman_files=self.deadman_files,
            permit=self.permit,
            announced=lambda: self._machine.tags.get(MANIFEST_TAG),
            home=lambda: self._store,
            runs=lambda _claim: self._store,
        )

    def _start_agent(self, boot: Boot, run: str = "") -> None:
        this = production.Boot(id=self._boot_id, at=self._machine.launched_at or START)
        self._agent = HostAgent(self._place, this, self._make_seams(), run=run)
        self._step_agent(self._agent, boot)

    def _step_agent(self, agent: HostAgent, boot: Boot) -> None:
        """Makes one step of the agent, unless it or its machine ended."""
        if self._agent is not agent:
            return
        if self._line.seconds - self._since() >= boot.agent_lasts:
            self._agent = self.agent_at = None
            number = self._boots
            if boot.restarts:
                self._line.at(RESTART_SECONDS, lambda: self._restart_agent(number))
            return
        wait = agent.step()
        if wait is None:
            self._agent = None
        else:
            self._line.at(max(wait, AGENT_SECONDS), lambda: self._step_agent(agent, boot))

    def _restart_agent(self, number: int) -> None:
        if self._boots == number and self._agent is None:
            self._start_agent(Boot())

    def _since(self) -> float:
        return self._machine.spans[-1].begin

    def _deadman(self, deadman_files: PlayedDeadman, number: int) -> None:
        if self._boots != number:
            return
        if deadman_files.over(self._line.seconds):
            self.powered_off += 1
            self._cloud.begin_stop(self._machine.id)
        elif deadman_files.limit is not None or self._line.seconds - self._since() < 2 * SILENCE_SECONDS:
            self._line.at(DEADMAN_SECONDS, lambda: self._deadman(deadman_files, number))
