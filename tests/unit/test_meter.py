"""The meter: what each poll of an instance adds to the bill of its run."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.meter import LONGEST_LAG, LONGEST_PENDING, Meter, Moment, Poll
from support.values import NOW, instance, meter, moment

S = InstanceState
LONG = LONGEST_PENDING.total_seconds()
LAG = LONGEST_LAG.total_seconds()
BEFORE = NOW - timedelta(days=1)
"""Launch time of an earlier run."""
OURS = NOW + timedelta(seconds=5)
THEIRS = NOW + timedelta(seconds=900)
UP = [S.RUNNING, S.STOPPING, S.PENDING]
DOWN = [S.STOPPED, S.TERMINATED, S.MISSING]


def poll(
    asked: float, state: InstanceState, *, took: float = 2.0, launched_at: datetime | None = None
) -> Poll:
    """A poll that was asked for so many seconds after the start request."""
    shown = instance(state, launched_at=launched_at)
    return Poll(asked=moment(asked), answered=moment(asked + took), instance=shown)


REQUESTED = Meter().request_start(poll(-2, S.STOPPED, launched_at=BEFORE))


def read(before: Meter, *polls: Poll, **options: Any) -> Meter:
    for each in polls:
        before = before.read(each, ours=True, **options)
    return before


# Moments.


def test_within_one_boot_seconds_come_from_the_uptime_whatever_the_clock_says() -> None:
    earlier = moment(uptime=100.0, boot="a")
    for jump in (-86_400, 0, 86_400):
        assert moment(jump, uptime=160.0, boot="a").seconds_since(earlier) == 60.0


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (moment(uptime=9000.0, boot="a"), moment(60, uptime=10.0, boot="b")),
        (moment(), moment(60)),
        (moment(uptime=9000.0, boot=""), moment(60, uptime=10.0, boot="")),
        (moment(), moment(60, uptime=10.0, boot="b")),
        (moment(uptime=None, boot="a"), moment(60, uptime=10.0, boot="a")),
    ],
    ids=["after a reboot", "no uptime", "no boot", "read from version 1", "half recorded"],
)
def test_across_boots_seconds_come_from_the_wall_clock(earlier: Moment, later: Moment) -> None:
    assert later.seconds_since(earlier) == 60.0
    assert earlier.seconds_since(later) == -60.0


def test_a_span_ends_after_its_seconds_and_a_clock_that_was_set_back_grants_no_grace() -> None:
    span = timedelta(seconds=60)
    assert moment().is_within(span, of=moment())
    assert moment(59).is_within(span, of=moment())
    assert not moment(60).is_within(span, of=moment())
    assert not moment(-1).is_within(span, of=moment())


# The start.


def test_a_start_request_remembers_when_the_instance_was_launched_before() -> None:
    assert meter(start_requested=NOW, launched_before=BEFORE) == REQUESTED
    assert (REQUESTED.ran, REQUESTED.is_bounded, REQUESTED.billed_seconds) == (False, False, 0.0)


@pytest.mark.parametrize(
    ("before", "now", "since"),
    [
        (None, None, False),
        (None, NOW - timedelta(minutes=5), True),  # it had never run before, whatever our clock shows
        (NOW, None, False),
        (NOW, NOW, False),
        (NOW, NOW + timedelta(seconds=1), True),
    ],
)
def test_a_start_since_is_proved_by_the_clouds_own_clock(
    before: datetime | None, now: datetime | None, *, since: bool
) -> None:
    assert Meter(launched_before=before).is_started_since(now) is since


@pytest.mark.parametrize(
    ("launched", "now", "again"),
    [(None, THEIRS, False), (OURS, None, False), (OURS, OURS, False), (OURS, THEIRS, True)],
)
def test_an_instance_is_started_again_if_it_was_launched_after_our_own_start(
    launched: datetime | None, now: datetime | None, *, again: bool
) -> None:
    assert Meter(launched=launched).is_started_again(now) is again


def test_an_accepted_start_is_billed_from_its_own_question_on() -> None:
    """The reply to an earlier one was lost, and it had no effect."""
    accepted = meter(start_requested=NOW).accept_start(moment(30), moment(32))
    assert (accepted.start_accepted, accepted.idle_until, accepted.stopped) == (moment(32), moment(30), None)
    ended = read(accepted, poll(100, S.RUNNING, launched_at=OURS), poll(160, S.STOPPED))
    assert ended.billed_seconds == 132.0


def test_a_loan_is_billed_from_our_begin_to_our_end() -> None:
    borrowed = Meter(launched_before=BEFORE).borrow(moment(10))
    assert borrowed.ran
    assert read(borrowed, poll(50, S.RUNNING, launched_at=BEFORE)).billed_seconds == 42.0
    assert borrowed.end(moment(100)).billed_seconds == 90.0


@pytest.mark.parametrize("started", [True, False])
def test_a_run_that_only_the_store_remembers_is_billed_from_its_creation_if_it_was_started(
    *, started: bool
) -> None:
    found = Meter.recovered(NOW, started=started, launched_before=BEFORE)
    assert found.launched_before == BEFORE
    assert (found.start_requested is not None) is started
    ended = read(found, poll(600, S.STOPPING, launched_at=OURS))
    assert ended.billed_seconds == (602.0 if started else 0.0)


# Polls.


def test_instances_of_one_name_are_each_billed_while_they_are_up_together() -> None:
    """The cloud forgot the client token of their request. Which one a poll shows does not matter."""
    first, second = (
        instance(S.RUNNING, launched_at=NOW + timedelta(seconds=launched)) for launched in (5, 105)
    )
    ended = replace(second, state=S.TERMINATED, stopped_at=NOW + timedelta(seconds=205))

    def poll_both(asked: float, shown: Instance, other: Instance) -> Poll:
        seen = replace(shown, beside=(other,))
        return Poll(asked=moment(asked), answered=moment(asked), instance=seen)

    created = Meter().request_start(poll(-2, S.STOPPED))
    both = read(created, poll_both(165, first, second), created=True)
    assert both.shared_seconds == 60.0
    after = read(both, poll_both(405, first, ended), poll_both(405, ended, first), created=True)
    assert after.shared_seconds == 100.0


def test_instances_of_one_name_after_each_other_are_billed_once() -> None:
    stopped = {"launched_at": NOW, "stopped_at": NOW + timedelta(seconds=100)}
    later = instance(S.RUNNING, launched_at=NOW + timedelta(seconds=200))
    seen = replace(later, beside=(instance(S.TERMINATED, **stopped),))
    assert Meter().count_others(seen, NOW + timedelta(hours=1)).shared_seconds == 0.0


@pytest.mark.parametrize("again", [False, True], ids=["same token", "forgotten token"])
def test_an_instance_that_ended_before_its_request_was_repeated_is_billed(*, again: bool) -> None:
    """The reply to the first request was lost."""
    first = instance(S.TERMINATED, launched_at=NOW, stopped_at=NOW + timedelta(seconds=200))
    second = instance(S.TERMINATED, launched_at=NOW + timedelta(seconds=214), beside=(first,))
    created = Meter().request_start(poll(-2, S.STOPPED))

    def read_at(before: Meter, asked: float, shown: Instance, *, lands: bool = False) -> Meter:
        seen = Poll(asked=moment(asked), answered=moment(asked), instance=shown)
        return before.read(seen, ours=False, lands=lands, created=True)

    accepted = read_at(created, 210, first, lands=True).accept_start(moment(212), moment(213))
    assert (read_at(accepted, 400, second if again else first).billed_seconds or 0.0) >= 200


def test_an_instance_is_billed_from_its_last_idle_poll_to_its_first_one_that_is_stopped() -> None:
    after = read(
        REQUESTED,
        poll(5, S.STOPPED, launched_at=BEFORE),
        poll(20, S.PENDING, launched_at=OURS),
        poll(40, S.RUNNING, launched_at=OURS),
        poll(900, S.RUNNING, launched_at=OURS),
        poll(930, S.STOPPED, launched_at=OURS),
        poll(990, S.STOPPED, launched_at=OURS),
    )
    assert after.idle_until == moment(20), "the question"
    assert after.up_since == moment(22), "the answer"
    assert (after.running_since, after.running_until) == (moment(42), moment(902))
    assert after.stopped == moment(932), "the first answer"
    assert after.launched == OURS
    assert after.billed_seconds == 912.0


@pytest.mark.parametrize("state", [S.STOPPING, *DOWN])
def test_the_first_poll_after_it_ran_that_is_not_running_ends_the_bill(state: InstanceState) -> None:
    running = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS))
    ended = read(running, poll(100, state, launched_at=OURS))
    assert (ended.stopped, ended.is_bounded) == (moment(102), True)
    assert ended.end(moment(500)) == ended, "the first end stands"


def test_a_run_that_was_not_observed_stopped_is_billed_to_its_last_running_poll() -> None:
    running = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS), poll(100, S.RUNNING, launched_at=OURS))
    assert running.billed_seconds == 102.0
    assert running.is_bounded


def test_an_instance_that_is_running_after_all_is_billed_on() -> None:
    """A poll that showed it stopped was older than one that shows it running."""
    stale = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS), poll(45, S.STOPPED, launched_at=OURS))
    assert stale.stopped is not None
    assert read(stale, poll(50, S.RUNNING, launched_at=OURS)).stopped is None
    pending = read(REQUESTED, poll(10, S.STOPPING, launched_at=OURS), poll(15, S.PENDING, launched_at=OURS))
    assert pending.stopped is None


@pytest.mark.parametrize("state", UP)
def test_until_a_poll_shows_it_up_stopped_proves_nothing(state: InstanceState) -> None:
    stopped = read(REQUESTED, poll(5, S.STOPPED, launched_at=BEFORE))
    assert (stopped.up_since, stopped.stopped, stopped.idle_until) == (None, None, moment(5))
    assert read(stopped, poll(9, state, launched_at=OURS)).up_since == moment(11)


def test_the_launch_time_is_taken_only_from_our_own_start() -> None:
    up = poll(40, S.RUNNING, launched_at=OURS)
    assert REQUESTED.read(up, ours=False).launched is None
    assert REQUESTED.read(up, ours=True).launched == OURS


@pytest.mark.parametrize("state", UP)
def test_a_later_launch_ends_our_bill(state: InstanceState) -> None:
    """It was stopped and started again from outside, between two polls."""
    ours = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS))
    theirs = read(ours, poll(1000, state, launched_at=THEIRS))
    assert (theirs.stopped, theirs.launched, theirs.running_until) == (moment(1002), OURS, moment(42))
    assert read(theirs, poll(5000, S.RUNNING, launched_at=THEIRS)).billed_seconds == theirs.billed_seconds


@pytest.mark.parametrize("lands", [True, False])
def test_what_ran_between_two_polls_is_billed_by_its_launch_time(*, lands: bool) -> None:
    idle = read(REQUESTED, poll(5, S.STOPPED, launched_at=BEFORE))
    after = read(idle, poll(600, S.STOPPED, launched_at=OURS), lands=lands)
    assert after.stopped == moment(602)
    # A state that may be older than the launch time beside it gets time to catch up.
    assert after.up_since == (None if lands else moment(602))
    assert after.billed_seconds == (0.0 if lands else 597.0)
    later = read(after, poll(700, S.STOPPED, launched_at=OURS))
    assert (later.stopped, later.billed_seconds) == (moment(602), 597.0)


@pytest.mark.parametrize(("asked", "billed"), [(20, 580), (LONG, 600 - LONG), (LONG + 1, 600)])
def test_what_is_pending_long_after_our_start_may_be_a_second_one(asked: float, billed: float) -> None:
    """The first one may have run, unobserved, to its end."""
    pending = read(REQUESTED, poll(asked, S.PENDING, launched_at=OURS))
    assert pending.end(moment(600)).billed_seconds == billed


def test_polls_without_a_gap_bill_no_pending_instance() -> None:
    polls = [poll(second, S.PENDING, launched_at=OURS) for second in range(0, 1200, int(LONG))]
    assert read(REQUESTED, *polls).idle_until == moment(900)


@pytest.mark.parametrize(("state", "idle"), [(S.STOPPED, 4000.0), (S.MISSING, None), (S.TERMINATED, None)])
def test_after_a_gap_only_stopped_with_its_old_launch_time_proves_that_it_never_ran(
    state: InstanceState, idle: float | None
) -> None:
    after = read(REQUESTED, poll(4000, state, launched_at=BEFORE if state is S.STOPPED else None))
    assert after.idle_until == (None if idle is None else moment(idle))
    assert after.billed_seconds == 0.0


def test_what_was_running_is_not_idle_by_an_older_poll() -> None:
    running = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS))
    assert read(running, poll(60, S.PENDING, launched_at=OURS)).idle_until is None


# Polls that contradict each other.


@pytest.mark.parametrize("state", DOWN)
@pytest.mark.parametrize(("after", "contradicts"), [(LAG - 3, True), (LAG, False)])
def test_a_poll_that_shows_it_down_soon_after_it_came_up_may_be_older_than_its_start(
    state: InstanceState, after: float, *, contradicts: bool
) -> None:
    up = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS))
    assert up.contradicts(poll(42 + after, state), LONGEST_LAG) is contradicts
    on = read(up, poll(1000, S.RUNNING, launched_at=OURS))
    assert not on.contradicts(poll(1002, state), LONGEST_LAG), "it cannot be older than the start any more"


@pytest.mark.parametrize("state", UP)
def test_a_poll_that_shows_it_up_contradicts_nothing(state: InstanceState) -> None:
    up = read(REQUESTED, poll(40, S.RUNNING, launched_at=OURS))
    assert not up.contradicts(poll(41, state, launched_at=OURS), LONGEST_LAG)


def test_before_it_was_up_and_after_its_end_nothing_is_contradicted() -> None:
    assert not REQUESTED.contradicts(poll(1, S.STOPPED), LONGEST_LAG)
    ended = read(REQUESTED, poll(40, S.RUNNING), poll(41, S.STOPPING))
    assert not ended.contradicts(poll(42, S.STOPPED), LONGEST_LAG)


# The bill.


@pytest.mark.parametrize("jump", [-86_400.0, 0.0, 86_400.0])
def test_a_clock_that_is_set_does_not_change_the_bill_within_a_boot(jump: float) -> None:
    begin = moment(0, uptime=50.0, boot="a")
    end = moment(600 + jump, uptime=650.0, boot="a")
    assert Meter(start_requested=begin, up_since=begin, stopped=end).billed_seconds == 600.0


def test_clocks_that_contradict_each_other_across_a_reboot_give_no_bill() -> None:
    begin = moment(0, uptime=50.0, boot="a")
    end = moment(-3600, uptime=5.0, boot="b")
    assert Meter(start_requested=begin, up_since=begin, stopped=end).billed_seconds is None
    assert Meter(start_requested=begin, stopped=end).billed_seconds == 0.0, "it was never up"


def test_a_clock_that_a_reboot_set_back_is_corrected_by_the_clouds() -> None:
    """The scheduler's machine reboots in mid-run, and is 60 s behind afterwards."""
    stopped_at = OURS + timedelta(seconds=83)
    running = replace(poll(5, S.RUNNING, launched_at=OURS), answered=moment(6, uptime=900.0, boot="a"))
    up = read(replace(REQUESTED, idle_until=moment(4, uptime=898.0, boot="a")), running)
    last = poll(28, S.STOPPED, launched_at=OURS)
    last = replace(last, answered=moment(30, uptime=9.0, boot="b"))
    assert up.read(last, ours=True).billed_seconds == 26.0
    known = replace(last, instance=replace(last.instance, stopped_at=stopped_at))
    assert up.read(known, ours=True).billed_seconds == 83.0
    older = replace(last, instance=replace(last.instance, stopped_at=OURS - timedelta(hours=1)))
    assert up.read(older, ours=True).billed_seconds == 26.0


def test_within_a_boot_our_own_clock_counts() -> None:
    """It also has the seconds in which a request was on its way."""
    up = read(REQUESTED, poll(5, S.RUNNING, launched_at=OURS))
    last = poll(100, S.STOPPED, launched_at=OURS)
    known = replace(last, instance=replace(last.instance, stopped_at=OURS + timedelta(seconds=500)))
    assert up.read(known, ours=True).billed_seconds == up.read(last, ours=True).billed_seconds


SPANS = st.floats(0, 400)
POLLED = st.lists(st.tuples(SPANS, st.floats(0, 30), st.floats(0, 1)), max_size=12)


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Poll], float]:
    """Polls that each show what is true at some moment between question and answer, and the billed truth."""
    up, pending, running, stopping = (draw(SPANS) for _ in range(4))
    ends = (up, up + pending, up + pending + running, up + pending + running + stopping)
    polls, now = [], 0.0
    for gap, took, share in [*draw(POLLED), (ends[-1], 1.0, 1.0)]:
        true_at = now + gap + took * share
        states = zip(ends, (S.STOPPED, S.PENDING, S.RUNNING, S.STOPPING), strict=True)
        state = next((state for end, state in states if true_at < end), S.STOPPED)
        launched = NOW + timedelta(seconds=up) if true_at >= up else BEFORE
        polls.append(poll(now + gap, state, took=took, launched_at=launched))
        now += gap + took
    return polls, running


@given(lives())
def test_the_bill_is_never_below_what_the_instance_ran(life: tuple[list[Poll], float]) -> None:
    polls, ran = life
    billed = read(REQUESTED, *polls).billed_seconds
    assert billed is not None
    assert billed >= ran - 1e-3


@given(lives())
def test_a_poll_that_is_read_twice_changes_nothing(life: tuple[list[Poll], float]) -> None:
    polls, _ = life
    once = REQUESTED
    for each in polls:
        once = read(once, each)
        assert read(once, each) == once
