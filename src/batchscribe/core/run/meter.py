"""Billed seconds of one instance for one run: an upper bound, taken from polls.

A poll shows what was true at some moment between its question and its answer, or a little earlier. So an
instance is billed from the question of the last poll that showed it idle to the answer of the first poll
that showed it no longer running.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from batchscribe.core.run.instances import Instance, InstanceState

LONGEST_PENDING = timedelta(minutes=5)
"""From an accepted start to `running`, or back to `stopped`."""

LONGEST_LAG = timedelta(seconds=30)
"""Clouds are eventually consistent: a poll may show an older state than the poll before it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A wall-clock time with its uptime: within one boot, differences survive a clock that is set."""

    at: datetime
    """Aware, UTC."""
    uptime: float | None = None
    """Seconds since boot; None if that was not recorded."""
    boot: str = ""
    """Id of the boot that `uptime` belongs to."""

    def seconds_since(self, earlier: Moment) -> float:
        """Seconds since `earlier`: by uptime within one boot, else by the wall clock (may be negative)."""
        if self.boot and self.boot == earlier.boot and None not in (self.uptime, earlier.uptime):
            assert self.uptime is not None
            assert earlier.uptime is not None
            return self.uptime - earlier.uptime
        return (self.at - earlier.at).total_seconds()

    def is_within(self, span: timedelta, of: Moment) -> bool:
        """True if less than `span` passed from `of` to here. A clock that was set back grants no grace."""
        return 0 <= self.seconds_since(of) < span.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """One poll of an instance: when it was asked for, when the answer came, and what it showed."""

    asked: Moment
    answered: Moment
    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What the polls of a run showed of its instance. None is what was not observed (yet)."""

    launched_before: datetime | None = None
    """The instance's launch time before our start, by the cloud's clock: a later one proves a start since."""
    start_requested: Moment | None = None
    start_accepted: Moment | None = None
    """The cloud accepted the start; what became of it is another matter."""
    launched: datetime | None = None
    """The launch time of our own start: with a later one the instance is up for another user."""
    idle_until: Moment | None = None
    """The last poll, after the start request, that showed it not running yet."""
    up_since: Moment | None = None
    """The first poll, after the start request, that did not show `stopped`. Until then `stopped` proves
    nothing: what the cloud shows may be older than our start."""
    running_since: Moment | None = None
    running_until: Moment | None = None
    """The last poll that showed it running."""
    stopped: Moment | None = None
    """The first poll, after it ran, that showed it no longer billable."""

    @classmethod
    def recovered(cls, created: datetime, *, started: bool, launched_before: datetime | None) -> Meter:
        """The meter of a run that only the store remembers: billed from its creation, if it was started."""
        begin = Moment(created) if started else None
        return cls(launched_before=launched_before, start_requested=begin)

    def request_start(self, poll: Poll) -> Meter:
        """The meter of a run that is about to ask for its start."""
        return replace(self, start_requested=poll.answered, launched_before=poll.instance.launched_at)

    def contradicts(self, poll: Poll, lag: timedelta) -> bool:
        """True if the poll shows `stopped` although the instance was up, and may be older than its start."""
        state = poll.instance.state
        if self.up_since is None or self.stopped is not None or state.billable or state.moving:
            return False
        return poll.answered.is_within(lag, of=self.up_since)

    def accept_start(self, asked: Moment, answered: Moment) -> Meter:
        """An accepted start. What an earlier one came to, whose reply was lost, is no end of this one."""
        return replace(self, start_accepted=answered, idle_until=asked, stopped=None)

    def borrow(self, now: Moment) -> Meter:
        """The meter of a run on an instance that ran before it: billed from now to its end."""
        return replace(
            self, start_requested=now, start_accepted=now, up_since=now, running_since=now, running_until=now
        )

    def end(self, now: Moment) -> Meter:
        """The meter of a run that is over, or that hands its instance back running."""
        return replace(self, stopped=self.stopped or now)

    def read(self, poll: Poll, *, ours: bool, lands: bool = False) -> Meter:
        """The meter after a poll.

        `ours`: what is up in this poll was started by this run. `lands`: a start was asked for so recently
        that not every poll shows it yet.
        """
        state, now = poll.instance.state, poll.answered
        if state.billable or state.moving:
            launched = self.launched or (poll.instance.launched_at if ours else None)
            up = replace(self, up_since=self.up_since or now, launched=launched)
            return up.end(now) if self.is_started_again(poll.instance.launched_at) else up.read_up(poll)
        if self.up_since is not None:
            return self.end(now)
        if self.is_started_since(poll.instance.launched_at):
            # It ran, and stopped, between two polls. A state that is older than the launch time beside
            # it gets time to catch up.
            return replace(self.end(now), up_since=None if lands else now)
        return self._read_idle(poll.asked, never_started=state is InstanceState.STOPPED)

    def read_up(self, poll: Poll) -> Meter:
        """The meter after a poll that showed the instance up for this run."""
        state, now = poll.instance.state, poll.answered
        if state.billable:
            # Whatever an older poll showed: it is billed.
            return replace(self, running_since=self.running_since or now, running_until=now, stopped=None)
        if state is InstanceState.PENDING:
            return replace(self._read_idle(poll.asked, never_started=False), stopped=None)
        return self.end(now)

    def _read_idle(self, until: Moment, *, never_started: bool) -> Meter:
        """The meter after a poll that showed the instance not up yet: what comes before it is not billed.

        Unless it ran before, or the last poll is so old that an earlier start may have run, unobserved, to
        its end. A launch time from before the run proves that none did.
        """
        last = self.idle_until or self.start_requested
        gap = last is not None and until.seconds_since(last) > LONGEST_PENDING.total_seconds()
        if self.running_since is not None or (gap and not never_started):
            return self
        return replace(self, idle_until=until)

    def is_started_since(self, launched_at: datetime | None) -> bool:
        """True if an instance with this launch time was started after the run began."""
        if self.launched_before is None:
            return launched_at is not None  # it had never run before
        return launched_at is not None and launched_at > self.launched_before

    def is_started_again(self, launched_at: datetime | None) -> bool:
        """True if the instance was started again after our own start: it is up, but not for us."""
        return self.launched is not None and launched_at is not None and launched_at > self.launched

    @property
    def ran(self) -> bool:
        """True if a poll showed it up."""
        return self.up_since is not None or self.running_since is not None

    @property
    def is_ended(self) -> bool:
        """True if a poll bounds the bill from above."""
        return self.stopped is not None or self.running_until is not None

    @property
    def billed_seconds(self) -> float | None:
        """Seconds billed at most; 0 if it was never up, None if the clocks contradict each other."""
        begin = self.idle_until or self.start_requested
        end = self.stopped or self.running_until
        if begin is None or end is None or not self.ran:
            return 0.0
        seconds = end.seconds_since(begin)
        return seconds if seconds >= 0 else None
