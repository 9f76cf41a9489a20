"""A box that wakes up in a memory store, on a fake clock: its workers are played, its power is noted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import msgspec

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.box import (
    BootRecord,
    BoxClaim,
    BoxEnd,
    BoxPlace,
    BoxReply,
    BoxWaits,
    ClaimLaunch,
    EndRequest,
    InstanceRecord,
    StartRequest,
    WorkerName,
    read,
)
from batchscribe.core.manifest import (
    EngineSpec,
    ExitRecord,
    Intent,
    Manifest,
    Phase,
    Progress,
    Settlement,
    Tally,
    Timings,
    WorkerEnd,
)
from batchscribe.errors import BatchscribeError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.boot import Boot, BoxAgent, BoxSeams, live

T = TypeVar("T", bound=msgspec.Struct)
INSTANCE = "i-0123456789abcdef0"
RUN = "run-1"


@dataclass
class PlayedBox:
    """Workers that live until they are asked to end or a test says so; a deaf one must be killed."""

    deaf: bool = False
    error: BatchscribeError | None = None
    requests: list[StartRequest] = field(default_factory=list)
    asked: list[EndRequest] = field(default_factory=list)
    on_end: Callable[[EndRequest], None] | None = None
    """How a worker ends that was asked to; None is at once, without a last word."""
    _known: dict[WorkerName, bool] = field(default_factory=dict)

    def start(self, request: StartRequest) -> BoxReply:
        if self.error:
            raise self.error
        name = WorkerName(run=request.run, worker=request.worker)
        if name not in self._known:
            self.requests.append(request)
            self._known[name] = True
        return BoxReply()

    def started(self, name: WorkerName) -> bool:
        return name in self._known

    def alive(self, name: WorkerName) -> BoxReply:
        return BoxReply(done=self._known.get(name, False))

    def cancel(self, name: EndRequest) -> BoxReply:
        which = WorkerName(run=name.run, worker=name.worker)
        if not self._known.get(which):
            return BoxReply(done=False)
        self.asked.append(name)
        if name.force or not (self.deaf or self.on_end):
            self._known[which] = False
        elif self.on_end and not self.deaf:
            self.on_end(name)
        return BoxReply(done=True)

    def begin(self, worker: int = 0) -> None:
        """As over ssh: somebody else started it."""
        self._known[WorkerName(run=RUN, worker=worker)] = True

    def die(self, worker: int = 0) -> None:
        self._known[WorkerName(run=RUN, worker=worker)] = False


@dataclass
class NotedMarks:
    """The markers, and a dead-man that would act on them."""

    clock: FakeClock
    limit: float | None = None
    moved: list[float] = field(default_factory=list)
    off_at: float | None = None

    def take(self, run: str, *, limit: float, now: float) -> float:
        if self.limit is None:
            self.limit = limit
            self.moved.append(now)
        return self.limit

    def alive(self, now: float) -> None:
        self.moved.append(now)

    def off(self) -> None:
        self.off_at = self.off_at or self.clock.monotonic()

    def release(self) -> None:
        self.limit = None

    @property
    def taken(self) -> bool:
        return self.limit is not None


class Awake:
    """One box, one run, and everything that may happen around them. Times are seconds from now on."""

    def __init__(self, *, waits: BoxWaits | None = None) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.workers = PlayedBox()
        self.marks = NotedMarks(self.clock)
        self.boot = Boot(id="boot-1", at=self.clock.now() - timedelta(seconds=20))
        self.place = BoxPlace(instance=INSTANCE, home="memory://double", waits=waits or BoxWaits())
        self.began = self.clock.monotonic()
        self.created = self.boot.at - timedelta(seconds=40)
        self.deadline = self.clock.now() + timedelta(hours=2)

    def claim(self, launch: ClaimLaunch = ClaimLaunch.BOOT, **changes: object) -> BoxClaim:
        claim = BoxClaim(
            run=RUN, created=self.created, deadline=self.deadline, output=self.store.url, launch=launch
        )
        return msgspec.structs.replace(claim, **changes)

    def record(self, claim: BoxClaim | None) -> None:
        record = InstanceRecord(
            instance=INSTANCE, release=__version__, at=self.created, boots=True, claim=claim
        )
        self.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))

    def intend(self) -> None:
        intent = Intent(
            run=RUN,
            scheduler="this",
            created=self.created,
            deadline=self.deadline,
            provider="ec2",
            instances=(INSTANCE,),
            policy="threshold",
            reason="",
            chunks=1,
            audio_seconds=1.0,
            rate_micros=0,
            rate_source="",
        )
        self.store.create(keys.intent(RUN), wire.encode(intent))

    def settle(self) -> None:
        settlement = Settlement(
            run=RUN,
            outcome="completed",
            detail="",
            settled=self.clock.now(),
            billed_seconds=0.0,
            cost_micros=0,
            chunks_done=0,
            chunks_failed=0,
            audio_seconds=0.0,
        )
        self.store.create(keys.settlement(RUN), wire.encode(settlement))

    def claimed(self, launch: ClaimLaunch = ClaimLaunch.BOOT, **changes: object) -> None:
        """A claim with its intent, as a controller leaves them before it starts the instance."""
        self.intend()
        self.record(self.claim(launch, **changes))

    def give(self, worker: int = 0) -> None:
        manifest = Manifest(
            run=RUN,
            worker=worker,
            release=__version__,
            source="memory://double",
            output="memory://double",
            deadline=self.deadline,
            engine=EngineSpec(engine="played"),
            settings_hash="",
            chunks=(),
        )
        self.store.create(keys.manifest(RUN, worker), wire.encode(manifest))

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

    def agent(self) -> BoxAgent:
        seams = BoxSeams(
            clock=self.clock,
            workers=self.workers,
            marks=self.marks,
            home=lambda: self.store,
            runs=lambda _claim: self.store,
        )
        return BoxAgent(self.place, self.boot, seams)

    def live(self) -> float | None:
        """Lets an agent do all it wants to. Seconds until it asked for the power off; None if it did not."""
        live(self.agent(), self.clock)
        return None if self.marks.off_at is None else self.marks.off_at - self.began

    def end(self) -> BoxEnd | None:
        return self._found(keys.box_end(RUN), BoxEnd)

    def taken_by(self) -> str | None:
        record = self._found(keys.boot(RUN), BootRecord)
        return record.boot if record else None

    def _found(self, key: str, kind: type[T]) -> T | None:
        return read(self.store.get(key).data, kind) if [*self.store.list(key)] else None
