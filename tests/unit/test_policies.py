"""The policies `deadline` and `balanced`: when they start, and what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.observation import Policy, PolicyName, ReasonCode
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Hold, Launch, decide
from support.values import NOW, OFFER, backlog, chunk, observation

DEADLINE = Policy(name=PolicyName.DEADLINE, check_interval=timedelta(minutes=1))
BALANCED = replace(DEADLINE, name=PolicyName.BALANCED)
# Ten seconds of audio in each chunk; the set-up and release of a start take 210 s, $0.0307.
MINUTE_OF_AUDIO = 6


@pytest.mark.parametrize(
    ("hours_old", "starts"), [(23.0, False), (23.62, False), (23.65, True), (90.0, True)]
)
def test_the_last_safe_moment_counts_a_slow_start_the_work_the_next_check_and_the_reserve(
    hours_old: float, starts: bool
) -> None:
    # 24 h minus 300 s of a slow set-up, 25 s of work, one minute to the next check and 15 minutes
    decision = decide(observation(backlog(50, hours_old=hours_old)), DEADLINE)
    assert isinstance(decision, Launch) is starts
    if starts:
        assert decision.reason.code is ReasonCode.LAST_SAFE_MOMENT
        assert "(up to 5.4 min for set-up and work, 15 min in reserve)" in decision.reason.sentence


def test_deadline_waits_for_any_number_of_chunks_and_names_the_moment() -> None:
    decision = decide(observation(backlog(5_000)), DEADLINE)
    assert isinstance(decision, Hold)
    assert decision.reason.code is ReasonCode.NOT_YET
    assert decision.reason.sentence == (
        "5000 chunks pending, 13.9 h of audio: the last safe moment for a start is 2026-11-24 09:57 UTC"
    )
    assert decision.expected is not None
    # 13.9 h of audio take 42 minutes, and a slow start, the next check and the reserve 21.
    assert isinstance(decide(observation(backlog(5_000, hours_old=22.9)), DEADLINE), Hold)
    assert isinstance(decide(observation(backlog(5_000, hours_old=23.0)), DEADLINE), Launch)


def test_a_backlog_of_several_runs_is_begun_earlier() -> None:
    policy = replace(DEADLINE, max_runtime=timedelta(minutes=10))
    # A run has time for 390 s of work and the backlog needs 2,500 s: seven runs, six more slow starts
    assert isinstance(decide(observation(backlog(5_000, hours_old=22.3)), DEADLINE), Hold)
    assert isinstance(decide(observation(backlog(5_000, hours_old=22.3)), policy), Launch)


def test_a_slow_start_is_never_assumed_faster_than_the_median() -> None:
    slow = replace(OFFER, priors=Priors(setup_seconds=3600.0))
    seen = observation(backlog(1, hours_old=22.8), offers=(slow,))
    assert isinstance(decide(seen, DEADLINE), Launch)


def arrived(pending: int, *, minutes_ago: float, **changes: Any) -> Any:
    return observation(backlog(pending, hours_old=minutes_ago / 60), **changes)


def test_balanced_starts_once_the_waits_cost_as_much_as_a_start() -> None:
    # $0.0307 at $0.05 for an audio hour and hour: 1 h of audio for 0.614 h
    hour_of_audio = backlog(60 * MINUTE_OF_AUDIO, hours_old=0.60, waiting=1)
    held = decide(observation(hour_of_audio), BALANCED)
    assert isinstance(held, Hold)
    assert held.reason.sentence == (
        "360 chunks pending, 60 min of audio: waiting has cost $0.0300 so far at $0.05 for each "
        "audio hour and hour; the set-up of a start costs $0.0307; without another chunk the GPU starts "
        "after 2026-11-23 12:00 UTC"
    )
    assert held.expected is not None
    assert timedelta(0) < held.expected - NOW < timedelta(minutes=2)
    decision = decide(replace(observation(hour_of_audio), now=held.expected), BALANCED)
    assert isinstance(decision, Launch)
    assert decision.reason.code is ReasonCode.BALANCE
    assert "60 min of audio waited 37 min on average: waiting has cost $0.03" in decision.reason.sentence
    for name in ("waiting_dollars", "setup_dollars"):
        assert decision.reason.numbers[name] == pytest.approx(0.0307, abs=1e-4)


def test_a_short_wait_is_in_minutes() -> None:
    policy = Policy(max_wait=timedelta(minutes=30))
    sentence = decide(observation(backlog(1, hours_old=0.05)), policy).reason.sentence
    assert sentence.startswith("the oldest chunk has waited 3.0 min; with the next check in 60 min it would")


def test_a_free_machine_has_nothing_to_wait_for() -> None:
    seen = arrived(1, minutes_ago=1, offers=(replace(OFFER, rate=FREE),))
    assert decide(seen, BALANCED).reason.code is ReasonCode.BALANCE


def test_balanced_starts_for_a_quiet_backlog() -> None:
    decision = decide(arrived(12 * MINUTE_OF_AUDIO, minutes_ago=6), BALANCED)
    assert isinstance(decision, Launch)
    assert decision.reason.code is ReasonCode.QUIET
    assert decision.reason.sentence == "no chunk arrived for 6.0 min, and 12 min of audio is pending"


@pytest.mark.parametrize(
    "seen",
    [
        arrived(12 * MINUTE_OF_AUDIO, minutes_ago=4),
        arrived(9 * MINUTE_OF_AUDIO, minutes_ago=6),
        arrived(12 * MINUTE_OF_AUDIO, minutes_ago=6, last_start=NOW - timedelta(minutes=59)),
        observation(backlog(12 * MINUTE_OF_AUDIO, hours_old=0.1, waiting=1)),
    ],
    ids=["not quiet", "too little audio", "just started", "still recording"],
)
def test_a_backlog_that_is_not_quiet_waits(seen: Any) -> None:
    assert isinstance(decide(seen, BALANCED), Hold)


@pytest.mark.parametrize(
    ("minutes_of_audio", "cool_down"),
    [(60, timedelta(hours=1)), (12, timedelta(hours=3.0683))],
    ids=["at least an hour", "as long as the audio could wait for the price of a set-up"],
)
def test_the_cool_down_follows_from_the_audio(minutes_of_audio: int, cool_down: timedelta) -> None:
    last = NOW - timedelta(minutes=50)
    seen = arrived(minutes_of_audio * MINUTE_OF_AUDIO, minutes_ago=6, last_start=last)
    held = decide(seen, BALANCED)
    assert isinstance(held, Hold)
    assert held.expected is not None
    assert abs(held.expected - last - cool_down) < timedelta(minutes=1)
    assert decide(replace(seen, now=held.expected), BALANCED).reason.code is ReasonCode.QUIET
    assert isinstance(decide(replace(seen, now=held.expected), BALANCED), Launch)


@pytest.mark.parametrize("name", PolicyName)
def test_absurd_measurements_prevent_no_decision(name: PolicyName) -> None:
    priors = Priors(speed=1e-9, setup_seconds=1e10, bytes_per_second={"webm": 1e-10})
    decide(observation(backlog(1), offers=(replace(OFFER, priors=priors),)), replace(BALANCED, name=name))


def test_balanced_keeps_the_longest_wait_of_a_single_chunk() -> None:
    assert isinstance(decide(observation(backlog(1, hours_old=23.0)), BALANCED), Hold)
    decision = decide(observation(backlog(1, hours_old=23.7)), BALANCED)
    assert decision.reason.code is ReasonCode.LAST_SAFE_MOMENT


@pytest.mark.parametrize("policy", [DEADLINE, BALANCED])
def test_chunks_that_failed_before_wait_for_their_last_safe_moment(policy: Policy) -> None:
    failed = chunk(previously_failed=True)
    seen = observation(backlog(1, troubled=1, oldest=None, candidates=(failed,)))
    assert decide(seen, policy).reason.code is ReasonCode.ONLY_FAILED_BEFORE
    due = replace(seen.backlog, oldest_retry=NOW - timedelta(hours=23.7))
    assert isinstance(decide(replace(seen, backlog=due), policy), Launch)
