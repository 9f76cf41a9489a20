"""An agent on a memory store and a fake clock: its workers are simulated, its power is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import msgspec

from batchscribe import __version__
from batchscribe.agent.boot import AgentSeams, Boot, HostAgent, run_agent
from batchscribe.agent.state_files import NoDeadman
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import (
    BootRecord,
    ClaimLaunch,
    EndRequest,
    HostClaim,
    HostEnd,
    HostPlace,
    HostWaits,
    InstanceRecord,
    StartPermit,
)
from batchscribe.core.run.manifest import (
    ExitRecord,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
    WorkerName,
)
from batchscribe.errors import BatchscribeError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.launcher_suite import make_manifest
from batchscribe.testing.store import MemoryStore

T = TypeVar("T", bound=msgspec.Struct)
INSTANCE = "i-0123456789abcdef0"
RUN = "run-1"


@dataclass(frozen=True)
class Started:
    """What a worker was started with."""

    run: str
    worker: int
    url: str
    region: str
    endpoint: str
    sha256: str = ""


@dataclass
class RecordedWorkers:
    """Workers that live until they are asked to end or a test says so; a deaf one must be killed."""

    deaf: bool = False
    error: BatchscribeError | None = None
    requests: list[Started] = field(default_factory=list)
    asked: list[EndRequest] = field(default_factory=list)
    on_end: Callable[[EndRequest], None] | None = None
    """How a worker ends that was asked to; None is at once, without a last word."""
    _known: dict[WorkerName, bool] = field(default_factory=dict)

    def start_worker(self, name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str) -> None:
        if self.error:
            raise self.error
        if name not in self._known:
            self.requests.append(Started(name.run, name.worker, url, region, endpoint, sha256))
            self._known[name] = True

    def was_started(self, name: WorkerName) -> bool:
        return name in self._known

    def is_running(self, name: WorkerName) -> bool:
        return self._known.get(name, False)

    def end_worker(self, name: WorkerName, *, force: bool) -> None:
        if not self._known.get(name):
            return
        request = EndRequest(run=name.run, worker=name.worker, force=force)
        self.asked.append(request)
        if force or not (self.deaf or self.on_end):
            self._known[name] = False
        elif self.on_end and not self.deaf:
            self.on_end(request)

    def begin(self, worker: int = 0) -> None:
        """The worker runs, whoever started it."""
        self._known[WorkerName(run=RUN, worker=worker)] = True

    def die(self, worker: int = 0) -> None:
        self._known[WorkerName(run=RUN, worker=worker)] = False


@dataclass
class NotedMarks:
    """The dead-man's files, and when it would act on them."""

    powers_off = True
    clock: FakeClock
    limit: float | None = None
    run: str = ""
    moved: list[float] = field(default_factory=list)
    off_at: float | None = None

    def record_claim(self, run: str, *, limit: float, now: float) -> float:
        if self.limit is None or self.run != run:
            self.limit, self.run = limit, run
            self.moved.append(now)
        return self.limit

    def record_progress(self, now: float) -> None:
        self.moved.append(now)

    def request_power_off(self) -> None:
        assert self.taken, "the dead-man powers off only for a claim"
        self.off_at = self.off_at or self.clock.monotonic()

    def delete_claim(self) -> None:
        self.limit = None

    @property
    def taken(self) -> bool:
        return self.limit is not None


class Awake:
    """One host, one run, and everything that may happen around them. Times are seconds from now on."""

    def __init__(self, *, waits: HostWaits | None = None, machine: str = "") -> None:
        """`machine`: the name of a machine that was created for the run; empty is an existing instance."""
        self.machine = machine
        self.named: Callable[[], str] = lambda: machine
        """What its tag shows."""
        self.interruption = ""
        """The cloud's notice that it takes the machine back."""
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.workers = RecordedWorkers()
        self.deadman_files = NotedMarks(self.clock)
        self.boot = Boot(id="boot-1", at=self.clock.now() - timedelta(seconds=20))
        self.place = HostPlace(instance=INSTANCE, home="memory://double", waits=waits or HostWaits())
        self.permits: dict[str, StartPermit] = {}
        self.announced: str | None = None
        """Hash of the manifest in the instance's tag."""
        self.began = self.clock.monotonic()
        self.created = self.boot.at - timedelta(seconds=40)
        self.deadline = self.clock.now() + timedelta(hours=2)

    def claim(self, launch: ClaimLaunch = ClaimLaunch.BOOT, **changes: object) -> HostClaim:
        claim = HostClaim(
            run=RUN, created=self.created, deadline=self.deadline, output=self.store.url, launch=launch
        )
        return msgspec.structs.replace(claim, **{"machine": self.machine} | changes)

    def record(self, claim: HostClaim | None) -> None:
        instance = self.machine or INSTANCE
        record = InstanceRecord(
            instance=instance, release=__version__, at=self.created, boots=True, shows_tags=True, claim=claim
        )
        self.store.replace(keys.instance(instance), msgspec.json.encode(record))

    def start_over_ssh(self, *, borrowed: bool = False, run: str = RUN, sha256: str = "") -> None:
        """The controller's start request, as the host keeps it."""
        self.permits[run] = StartPermit(
            run=run,
            release=__version__,
            output=self.store.url,
            deadline=self.deadline,
            borrowed=borrowed,
            sha256=sha256,
            boot=self.boot.id,
            at=self.clock.now(),
        )

    def intend(self) -> None:
        """Stores the record of the run: the host only checks that it is there."""
        self.store.create(keys.intent(RUN), b"{}")

    def settle(self) -> None:
        self.store.create(keys.settlement(RUN), b"{}")

    def claimed(self, launch: ClaimLaunch = ClaimLaunch.BOOT, **changes: object) -> None:
        """A claim with its intent, as a controller leaves them before it starts the instance."""
        self.intend()
        self.record(self.claim(launch, **changes))

    def give(self, worker: int = 0) -> None:
        """A manifest that its controller announced."""
        self.announced = self.give_unannounced(worker)

    def give_unannounced(self, worker: int = 0, **changes: object) -> str:
        """A manifest, and its hash."""
        given = make_manifest(run=RUN, worker=worker, output=self.store.url)
        manifest = msgspec.structs.replace(given, **{"deadline": self.deadline} | changes)
        self.store.replace(keys.manifest(RUN, worker), wire.encode(manifest))
        return wire.digest(manifest)

    def progress(
        self,
        results: int,
        worker: int = 0,
        sequence: int = 0,
        *,
        phase: Phase = Phase.WORKING,
        tally: Tally | None = None,
    ) -> None:
        progress = Progress(
            run=RUN,
            worker=worker,
            sequence=sequence,
            phase=phase,
            at=self.clock.now(),
            total=1,
            tally=tally or Tally(),
            timings=Timings(),
            results=results,
        )
        self.store.replace(keys.progress(RUN, worker), wire.encode(progress))

    def finish(self, worker: int = 0, end: WorkerEnd = WorkerEnd.FINISHED) -> None:
        """The worker's last word, and its end."""
        record = ExitRecord(
            run=RUN, worker=worker, end=end, at=self.clock.now(), tally=Tally(), timings=Timings()
        )
        self.store.create(keys.exit_record(RUN, worker), wire.encode(record))
        self.workers.die(worker)

    def steady(self, count: int, *, every: float) -> None:
        """A window through the engine every so many seconds."""
        for number in range(1, count + 1):
            self.at(every * number, partial(self.progress, number))

    def call_off(self, worker: int = 0, *, force: bool = False) -> None:
        request = EndRequest(run=RUN, worker=worker, force=force)
        self.store.replace(keys.cancel(RUN, worker), msgspec.json.encode(request))

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        self.clock.at(seconds, act)

    def seams(self) -> AgentSeams:
        return AgentSeams(
            clock=self.clock,
            workers=self.workers,
            deadman_files=lambda claim: NoDeadman() if claim.borrowed else self.deadman_files,
            permit=self.permits.get,
            announced=lambda: self.announced,
            home=lambda: self.store,
            runs=lambda _claim: self.store,
            interruption=lambda: self.interruption,
        )

    def agent(self, run: str = "") -> HostAgent:
        seams = self.seams()
        if self.machine:
            seams = replace(seams, machine=self.named, unclaimed=self.deadman_files)
        return HostAgent(self.place, self.boot, seams, run=run)

    def live(self, run: str = "") -> float | None:
        """Steps an agent to its end. Seconds until it asked for the power-off; None if it did not."""
        run_agent(self.agent(run), self.clock)
        return None if self.deadman_files.off_at is None else self.deadman_files.off_at - self.began

    def end(self) -> HostEnd | None:
        return self._found(keys.host_end(RUN, self.machine), HostEnd)

    def taken_by(self) -> str | None:
        record = self._found(keys.boot(RUN, self.machine), BootRecord)
        return record.boot if record else None

    def _found(self, key: str, kind: type[T]) -> T | None:
        return wire.decode(self.store.get(key).data, kind) if [*self.store.list(key)] else None
