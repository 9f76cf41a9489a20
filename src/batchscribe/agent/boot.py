"""Agent of a GPU host: takes its instance's claim, once.

After a manual start there is no claim, and the agent does nothing. If it cannot read its record within a
timeout, it does nothing either: it powers off only for a claim. It writes the dead-man's files before it
takes the claim: a run that could not be ended from here does not begin.

A machine that was created for a run has no other purpose: without a claim that it can take, it powers itself
off, and its dead-man does so if the agent dies before.

An agent that a controller starts over ssh gets its claim with the start request instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
import structlog

from batchscribe import __version__
from batchscribe.agent.state_files import NoDeadman
from batchscribe.agent.supervisor import DeadmanFiles, Supervisor, Workers
from batchscribe.core import keys
from batchscribe.core.run.host import (
    BootRecord,
    ClaimLaunch,
    HostClaim,
    HostPlace,
    HostWaits,
    InstanceRecord,
    StartPermit,
)
from batchscribe.core.run.manifest import WorkerName
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, TransientError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import is_stored, read_optional, read_record

LOG = structlog.get_logger()
RETRY_SECONDS = 10.0
EARLY_RETRY_SECONDS = 1.0
"""In the first EARLY_SECONDS: the unit does not wait for the network, and paid time passes."""
EARLY_SECONDS = 60.0
UNCLAIMED = "unclaimed"
"""Stands for the run in the dead-man's file of a created machine that has not taken its claim yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """This boot of this machine."""

    id: str
    at: datetime
    """By the clock at the agent's start; corrected if the clock is set later."""
    agent: float | None = None
    """Seconds from the boot to the start of the agent's process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeams:
    """External dependencies of the agent; opening a store makes no request."""

    clock: Clock
    workers: Workers
    deadman_files: Callable[[HostClaim], DeadmanFiles]
    """The dead-man's files for a claim."""
    permit: Callable[[str], StartPermit | None]
    """Returns a controller's start request for a run over ssh, during this boot."""
    announced: Callable[[], str | None]
    """Returns the SHA-256 of the manifest from the instance's tag, or None; raises TransientError.

    A writer of the store cannot change the tag."""
    home: Callable[[], Store]
    """Opens the store with the instance's record. Raises MisconfiguredError."""
    runs: Callable[[HostClaim], Store]
    """Opens the store with the claim's run. Raises MisconfiguredError."""
    machine: Callable[[], str] | None = None
    """Returns the run's name of this machine from its tag; raises TransientError, MisconfiguredError.

    None for an existing instance."""
    unclaimed: DeadmanFiles = field(default_factory=NoDeadman)
    """The dead-man's files of a created machine before it takes a claim; it powers itself off without one."""
    interruption: Callable[[], str] = str
    """Returns the announced end of this machine by its cloud, empty if none; raises TransientError."""


class HostAgent:
    """Agent of one boot, run in steps; a restarted agent continues it."""

    def __init__(self, place: HostPlace, boot: Boot, seams: AgentSeams, *, run: str = "") -> None:
        """`run`: id of the run if started over ssh, else empty."""
        self._place = place
        self._boot = boot
        self._seams = seams
        self._run = run
        self._began = seams.clock.monotonic()
        self._began_at = seams.clock.now()
        self._machine = ""
        self._untimely: str | None = None
        self._limit: float | None = None
        self._held = False
        self._supervisor: Supervisor | None = None

    def step(self) -> float | None:
        """Makes a poll and an act; returns the delay, None if done."""
        return self._supervisor.step() if self._supervisor else self._seek_claim()

    def _seek_claim(self) -> float | None:
        try:
            self._arm_created_machine()
            self._supervisor = self._take_claim()
            if self._held:
                self._seams.unclaimed.delete_claim()
        except (TransientError, MisconfiguredError) as error:
            waited = self._seams.clock.monotonic() - self._began
            if waited >= self._place.waits.store:
                dead_man = self._limit is not None or self._seams.unclaimed.powers_off
                then = "the dead-man powers off" if dead_man else "nothing is done, and nothing powered off"
                LOG.warning("claim.read_failed", reason=str(error), then=then)
                return self._end_created_machine()
            LOG.warning("claim.read_retried", reason=str(error))
            return EARLY_RETRY_SECONDS if waited < EARLY_SECONDS else RETRY_SECONDS
        if self._supervisor:
            return 0.0
        return None if self._held else self._end_created_machine()

    def _arm_created_machine(self) -> None:
        """Arms the dead-man for a created machine without a claim."""
        if self._limit is None:
            waits = self._place.waits
            limit = self._began + waits.store + waits.overtime
            self._seams.unclaimed.record_claim(UNCLAIMED, limit=limit, now=self._seams.clock.monotonic())

    def _end_created_machine(self) -> float | None:
        """Powers off a created machine; does nothing on an existing instance.

        Retries if its files cannot be written.
        """
        try:
            self._arm_created_machine()  # the dead-man powers off only for a claim
            self._seams.unclaimed.request_power_off()
        except MisconfiguredError as error:
            LOG.warning("host.power_off_failed", reason=str(error))
            return RETRY_SECONDS
        return None

    def _take_claim(self) -> Supervisor | None:
        claim = self._read_claim()
        if claim is None:
            return None
        self._held = claim.launch is ClaimLaunch.HELD and claim.machine == self._machine
        runs = self._seams.runs(claim)
        if refused := self._refusal_reason(claim, runs):
            LOG.info("host.claim_not_taken", run=claim.run, why=refused)
            return None
        if not self._run:
            self._require_timely(claim)
        again = self._taken_by_another(claim, runs)
        # Another boot of a created machine is a copy, or its work died with the first boot: nothing to end.
        if again and (self._machine or self._is_over(claim, runs)):
            LOG.info("host.claim_not_taken", run=claim.run, why="another boot took it up")
            return None
        deadman_files = self._seams.deadman_files(claim)
        self._limit = self._write_deadman_files(claim, deadman_files)
        self._write_boot_record(claim, runs, deadman_files, again=again)
        LOG.info("host.claim_taken", run=claim.run, launch=claim.launch.value, again=again)
        return Supervisor(
            claim=claim,
            runs=runs,
            workers=self._seams.workers,
            deadman_files=deadman_files,
            clock=self._seams.clock,
            waits=self._choose_waits(deadman_files),
            limit=self._limit,
            claimed=lambda: self._still_claimed(claim),
            expected=lambda: self._expected_hash(claim),
            rebooted=again,
            interruption=self._seams.interruption if claim.launch is ClaimLaunch.BOOT else str,
        )

    def _expected_hash(self, claim: HostClaim) -> str | None:
        """SHA-256 of the permitted manifest; empty: any, None: no work."""
        if claim.launch is ClaimLaunch.BOOT:
            return self._seams.announced() or None
        permit = self._seams.permit(claim.run)
        return permit.sha256 if permit else None

    def _choose_waits(self, deadman_files: DeadmanFiles) -> HostWaits:
        """Timeouts; without power-off, the agent waits longer for another manifest."""
        waits = self._place.waits
        return waits if deadman_files.powers_off else msgspec.structs.replace(waits, linger=waits.silence)

    def _read_claim(self) -> HostClaim | None:
        """Reads the claim from the start request or the instance's record."""
        if self._run:
            permit = self._seams.permit(self._run)
            return permit.claim() if permit else None
        if self._seams.machine and not self._machine:
            self._machine = self._seams.machine()
        instance = self._machine or self._place.instance
        try:
            record = read_record(self._seams.home(), keys.instance(instance), InstanceRecord)
        except ObjectNotFoundError:
            LOG.info("record.missing", instance=instance)
            return None
        if record.claim is None:
            LOG.info("claim.missing", instance=instance)
        return record.claim

    def _still_claimed(self, claim: HostClaim) -> bool:
        now = self._read_claim()
        return now is not None and now.run == claim.run

    def _refusal_reason(self, claim: HostClaim, runs: Store) -> str:
        """Reason why this boot may not take the claim; else empty."""
        WorkerName(run=claim.run, worker=0).checked()
        if claim.machine != self._machine:
            return f"it is for machine {claim.machine or 'without a name'}"
        if claim.launch is ClaimLaunch.HELD:
            return "its launch is `held`: the GPU host must do nothing"
        if self._untimely not in {None, claim.run}:
            return "it was written after this boot, for another one"
        if not is_stored(runs, keys.intent(claim.run)):
            return "its run has no intent"
        if is_stored(runs, keys.settlement(claim.run)):
            return "its run is settled"
        return ""

    def _require_timely(self, claim: HostClaim) -> None:
        """Raises MisconfiguredError if the claim is not of this boot.

        The check is repeated, since the host's clock may yet be set. A claim that replaces this one is never
        for this boot.
        """
        clock = self._seams.clock
        passed = timedelta(seconds=clock.monotonic() - self._began)
        if not claim.meant_for(self._boot.at + (clock.now() - self._began_at - passed)):
            self._untimely = claim.run
            raise MisconfiguredError(
                f"the claim is valid from {claim.created:%H:%M} to {claim.deadline:%H:%M}, not for this boot "
                f"(time by the host's clock: {clock.now():%H:%M})"
            )

    def _taken_by_another(self, claim: HostClaim, runs: Store) -> bool:
        """True if a boot other than this one took the claim."""
        record = read_optional(runs, keys.boot(claim.run, claim.machine), BootRecord)
        return record is not None and record.boot != self._boot.id

    def _is_over(self, claim: HostClaim, runs: Store) -> bool:
        """True if the boot that took the claim ended it.

        Else it went down, and this boot ends the run. A host that powers itself off stores its reason: a
        later start is not for that run.
        """
        if is_stored(runs, keys.later_boot(claim.run, self._boot.id)):
            return False
        return is_stored(runs, keys.host_end(claim.run))

    def _write_deadman_files(self, claim: HostClaim, deadman_files: DeadmanFiles) -> float:
        """Writes the dead-man's files; returns the limit in force. Raises MisconfiguredError."""
        now = self._seams.clock.monotonic()
        left = (claim.deadline - self._seams.clock.now()).total_seconds()
        late = now + left + self._place.waits.overtime
        return deadman_files.record_claim(claim.run, limit=late, now=now)

    def _write_boot_record(
        self, claim: HostClaim, runs: Store, deadman_files: DeadmanFiles, *, again: bool
    ) -> None:
        """Writes this boot's record: the run's first boot, or a later one."""
        key = keys.later_boot(claim.run, self._boot.id) if again else keys.boot(claim.run, claim.machine)
        boot = self._boot
        record = BootRecord(run=claim.run, boot=boot.id, at=boot.at, agent=boot.agent, release=__version__)
        created = runs.create(key, msgspec.json.encode(record))
        if created or again or not self._taken_by_another(claim, runs):
            return
        deadman_files.delete_claim()
        self._limit = None
        raise TransientError("another boot took the claim at the same time")


def run_agent(agent: HostAgent, clock: Clock) -> None:
    """Steps the agent until nothing is left to do."""
    while (wait := agent.step()) is not None:
        clock.sleep(wait)
