"""The box by itself: it finds the claim that it was started for, and takes it up, once.

A box that a person started finds none, and does nothing. One that cannot look does nothing either, after
a while: to power off is for those alone who know that they were started for a run. These tell the dead-man
before they take the run up: what could not be ended from here is not begun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import structlog

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.box import (
    BootRecord,
    BoxClaim,
    BoxPlace,
    ClaimLaunch,
    InstanceRecord,
    WorkerName,
)
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, TransientError
from batchscribe.protocols import Clock, Store
from batchscribe.reading import is_stored, read_record
from batchscribe.worker.watching import Marks, Watch, Workers

LOG = structlog.get_logger()
RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """This boot of this machine."""

    id: str
    at: datetime
    """By the clock as the agent began; a clock that is set later moves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSeams:
    """All that the agent touches. Opening a store makes no request, and may raise MisconfiguredError."""

    clock: Clock
    workers: Workers
    marks: Marks
    home: Callable[[], Store]
    """Opens the store with the instance's record."""
    runs: Callable[[BoxClaim], Store]
    """Opens the store with the claim's run."""


class BoxAgent:
    """Lives through one boot, step by step; an agent that died is followed by one that goes on."""

    def __init__(self, place: BoxPlace, boot: Boot, seams: BoxSeams) -> None:
        self._place = place
        self._boot = boot
        self._seams = seams
        self._began = seams.clock.monotonic()
        self._began_at = seams.clock.now()
        self._untimely: str | None = None
        self._limit: float | None = None
        self._watch: Watch | None = None

    def step(self) -> float | None:
        """Makes one look and at most one act. Seconds until the next; None when nothing is left to do."""
        return self._watch.step() if self._watch else self._seek()

    def _seek(self) -> float | None:
        try:
            self._watch = self._taken_up()
        except (TransientError, MisconfiguredError) as error:
            if self._seams.clock.monotonic() - self._began >= self._place.waits.store:
                dead_man = self._limit is not None
                then = "the dead-man powers off" if dead_man else "nothing is done, and nothing powered off"
                LOG.warning("box.gives_up", why=str(error), then=then)
                return None
            LOG.warning("box.waits_for_its_record", why=str(error))
            return RETRY_SECONDS
        return 0.0 if self._watch else None

    def _taken_up(self) -> Watch | None:
        claim = self._claim()
        if claim is None:
            return None
        runs = self._seams.runs(claim)
        if refused := self._refusal(claim, runs):
            LOG.info("box.claim_left_alone", run=claim.run, why=refused)
            return None
        self._in_time(claim)
        again = self._taken_by_another(claim, runs)
        if again and self._is_over(claim, runs):
            LOG.info("box.claim_left_alone", run=claim.run, why="another boot took it up")
            return None
        self._limit = self._marked(claim)
        self._note(claim, runs, again=again)
        LOG.info("box.claim_taken_up", run=claim.run, launch=claim.launch.value, again=again)
        return Watch(
            claim,
            runs,
            workers=self._seams.workers,
            marks=self._seams.marks,
            clock=self._seams.clock,
            waits=self._place.waits,
            limit=self._limit,
            claimed=lambda: self._still_claimed(claim),
            again=again,
        )

    def _claim(self) -> BoxClaim | None:
        """The claim in this instance's record; None where there is none."""
        try:
            record = read_record(self._seams.home(), keys.instance(self._place.instance), InstanceRecord)
        except ObjectNotFoundError:
            LOG.info("box.not_recorded", instance=self._place.instance)
            return None
        if record.claim is None:
            LOG.info("box.no_claim", instance=self._place.instance)
        return record.claim

    def _still_claimed(self, claim: BoxClaim) -> bool:
        now = self._claim()
        return now is not None and now.run == claim.run

    def _refusal(self, claim: BoxClaim, runs: Store) -> str:
        """Why the claim is none of this boot's; empty where it may be taken up."""
        WorkerName(run=claim.run, worker=0).checked()
        if claim.launch is ClaimLaunch.HELD:
            return "it says that the box does nothing"
        if self._untimely not in {None, claim.run}:
            return "it was left after this boot, for another one"
        if not is_stored(runs, keys.intent(claim.run)):
            return "its run has no intent"
        if is_stored(runs, keys.settlement(claim.run)):
            return "its run is settled"
        return ""

    def _in_time(self, claim: BoxClaim) -> None:
        """Raises MisconfiguredError where the claim is not of this boot: the box's clock may yet be set, so
        that is looked at again. A claim that comes in the place of this one is no matter of clocks.
        """
        clock = self._seams.clock
        passed = timedelta(seconds=clock.monotonic() - self._began)
        if not claim.meant_for(self._boot.at + (clock.now() - self._began_at - passed)):
            self._untimely = claim.run
            raise MisconfiguredError(
                f"the claim is of {claim.created:%H:%M} to {claim.deadline:%H:%M}, not of this boot, "
                f"if the box's clock is right: it says {clock.now():%H:%M}"
            )

    def _taken_by_another(self, claim: BoxClaim, runs: Store) -> bool:
        """By a boot that is not this one; an earlier agent of this boot may have taken it up."""
        try:
            record = read_record(runs, keys.boot(claim.run), BootRecord)
        except ObjectNotFoundError:
            return False
        return record.boot != self._boot.id

    def _is_over(self, claim: BoxClaim, runs: Store) -> bool:
        """Whether the boot that took it up did not go down under it: else this one ends what is left.

        A box that powered itself off left its word: whoever starts it after that has it to themselves.
        """
        if is_stored(runs, keys.later_boot(claim.run, self._boot.id)):
            return False
        return is_stored(runs, keys.box_end(claim.run))

    def _marked(self, claim: BoxClaim) -> float:
        """Tells the dead-man, whose limit is returned. Raises MisconfiguredError."""
        now = self._seams.clock.monotonic()
        left = (claim.deadline - self._seams.clock.now()).total_seconds()
        late = now + left + self._place.waits.overtime
        return self._seams.marks.take(claim.run, limit=late, now=now)

    def _note(self, claim: BoxClaim, runs: Store, *, again: bool) -> None:
        """Leaves this boot's record: the run's one boot, or one that came after it."""
        key = keys.later_boot(claim.run, self._boot.id) if again else keys.boot(claim.run)
        if runs.create(key, self._record(claim)) or again or not self._taken_by_another(claim, runs):
            return
        self._seams.marks.release()
        self._limit = None
        raise TransientError("another boot took the claim up at this very moment")

    def _record(self, claim: BoxClaim) -> bytes:
        record = BootRecord(run=claim.run, boot=self._boot.id, at=self._boot.at, release=__version__)
        return msgspec.json.encode(record)


def live(agent: BoxAgent, clock: Clock) -> None:
    """Lets the agent do all that this boot asks of it."""
    while (wait := agent.step()) is not None:
        clock.sleep(wait)
