"""Supervisor of a claim: starts workers, watches them, powers off.

It ends when the work has ended, is stalled, or is late; never because a controller is away. Its whole state
is in the store, in the workers' records and in the dead-man's files, so a restarted agent needs no special
handling.

A claim with launch `ssh` is taken like any other; its workers begin after the controller's start request.
On a host that must not be powered off (borrowed, or without units) only the workers are ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import msgspec
import structlog

from batchscribe.core import keys
from batchscribe.core.run.host import (
    ClaimLaunch,
    EndRequest,
    HostClaim,
    HostEnd,
    HostWaits,
)
from batchscribe.core.run.manifest import Manifest, Progress, WorkerName
from batchscribe.errors import BatchscribeError, MisconfiguredError, TransientError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import is_stored, limit_of, read_bytes, read_optional

LOG = structlog.get_logger()
IDLE_POLL_SECONDS = 2.0
"""Poll interval while a paid GPU has no work."""
POLL_SECONDS = 5.0

ProgressKey = tuple[int, str, int, int]
"""Progress of the work: worker, phase, chunks done with, windows through the engine."""


class Workers(Protocol):
    """The workers of this host: agent.host.GpuHost."""

    def start_worker(
        self, name: WorkerName, url: str, *, region: str, endpoint: str, sha256: str
    ) -> None: ...

    def was_started(self, name: WorkerName) -> bool: ...

    def is_running(self, name: WorkerName) -> bool: ...

    def end_worker(self, name: WorkerName, *, force: bool) -> object: ...


class DeadmanFiles(Protocol):
    """The dead-man's files: agent.state_files. Times are monotonic."""

    powers_off: bool
    """False if nothing powers this host off."""

    def record_claim(self, run: str, *, limit: float, now: float) -> float: ...

    def record_progress(self, now: float) -> None: ...

    def request_power_off(self) -> None: ...

    def delete_claim(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EndOfRun:
    """Reason why the agent ends the run.

    `worker` died or hung; `wait` is the delay before the power-off, in seconds; `leave` ends without one.
    """

    why: str
    worker: int | None = None
    wait: float = 0.0
    leave: bool = False


@dataclass(kw_only=True)
class Supervisor:
    """One claim, from its first manifest to the power-off."""

    claim: HostClaim
    runs: Store
    workers: Workers
    deadman_files: DeadmanFiles
    clock: Clock
    waits: HostWaits
    limit: float
    """Monotonic time at which the dead-man powers off."""
    claimed: Callable[[], bool]
    """True while the record has the claim; raises what the store raises."""
    expected: Callable[[], str | None]
    """SHA-256 of the manifest that a worker may start on, empty for any; None while none may start."""
    rebooted: bool
    """An earlier boot took the claim and went down during it; this one only ends the run."""
    interruption: Callable[[], str] = str
    """Returns the announced end of this machine by its cloud, empty if none; raises TransientError."""

    def __post_init__(self) -> None:
        self._worker = 0
        self._ended: set[int] = set()
        """This machine's workers with an exit record."""
        self._hashes: dict[str, str] = {}
        """SHA-256 by ETag of the run's manifests that were read, for a created machine."""
        self._interruption = ""
        self._mark: ProgressKey | None = None
        self._moved_at = self._idle_since = self.clock.monotonic()
        self._cancelled_at: float | None = None
        self._obeyed: bool | None = None
        self._asked_at: float | None = None
        self._ending = False

    @property
    def _worker_name(self) -> WorkerName:
        return WorkerName(run=self.claim.run, worker=self._worker)

    def step(self) -> float | None:
        """Makes one poll and at most one act.

        Returns the seconds until the next; None if the agent is done: the host powers off, or stays up.
        """
        if self._ending:
            return self._power_off()
        self._poll_interruption()
        try:
            result = self._poll_worker() or self._check_deadline() or self._check_stall()
        except (TransientError, MisconfiguredError) as error:
            # Work that cannot be observed counts as stalled, which has a time limit.
            LOG.warning("host.check_failed", run=self.claim.run, why=str(error))
            result = self._check_deadline() or self._check_ended() or self._check_stall()
        if result:
            return self._release_claim(result) if result.leave else self._end_run(result)
        return POLL_SECONDS if self.workers.was_started(self._worker_name) else IDLE_POLL_SECONDS

    def _power_off(self) -> float | None:
        """Requests the power-off; retries, or the host would stay on."""
        try:
            self.deadman_files.request_power_off()
        except MisconfiguredError as error:
            LOG.warning("host.power_off_failed", run=self.claim.run, why=str(error))
            return POLL_SECONDS
        return None

    def _release_claim(self, result: EndOfRun) -> float | None:
        self._kill_workers()
        try:
            self.deadman_files.delete_claim()
        except MisconfiguredError as error:
            LOG.warning("host.release_failed", run=self.claim.run, why=str(error))
            return POLL_SECONDS
        LOG.info("host.claim_released", run=self.claim.run, why=result.why)
        return None

    def _poll_worker(self) -> EndOfRun | None:
        """Polls the current worker or the next manifest. Raises store errors."""
        if self.rebooted:
            return self._end_after_reboot()
        if not self.deadman_files.powers_off and is_stored(self.runs, keys.settlement(self.claim.run)):
            return EndOfRun("its run is settled", leave=True)
        # Before the exit record is read: a worker may end between the two.
        running = self._is_running()
        if running:
            self._idle_since = self.clock.monotonic()
        while self._has_ended():
            self._move_to_next_worker()
            running = self._is_running()
        if not self.workers.was_started(self._worker_name):
            return self._poll_manifest()
        if running is False:
            how = "was killed, as its controller asked" if self._obeyed else "died without an exit record"
            return EndOfRun(f"worker {self._worker} {how}", self._worker, self.waits.after_report)
        # Progress counts first: an unreadable cancel object ends no work.
        self._follow_progress()
        self._obey_cancel()
        return None

    def _end_after_reboot(self) -> EndOfRun:
        """Ends a run whose workers died with the earlier boot."""
        while is_stored(self.runs, keys.manifest(self.claim.run, self._worker + 1)):
            self._worker += 1
        given = is_stored(self.runs, keys.manifest(self.claim.run, self._worker))
        why = "the GPU host was rebooted during the run"
        return EndOfRun(why, self._worker if given else None, self.waits.after_report)

    def _has_ended(self) -> bool:
        """True if this machine's current worker left its exit record."""
        own = not self.claim.machine or self.workers.was_started(self._worker_name)
        return own and is_stored(self.runs, keys.exit_record(self.claim.run, self._worker))

    def _move_to_next_worker(self) -> None:
        self._ended.add(self._worker)
        self._worker += 1
        self._idle_since = self.clock.monotonic()
        self._cancelled_at = self._obeyed = None

    def _poll_manifest(self) -> EndOfRun | None:
        if self._interruption:
            return EndOfRun(self._interruption)
        if self.claim.machine:
            self._find_own_manifest()
        if self.workers.was_started(self._worker_name):
            return None  # by an earlier agent of this boot: followed from the next poll on
        if not is_stored(self.runs, keys.manifest(self.claim.run, self._worker)):
            self._record_progress((self._worker, "none", 0, 0))
            return self._check_idle()
        self._record_progress((self._worker, "given", 0, 0))
        expected = self.expected()
        if why := self._refusal_reason(expected):
            LOG.info("worker.not_started", run=self.claim.run, worker=self._worker, why=why)
            waited = self.clock.monotonic() - self._moved_at
            return EndOfRun(why) if waited >= self.waits.first else None
        if is_stored(self.runs, keys.cancel(self.claim.run, self._worker)):
            return EndOfRun(
                f"worker {self._worker} was cancelled before it started", wait=self.waits.after_report
            )
        return self._start_worker(expected or "")

    def _find_own_manifest(self) -> None:
        """Moves to the manifest with the announced hash.

        The run's other machines have the other ones. Without one, moves to a number that has no manifest yet.
        """
        listed = self.runs.list(keys.manifests(self.claim.run))
        stored = {info.key: info.etag for info in listed}
        count = 0
        while keys.manifest(self.claim.run, count) in stored:
            count += 1
        expected = self.expected()
        etags = [stored[keys.manifest(self.claim.run, number)] for number in range(count)]
        own = (number for number, etag in enumerate(etags) if self._hash_manifest(number, etag) == expected)
        self._worker = next((number for number in own if number not in self._ended), count)

    def _hash_manifest(self, worker: int, etag: str) -> str:
        """SHA-256 of a stored manifest; read once for each ETag."""
        if etag not in self._hashes:
            self._hashes[etag] = self._read_hash(worker)
        return self._hashes[etag]

    def _read_hash(self, worker: int) -> str:
        data = read_bytes(self.runs, keys.manifest(self.claim.run, worker), limit_of(Manifest))
        return sha256(data).hexdigest()

    def _refusal_reason(self, expected: str | None) -> str:
        """Reason why no worker may start on the manifest; else empty."""
        if expected is None:
            over_ssh = self.claim.launch is not ClaimLaunch.BOOT
            return f"its controller did not start the work {'over ssh' if over_ssh else 'by its tag'}"
        key = keys.manifest(self.claim.run, self._worker)
        # Read at each poll: the controller may have replaced a forged manifest.
        if expected and self._read_hash(self._worker) != expected:
            return f"{key} is not the manifest that its controller announced"
        return ""

    def _check_idle(self) -> EndOfRun | None:
        waited = self.clock.monotonic() - self._idle_since
        if self._ended:
            return EndOfRun("work ended") if waited >= self.waits.linger else None
        if waited < self.waits.first:
            return None
        # A controller revokes its claim if its start failed; the instance then stays up for the user who
        # started it meanwhile.
        if self.claimed():
            return EndOfRun("no work came")
        why = "its claim was revoked before any work came"
        return EndOfRun(why, leave=not self.claim.machine)

    def _check_ended(self) -> EndOfRun | None:
        """Detects ended work while the store is unreachable, by the worker's process."""
        given = self._mark == (self._worker, "given", 0, 0)
        begun = self.workers.was_started(self._worker_name) or (bool(self._ended) and not given)
        waited = self.clock.monotonic() - self._idle_since
        if not begun or waited < self.waits.linger or self._is_running() is not False:
            return None
        return EndOfRun("its worker ended, and the store could not be reached since")

    def _start_worker(self, sha256: str) -> EndOfRun | None:
        claim = self.claim
        url = f"{self.runs.url.rstrip('/')}/{keys.manifest(claim.run, self._worker)}"
        self._kill_earlier_workers()
        try:
            self.workers.start_worker(
                self._worker_name, url, region=claim.region, endpoint=claim.endpoint, sha256=sha256
            )
        except BatchscribeError as error:
            why = f"worker {self._worker} could not be started: {error}"
            return EndOfRun(why, self._worker, self.waits.after_report)
        LOG.info("worker.started", run=claim.run, worker=self._worker)
        return None

    def _kill_earlier_workers(self) -> None:
        """Kills workers that outlive their exit record and occupy GPU memory."""
        for worker in range(self._worker):
            self._ask_to_end(worker, force=True)

    def _obey_cancel(self) -> None:
        """Ends the worker on request, after the grace period by force."""
        asked = read_optional(self.runs, keys.cancel(self.claim.run, self._worker), EndRequest)
        if asked is None:
            return
        now = self.clock.monotonic()
        self._cancelled_at = now if self._cancelled_at is None else self._cancelled_at
        force = asked.force or now - self._cancelled_at >= self.waits.grace
        if self._obeyed not in {True, force}:
            self._ask_to_end(self._worker, force=force)
            self._obeyed = force

    def _follow_progress(self) -> None:
        """Reads the worker's progress; reports of a hung engine are none.

        An unreadable report counts as none, so that the request to end the worker is still read.
        """
        try:
            progress = read_optional(self.runs, keys.progress(self.claim.run, self._worker), Progress)
        except MisconfiguredError as error:
            LOG.warning("worker.progress_unreadable", run=self.claim.run, why=str(error))
            return
        if progress:
            self._record_progress((self._worker, progress.phase.value, progress.tally.seen, progress.results))

    def _record_progress(self, mark: ProgressKey) -> None:
        """Records progress since the last poll; the first poll has none."""
        if self._mark not in {None, mark}:
            self._moved_at = self.clock.monotonic()
            self.deadman_files.record_progress(self._moved_at)
        self._mark = mark

    def _poll_interruption(self) -> None:
        """Polls for the cloud's notice; a failed poll ends no work."""
        try:
            self._interruption = self._interruption or self.interruption()
        except TransientError as error:
            LOG.warning("host.interruption_unknown", run=self.claim.run, why=str(error))

    def _check_deadline(self) -> EndOfRun | None:
        """Ends work at the deadline; what is in the engine may finish."""
        now = self.clock.monotonic()
        why = self._interruption or ("the deadline passed" if now >= self.limit - self.waits.overtime else "")
        if not why:
            return None
        if self._is_running() is False:
            return EndOfRun(why)
        if self._asked_at is None:
            self._asked_at = now
            self._ask_to_end(self._worker, force=False)
        return EndOfRun(why, self._worker) if now - self._asked_at >= self.waits.grace else None

    def _check_stall(self) -> EndOfRun | None:
        stalled = self.clock.monotonic() - self._moved_at
        if stalled < self.waits.silence:
            return None
        worker = self._worker if self.workers.was_started(self._worker_name) else None
        return EndOfRun(f"no progress was observed for {stalled / 60:.0f} min", worker)

    def _end_run(self, result: EndOfRun) -> float | None:
        LOG.info("host.run_ended", run=self.claim.run, worker=result.worker, why=result.why)
        self._kill_workers()
        end = HostEnd(run=self.claim.run, worker=result.worker, why=result.why, at=self.clock.now())
        try:
            self._store_end(end)
        except BatchscribeError as error:
            LOG.warning("worker.exit_record_not_stored", run=self.claim.run, why=str(error))
        self._ending = True
        return result.wait

    def _store_end(self, end: HostEnd) -> None:
        """Stores the end; only another lost worker replaces an earlier reason."""
        key, data = keys.host_end(self.claim.run, self.claim.machine), msgspec.json.encode(end)
        if self.runs.create(key, data) or end.worker is None:
            return
        earlier = read_optional(self.runs, key, HostEnd)
        if earlier is None or earlier.worker != end.worker:
            self.runs.replace(key, data)

    def _kill_workers(self) -> None:
        self._kill_earlier_workers()
        self._ask_to_end(self._worker, force=True)

    def _ask_to_end(self, worker: int, *, force: bool) -> None:
        try:
            self.workers.end_worker(WorkerName(run=self.claim.run, worker=worker), force=force)
        except BatchscribeError as error:
            LOG.warning("worker.not_reached", run=self.claim.run, why=str(error))

    def _is_running(self) -> bool | None:
        """True if the worker runs. None if its process record is unreadable."""
        try:
            return self.workers.is_running(self._worker_name)
        except BatchscribeError as error:
            LOG.warning("worker.not_reached", run=self.claim.run, why=str(error))
            return None
