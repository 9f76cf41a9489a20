"""Upper bound of one instance's billed seconds in a run, from polls.

A poll shows the state at some moment between request and answer, or a little earlier. So the bill runs from
the request of the last poll that showed the instance idle to the answer of the first poll that showed it no
longer running.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from batchscribe.core.decide.money import MINIMUM_BILLED_SECONDS
from batchscribe.core.run.instances import Instance, InstanceState

LONGEST_PENDING = timedelta(minutes=5)
"""From an accepted start to `running`, or back to `stopped`."""

FORGOTTEN = timedelta(minutes=30)
"""A terminated instance is shown for at least so long; EC2 shows it for about an hour."""

LONGEST_LAG = timedelta(seconds=30)
"""Clouds are eventually consistent: a poll may show an older state than the previous one."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time with the uptime, which no clock change affects."""

    at: datetime
    """Aware, UTC."""
    uptime: float | None = None
    """Seconds since boot; None if not recorded."""
    boot: str = ""
    """Id of the boot that `uptime` belongs to."""

    def seconds_since(self, earlier: Moment) -> float:
        """Seconds since `earlier`, by uptime if possible; may be negative."""
        if self.boot and self.boot == earlier.boot and None not in (self.uptime, earlier.uptime):
            assert self.uptime is not None
            assert earlier.uptime is not None
            return self.uptime - earlier.uptime
        return (self.at - earlier.at).total_seconds()

    def is_within(self, span: timedelta, of: Moment) -> bool:
        """True if less than `span` passed; False for a clock set back."""
        return 0 <= self.seconds_since(of) < span.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """One poll of an instance: request time, answer time and result."""

    asked: Moment
    answered: Moment
    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Observations of a run's instance, from polls. None is not observed (yet)."""

    launched_before: datetime | None = None
    """The instance's launch time before our start, by the cloud's clock: a later one proves a new start."""
    start_requested: Moment | None = None
    start_accepted: Moment | None = None
    """The cloud accepted the start, which may still fail."""
    launched: datetime | None = None
    """The launch time of our start: a later one means that the instance is up for another user."""
    idle_until: Moment | None = None
    """The last poll, after the start request, that showed it not running yet."""
    up_since: Moment | None = None
    """The first poll, after the start request, that did not show `stopped`. Until then `stopped` proves
    nothing: the state may be older than our start."""
    running_since: Moment | None = None
    running_until: Moment | None = None
    """The last poll that showed it running."""
    stopped: Moment | None = None
    """The first poll, after it ran, that showed it no longer billable."""
    ended: datetime | None = None
    """Begin of that stop by the cloud's clock, as `launched` is; None if the cloud does not report it."""
    shared_seconds: float = 0.0
    """Time in which further instances with its name were up beside the first one, at most."""

    @classmethod
    def recovered(cls, created: datetime, *, started: bool, launched_before: datetime | None) -> Meter:
        """The meter of a run in the store, billed from its creation."""
        begin = Moment(created) if started else None
        return cls(launched_before=launched_before, start_requested=begin)

    def request_start(self, poll: Poll) -> Meter:
        """The meter of a run that is about to request its start."""
        return replace(self, start_requested=poll.answered, launched_before=poll.instance.launched_at)

    def contradicts(self, poll: Poll, lag: timedelta) -> bool:
        """True if the poll may show `stopped` from before the start."""
        state = poll.instance.state
        if self.up_since is None or self.stopped is not None or state.billable or state.moving:
            return False
        return poll.answered.is_within(lag, of=self.up_since)

    def accept_start(self, asked: Moment, answered: Moment) -> Meter:
        """The meter after an accepted start, without an earlier one's end.

        If that was observed, the time before is billed, too.
        """
        idle_until = self.idle_until if self.stopped else asked
        return replace(self, start_accepted=answered, idle_until=idle_until, stopped=None)

    def borrow(self, now: Moment) -> Meter:
        """The meter of a run that bills a running instance from now."""
        return replace(
            self, start_requested=now, start_accepted=now, up_since=now, running_since=now, running_until=now
        )

    def end(self, now: Moment) -> Meter:
        """The meter of a run that ends, or leaves its instance running."""
        return replace(self, stopped=self.stopped or now)

    def read(self, poll: Poll, *, ours: bool, lands: bool = False, created: bool = False) -> Meter:
        """The meter after a poll.

        `ours`: this run started the instance that is up. `lands`: the start request is so recent that not
        every poll shows it yet. `created`: the cloud forgets the instance some time after its end, so a long
        time without polls is billed.
        """
        meter = self._read_state(poll, ours=ours, lands=lands, created=created)
        return meter.count_others(poll.instance, poll.answered.at)

    def count_others(self, seen: Instance, now: datetime) -> Meter:
        """The meter with the time of others of its name."""
        seconds = _measure_overlap((seen, *seen.beside), now)
        return replace(self, shared_seconds=max(self.shared_seconds, seconds))

    def _read_state(self, poll: Poll, *, ours: bool, lands: bool, created: bool) -> Meter:
        state, now = poll.instance.state, poll.answered
        if state.billable or state.moving:
            launched = self.launched or (poll.instance.launched_at if ours else None)
            up = replace(self, up_since=self.up_since or now, launched=launched)
            return up.end(now) if self.is_started_again(poll.instance.launched_at) else up.read_up(poll)
        if created and state is InstanceState.MISSING:
            return self  # it may still run
        if self.up_since is not None:
            return replace(self.end(now), ended=self.ended or poll.instance.stopped_at)
        if self.is_started_since(poll.instance.launched_at):
            # It ran and stopped between two polls; or the state is older than the launch time beside it,
            # and gets time to catch up.
            return replace(self.end(now), up_since=None if lands else now)
        last = self.idle_until or self.start_requested
        if created and last is not None and now.seconds_since(last) > FORGOTTEN.total_seconds():
            return replace(self.end(now), running_since=self.running_since or last)
        return self._read_idle(poll.asked, never_started=state is InstanceState.STOPPED)

    def read_up(self, poll: Poll) -> Meter:
        """The meter after a poll with the instance up for this run."""
        state, now = poll.instance.state, poll.answered
        if state.billable:
            # Billed, whatever an older poll showed.
            return replace(
                self, running_since=self.running_since or now, running_until=now, stopped=None, ended=None
            )
        if state is InstanceState.PENDING:
            return replace(self._read_idle(poll.asked, never_started=False), stopped=None, ended=None)
        return self.end(now)

    def _read_idle(self, until: Moment, *, never_started: bool) -> Meter:
        """The meter after an idle poll: time before it is not billed.

        Except if it ran before, or the last poll is so old that an earlier start may have come and gone
        unobserved; a launch time from before the run rules that out.
        """
        last = self.idle_until or self.start_requested
        gap = last is not None and until.seconds_since(last) > LONGEST_PENDING.total_seconds()
        if self.running_since is not None or (gap and not never_started):
            return self
        return replace(self, idle_until=until)

    def is_started_since(self, launched_at: datetime | None) -> bool:
        """True if this launch time is after the run began."""
        if self.launched_before is None:
            return launched_at is not None  # it never ran before
        return launched_at is not None and launched_at > self.launched_before

    def is_started_again(self, launched_at: datetime | None) -> bool:
        """True if the instance was started again, for another user."""
        return self.launched is not None and launched_at is not None and launched_at > self.launched

    @property
    def ran(self) -> bool:
        """True if a poll showed it up."""
        return self.up_since is not None or self.running_since is not None

    @property
    def is_bounded(self) -> bool:
        """True if a poll bounds the bill from above."""
        return self.stopped is not None or self.running_until is not None

    @property
    def billed_seconds(self) -> float | None:
        """Seconds billed at most; None if the clocks contradict each other."""
        begin = self.idle_until or self.start_requested
        end = self.stopped or self.running_until
        if begin is None or end is None or not self.ran:
            return 0.0
        seconds = end.seconds_since(begin)
        if begin.boot != end.boot:
            # A reboot may have set the clock back, unnoticed if by less than the run.
            seconds = max(seconds, self._seconds_by_cloud)
        return seconds if seconds >= 0 else None

    @property
    def _seconds_by_cloud(self) -> float:
        """Seconds from launch to stop by the cloud's clock; -1 if unknown."""
        if self.launched is None or self.ended is None or self.ended < self.launched:
            return -1.0
        return (self.ended - self.launched).total_seconds()


def _measure_overlap(instances: Iterable[Instance], now: datetime) -> float:
    """Sum of the instances' seconds up, less those in which any was.

    An instance without a known stop is up to now.
    """
    minimum = timedelta(seconds=MINIMUM_BILLED_SECONDS)
    launched = sorted((each.launched_at, each.stopped_at or now) for each in instances if each.launched_at)
    overlap, reached = 0.0, datetime.min.replace(tzinfo=UTC)
    for begin, end in launched:
        until = max(end, begin + minimum)
        overlap += max(0.0, (min(until, reached) - begin).total_seconds())
        reached = max(reached, until)
    return overlap
