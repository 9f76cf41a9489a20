"""What the agent does for a claim: starts the run's workers, supervises them, powers the host off.

It ends when the work has ended, is stalled, or is late; never because a controller is away. Its whole state
lies in the store, in the workers' own records and in the dead-man's files, so a restarted agent is no
special case.

A claim with launch `ssh` is taken up like any other; its workers begin after the controller's start request.
On a host that is not to be powered off (it is borrowed, or has no units) only the workers are ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, TypeVar

import msgspec
import structlog

from batchscribe.core import keys
from batchscribe.core.run.host import (
    BoxClaim,
    BoxEnd,
    BoxWaits,
    ClaimLaunch,
    EndRequest,
)
from batchscribe.core.run.manifest import Manifest, Progress, WorkerName
from batchscribe.errors import BatchscribeError, MisconfiguredError, ObjectNotFoundError, TransientError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import is_stored, limit_of, read_bytes, read_record

LOG = structlog.get_logger()
IDLE_POLL_SECONDS = 2.0
"""While a paid GPU has no work."""
POLL_SECONDS = 5.0

Mark = tuple[int, str, int, int]
"""How far the work is: worker, phase, chunks seen, windows through the engine."""
T = TypeVar("T", bound=msgspec.Struct)


class Workers(Protocol):
    """The workers of this host: agent.host.Box."""

    def start_worker(
        self, name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str
    ) -> None: ...

    def was_started(self, name: WorkerName) -> bool: ...

    def is_running(self, name: WorkerName) -> bool: ...

    def end_worker(self, name: WorkerName, *, force: bool) -> object: ...


class Marks(Protocol):
    """The dead-man's files: agent.state_files. Times are the clock's monotonic ones."""

    powers_off: bool
    """False if nothing powers this host off."""

    def take(self, run: str, *, limit: float, now: float) -> float: ...

    def alive(self, now: float) -> None: ...

    def off(self) -> None: ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the agent ends the run. `worker` is the one that died or hung; `wait` comes before the end, in
    seconds; `leave` is an end without a power-off.
    """

    why: str
    worker: int | None = None
    wait: float = 0.0
    leave: bool = False


class Watch:
    """One claim, from its first manifest to the power-off."""

    def __init__(
        self,
        claim: BoxClaim,
        runs: Store,
        *,
        workers: Workers,
        marks: Marks,
        clock: Clock,
        waits: BoxWaits,
        limit: float,
        claimed: Callable[[], bool],
        expected: Callable[[], str | None],
        again: bool = False,
    ) -> None:
        """`limit`: when the dead-man powers off, by the monotonic clock. `claimed`: True while the claim
        stands in the record; raises what the store raises. `expected`: SHA-256 of the manifest that a worker
        may begin on, empty for any; None while none may begin. `again`: an earlier boot took the claim up and
        went down under it; this one only ends it.
        """
        self._claim = claim
        self._runs = runs
        self._workers = workers
        self._marks = marks
        self._clock = clock
        self._waits = waits
        self._claimed = claimed
        self._expected = expected
        self._again = again
        now = clock.monotonic()
        self._deadline = limit - waits.overtime
        self._worker = 0
        self._mark: Mark | None = None
        self._moved_at = now
        self._idle_since = now
        self._cancelled_at: float | None = None
        self._obeyed: bool | None = None
        self._asked_at: float | None = None
        self._ending = False

    @property
    def _name(self) -> WorkerName:
        return WorkerName(run=self._claim.run, worker=self._worker)

    def step(self) -> float | None:
        """One poll and at most one act. Seconds until the next; None when the agent is done: the power is
        about to go, or the host runs on.
        """
        if self._ending:
            return self._off()
        try:
            verdict = self._look() or self._late() or self._stalled()
        except (TransientError, MisconfiguredError) as error:
            # Work that cannot be observed counts as stalled: that has a bound.
            LOG.warning("box.cannot_look", run=self._claim.run, why=str(error))
            verdict = self._late() or self._over() or self._stalled()
        if verdict:
            return self._leave(verdict) if verdict.leave else self._end(verdict)
        return POLL_SECONDS if self._workers.was_started(self._name) else IDLE_POLL_SECONDS

    def _off(self) -> float | None:
        """Retries while the file cannot be written: an agent that ended here would leave the host on."""
        try:
            self._marks.off()
        except MisconfiguredError as error:
            LOG.warning("box.cannot_power_off", run=self._claim.run, why=str(error))
            return POLL_SECONDS
        return None

    def _leave(self, verdict: Verdict) -> float | None:
        self._kill_workers()
        try:
            self._marks.release()
        except MisconfiguredError as error:
            LOG.warning("box.not_let_go", run=self._claim.run, why=str(error))
            return POLL_SECONDS
        LOG.info("box.let_go", run=self._claim.run, why=verdict.why)
        return None

    def _look(self) -> Verdict | None:
        """Polls the present worker, or for the next one. Raises what the store raises."""
        if self._again:
            return self._went_down()
        if not self._marks.powers_off and is_stored(self._runs, keys.settlement(self._claim.run)):
            return Verdict("its run is settled", leave=True)
        # Before the exit record is read: a worker may end between the two.
        running = self._running()
        if running:
            self._idle_since = self._clock.monotonic()
        while is_stored(self._runs, keys.exit_record(self._claim.run, self._worker)):
            self._go_on()
            running = self._running()
        if not self._workers.was_started(self._name):
            return self._unstarted()
        if running is False:
            how = "was killed, as its controller asked" if self._obeyed else "died without a last word"
            return Verdict(f"worker {self._worker} {how}", self._worker, self._waits.told)
        # Progress counts first: an unreadable cancel object ends no work.
        self._follow()
        self._obey()
        return None

    def _went_down(self) -> Verdict:
        """The end of a run whose workers died with the earlier boot: nothing is begun twice."""
        while is_stored(self._runs, keys.manifest(self._claim.run, self._worker + 1)):
            self._worker += 1
        given = is_stored(self._runs, keys.manifest(self._claim.run, self._worker))
        why = "the box was booted again in the middle of the run"
        return Verdict(why, self._worker if given else None, self._waits.told)

    def _go_on(self) -> None:
        self._worker += 1
        self._idle_since = self._clock.monotonic()
        self._cancelled_at = self._obeyed = None

    def _unstarted(self) -> Verdict | None:
        if not is_stored(self._runs, keys.manifest(self._claim.run, self._worker)):
            self._note((self._worker, "none", 0, 0))
            return self._idle()
        self._note((self._worker, "given", 0, 0))
        expected = self._expected()
        if why := self._refusal(expected):
            LOG.info("box.worker_not_begun", run=self._claim.run, worker=self._worker, why=why)
            waited = self._clock.monotonic() - self._moved_at
            return Verdict(why) if waited >= self._waits.first else None
        if is_stored(self._runs, keys.cancel(self._claim.run, self._worker)):
            return Verdict(f"worker {self._worker} was called off before it began", wait=self._waits.told)
        return self._start(expected or "")

    def _refusal(self, expected: str | None) -> str:
        """Why no worker may begin on the manifest; empty if it may. A tag may lag behind its manifest."""
        if expected is None:
            over_ssh = self._claim.launch is not ClaimLaunch.BOOT
            return f"its controller did not start the work {'over ssh' if over_ssh else 'by its tag'}"
        key = keys.manifest(self._claim.run, self._worker)
        if expected and sha256(read_bytes(self._runs, key, limit_of(Manifest))).hexdigest() != expected:
            return f"{key} is not the manifest that its controller announced"
        return ""

    def _idle(self) -> Verdict | None:
        waited = self._clock.monotonic() - self._idle_since
        if self._worker == 0:
            return self._workless() if waited >= self._waits.first else None
        return Verdict("work ended") if waited >= self._waits.linger else None

    def _over(self) -> Verdict | None:
        """The end of work under an unreachable store: a dead worker is observed without it."""
        given = self._mark == (self._worker, "given", 0, 0)
        begun = self._workers.was_started(self._name) or (self._worker > 0 and not given)
        waited = self._clock.monotonic() - self._idle_since
        if not begun or waited < self._waits.linger or self._running() is not False:
            return None
        return Verdict("its worker ended, and the store could not be reached since")

    def _workless(self) -> Verdict:
        """The end without any manifest. A controller whose start failed takes its claim back, and leaves the
        instance to the user who started it meanwhile.
        """
        if self._claimed():
            return Verdict("no work came")
        return Verdict("its claim was taken back before any work came", leave=True)

    def _start(self, sha256: str) -> Verdict | None:
        claim = self._claim
        url = f"{self._runs.url.rstrip('/')}/{keys.manifest(claim.run, self._worker)}"
        self._clear_away()
        try:
            self._workers.start_worker(
                self._name, url, region=claim.region, endpoint=claim.endpoint, sha256=sha256
            )
        except BatchscribeError as error:
            why = f"worker {self._worker} could not be started: {error}"
            return Verdict(why, self._worker, self._waits.told)
        LOG.info("box.worker_started", run=claim.run, worker=self._worker)
        return None

    def _clear_away(self) -> None:
        """Kills earlier workers that outlive their exit record: they would hold the next one's GPU memory."""
        for worker in range(self._worker):
            self._ask_to_end(worker, force=True)

    def _obey(self) -> None:
        """Ends the worker if its controller asks for that: politely first, by force after the grace."""
        asked = self._read(keys.cancel(self._claim.run, self._worker), EndRequest)
        if asked is None:
            return
        now = self._clock.monotonic()
        self._cancelled_at = now if self._cancelled_at is None else self._cancelled_at
        force = asked.force or now - self._cancelled_at >= self._waits.grace
        if self._obeyed not in {True, force}:
            self._ask_to_end(self._worker, force=force)
            self._obeyed = force

    def _follow(self) -> None:
        """Notes how far the work is; the sequence of reports beside a hung engine is no progress.

        A report that cannot be read is none, either: the request to end the worker is still read.
        """
        try:
            progress = self._read(keys.progress(self._claim.run, self._worker), Progress)
        except MisconfiguredError as error:
            LOG.warning("box.progress_unreadable", run=self._claim.run, why=str(error))
            return
        if progress:
            self._note((self._worker, progress.phase.value, progress.tally.seen, progress.results))

    def _note(self, mark: Mark) -> None:
        """Records progress against the last poll; the first poll of a restarted agent is none."""
        if self._mark not in {None, mark}:
            self._moved_at = self._clock.monotonic()
            self._marks.alive(self._moved_at)
        self._mark = mark

    def _late(self) -> Verdict | None:
        now = self._clock.monotonic()
        if now < self._deadline:
            return None
        why = "the deadline passed"
        if self._running() is False:
            return Verdict(why)
        if self._asked_at is None:
            self._asked_at = now
            self._ask_to_end(self._worker, force=False)
        return Verdict(why, self._worker) if now - self._asked_at >= self._waits.grace else None

    def _stalled(self) -> Verdict | None:
        silent = self._clock.monotonic() - self._moved_at
        if silent < self._waits.silence:
            return None
        worker = self._worker if self._workers.was_started(self._name) else None
        return Verdict(f"no progress was seen for {silent / 60:.0f} min", worker)

    def _end(self, verdict: Verdict) -> float | None:
        LOG.info("box.ends", run=self._claim.run, worker=verdict.worker, why=verdict.why)
        self._kill_workers()
        end = BoxEnd(run=self._claim.run, worker=verdict.worker, why=verdict.why, at=self._clock.now())
        try:
            self._runs.create(keys.box_end(self._claim.run), msgspec.json.encode(end))
        except BatchscribeError as error:
            LOG.warning("box.last_word_not_stored", run=self._claim.run, why=str(error))
        self._ending = True
        return verdict.wait

    def _kill_workers(self) -> None:
        self._clear_away()
        self._ask_to_end(self._worker, force=True)

    def _ask_to_end(self, worker: int, *, force: bool) -> None:
        try:
            self._workers.end_worker(WorkerName(run=self._claim.run, worker=worker), force=force)
        except BatchscribeError as error:
            LOG.warning("box.worker_not_reached", run=self._claim.run, why=str(error))

    def _running(self) -> bool | None:
        """None if its process record cannot be read: its progress decides then."""
        try:
            return self._workers.is_running(self._name)
        except BatchscribeError as error:
            LOG.warning("box.worker_not_reached", run=self._claim.run, why=str(error))
            return None

    def _read(self, key: str, kind: type[T]) -> T | None:
        try:
            return read_record(self._runs, key, kind)
        except ObjectNotFoundError:
            return None
