"""Policies on small traces: starts, bills and waits that can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.core.decide import replay as replays
from batchscribe.core.decide.arrivals import Arrival, make_recorded_arrivals
from batchscribe.core.decide.hours import Hours, parse_hours
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.decide.observation import InstanceChoice, Observation, Policy, PolicyName
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Decision, Hold, decide
from batchscribe.core.decide.replay import Replay, first_check, replay
from batchscribe.core.decide.simulation import Simulation, simulate
from batchscribe.core.run.report import QueueSample
from support.values import NOW, run

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
OFFER = Offer(
    provider="ec2",
    instance_type="g6.xlarge",
    market=Market.ON_DEMAND,
    rate=Rate(per_hour=Usd.parse("3.6"), source="test"),
    priors=Priors(speed=10.0, setup_seconds=100.0, release_seconds=20.0),
)
"""A tenth of a cent for each second."""
AT_ONCE = Policy(name=PolicyName.NOW)


def arrive(*minutes: float, audio: float = 600.0) -> tuple[Arrival, ...]:
    return tuple(Arrival(NOW + minute * MINUTE, audio) for minute in minutes)


def played(*minutes: float, policy: Policy = AT_ONCE, offer: Offer = OFFER) -> Replay:
    return replay(arrive(*minutes), policy, (offer,))


def test_a_start_takes_what_is_pending_at_its_check() -> None:
    result = played(10, 20, 90)
    assert result.starts == (NOW + HOUR, NOW + 2 * HOUR)
    # 100 s of set-up, 60 s of work for each chunk, 20 s to stop
    assert (result.billed_seconds, result.cost) == (240 + 180, Usd.parse("0.42"))
    assert result.waits == (50 * 60 + 160, 40 * 60 + 220, 30 * 60 + 160)


def test_a_chunk_at_the_time_of_a_check_is_found_by_it() -> None:
    assert played(60).waits == (160,)


def test_a_chunk_that_arrives_during_a_run_waits_for_the_next_start() -> None:
    assert played(60, 61).starts == (NOW + HOUR, NOW + 2 * HOUR)


def test_no_check_starts_a_second_run() -> None:
    policy = replace(AT_ONCE, check_interval=MINUTE)
    # The first run lasts 180 s: the checks after one and two minutes find it.
    assert played(0, 0.5, policy=policy).starts == (NOW, NOW + 3 * MINUTE)


def test_a_start_has_a_least_bill() -> None:
    fast = replace(OFFER, priors=Priors(speed=600.0, setup_seconds=5.0, release_seconds=1.0))
    result = played(0, offer=fast)
    assert (result.billed_seconds, result.cost) == (60, Usd.parse("0.06"))


def test_what_does_not_fit_into_a_run_waits_for_the_next_check() -> None:
    policy = replace(AT_ONCE, max_runtime=200 * SECOND)
    result = played(0, 0, 0, policy=policy)
    assert result.starts == (NOW, NOW + HOUR, NOW + 2 * HOUR)


def test_the_threshold_and_the_longest_wait_start() -> None:
    policy = Policy(threshold=3, max_wait=5 * HOUR)
    assert played(0, 90, 100, policy=policy).starts == (NOW + 2 * HOUR,)
    assert played(0, 90, policy=policy).starts == (NOW + 4 * HOUR,)


def test_a_progress_report_counts_each_chunk_once() -> None:
    counted: list[int] = []
    replay(arrive(10, 20, 90), AT_ONCE, (OFFER,), report=counted.append)
    assert [count for count in counted if count] == [2, 1]


@pytest.mark.parametrize(
    ("at", "check"), [(NOW, NOW), (NOW + SECOND, NOW + HOUR), (NOW + 61 * MINUTE, NOW + 2 * HOUR)]
)
def test_checks_are_at_full_intervals(at: datetime, check: datetime) -> None:
    assert first_check(at, HOUR) == check


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(0, 3000), min_size=1, max_size=12).map(sorted),
    st.sampled_from(PolicyName),
    st.integers(1, 30),
    st.sampled_from([None, parse_hours("22:00-06:00"), parse_hours("mon-fri 13:00-14:30,17:00-18:00")]),
)
def test_a_replay_that_skips_checks_has_the_starts_of_one_that_makes_all(
    minutes: list[float], name: PolicyName, wait_hours: int, hours: Hours | None
) -> None:
    limit = wait_hours * HOUR
    policy = Policy(name=name, threshold=5, max_wait=limit, check_interval=10 * MINUTE, hours=hours)
    with pytest.MonkeyPatch.context() as patch:
        skipping = played(*minutes, policy=policy)
        patch.setattr(replays, "decide", decide_without_expectation)
        assert played(*minutes, policy=policy) == skipping


def decide_without_expectation(seen: Observation, policy: Policy) -> Decision:
    decision = decide(seen, policy)
    return replace(decision, expected=None) if isinstance(decision, Hold) else decision


def test_a_replay_keeps_the_hours_of_the_settings() -> None:
    policy = Policy(threshold=1, max_wait=19 * HOUR, hours=parse_hours("mon-fri 22:00-06:00 UTC"))
    assert played(1, policy=policy).starts == (NOW + 10 * HOUR,)
    # Below the threshold: the last check within the hours starts, since the next one would be too late.
    assert played(1, policy=replace(policy, threshold=2)).starts == (NOW + 17 * HOUR,)


def find(result: Simulation, name: PolicyName) -> int:
    return [each.name for each in result.policies].index(name)


def test_every_policy_is_compared_with_the_present_one() -> None:
    result = simulate(arrive(10, 20, 90), replace(AT_ONCE, threshold=3), [OFFER], "test")
    by_name = {each.name: each for each in result.policies}
    assert list(by_name) == list(PolicyName)
    now, threshold = by_name["now"], by_name["threshold"]
    assert (now.dollars, now.starts, now.late) == (0.42, 2, 0)
    assert (threshold.dollars, threshold.starts) == (0.3, 1)
    assert threshold.dollars_per_audio_hour == 0.6
    # One start of all three is the least bill.
    assert threshold.ratio == 1.0
    assert now.ratio == pytest.approx(1.4)
    assert result.present == "now"
    assert result.env["BATCH_MAX_WAIT_HOURS"] == "24"
    assert result.saved == pytest.approx(0.12)
    assert (result.chunks, result.audio_hours, result.origin) == (3, 0.5, "test")


def test_the_present_policy_stays_if_no_other_is_cheaper() -> None:
    result = simulate(arrive(10), AT_ONCE, [OFFER])
    assert result.env == {"BATCH_POLICY": "now", "BATCH_MAX_WAIT_HOURS": "24"}
    assert result.saved == 0.0


def test_waits_are_measured_by_chunk() -> None:
    result = simulate(arrive(*range(1, 21), audio=10.0), AT_ONCE, [OFFER])
    waits = result.policies[find(result, PolicyName.NOW)].wait_hours
    assert waits.max * 3600 == pytest.approx(59 * 60 + 101)
    assert waits.p95 * 3600 == pytest.approx(58 * 60 + 102)
    assert waits.mean * 3600 == pytest.approx(49.5 * 60 + 110.5)


def test_a_chunk_past_the_longest_wait_is_late_and_may_be_so_in_the_optimum() -> None:
    result = simulate(arrive(0.5, 10), replace(AT_ONCE, max_wait=HOUR), [OFFER])
    late = [each.late for each in result.policies]
    assert late == [1] * len(late)
    assert {each.ratio for each in result.policies} == {1.0}


def test_an_empty_trace_costs_nothing() -> None:
    result = simulate((), AT_ONCE, [OFFER])
    assert (result.chunks, result.since, result.saved) == (0, None, 0.0)
    for each in result.policies:
        assert (each.dollars, each.dollars_per_audio_hour, each.starts, each.late) == (0.0, None, 0, 0)
        assert (each.ratio, each.wait_hours.mean) == (1.0, 0.0)


def test_a_free_machine_has_ratios_by_its_time() -> None:
    free = replace(OFFER, rate=Rate(per_hour=Usd(0), source="this machine"))
    result = simulate(arrive(10, 20, 90), replace(AT_ONCE, threshold=3), [free])
    assert [each.dollars for each in result.policies] == [0.0] * len(result.policies)
    assert result.policies[find(result, PolicyName.NOW)].deadline_ratio == pytest.approx(1.4)


def sample(hours: float, pending: int) -> QueueSample:
    return QueueSample(
        at=NOW + hours * HOUR,
        pending=pending,
        triggering=pending,
        waiting=0,
        oldest=None,
        decision="below-threshold",
        sentence="",
    )


def test_the_ledger_shows_when_the_backlog_grew() -> None:
    first = run(id="a", created=NOW + 3 * HOUR, chunks_done=5, audio_seconds=70.0)
    second = run(id="b", created=NOW + 5 * HOUR, chunks_done=2, audio_seconds=0.0)
    nothing = run(id="c", created=NOW + 4 * HOUR)
    samples = (sample(1, 2), sample(2, 3), sample(4.5, 1))
    found = make_recorded_arrivals(samples, (first, nothing, second))
    hours = [(each.at - NOW) / HOUR for each in found]
    assert hours == [1, 1, 2, 3, 3, 4.5, 5]
    assert {each.audio_seconds for each in found} == {10.0}


def test_a_ledger_without_audio_shows_no_arrivals() -> None:
    assert make_recorded_arrivals((sample(1, 2),), (run(),)) == ()


LANE = Offer(
    provider="local",
    instance_type="cpu",
    market=Market.LANE,
    rate=FREE,
    priors=Priors(speed=2.0, setup_seconds=10.0, setup_p95_seconds=10.0, release_seconds=10.0),
)


def test_the_lane_takes_small_backlogs_and_leaves_large_ones_to_the_gpu() -> None:
    result = replay(arrive(10, 20, 90, 91, 92, *range(93, 110)), AT_ONCE, (OFFER,), LANE)
    assert result.starts == (NOW + 2 * HOUR,)
    assert result.waits[:2] == (50 * 60 + 310, 40 * 60 + 610)
    assert result.cost == Usd.parse("1.32")


def test_a_simulation_has_a_row_for_the_lane_and_one_for_the_choice() -> None:
    slow = replace(OFFER, instance_type="g4.slow", rate=Rate(per_hour=Usd.parse("1.8"), source="test"))
    policy = replace(AT_ONCE, choice=InstanceChoice.CHEAPEST)
    result = simulate(arrive(10, 20, 90), policy, [OFFER, slow], lane=LANE)
    kinds = [each.instance_type for each in result.offers]
    assert kinds == ["g6.xlarge", "g4.slow", "g6.xlarge + g4.slow", "g6.xlarge + g4.slow + cpu"]
    bills = [each.find_best("now").dollars for each in result.offers]
    assert bills[2] == bills[1] < bills[0]
    assert bills[3] == 0
    assert result.policies == result.offers[0].policies


def test_a_choice_of_types_is_compared_with_the_best_one_alone() -> None:
    cheap = replace(OFFER, instance_type="g4.cheap", rate=Rate(per_hour=Usd.parse("1.8"), source="test"))
    policy = replace(AT_ONCE, choice=InstanceChoice.CHEAPEST)
    result = simulate(arrive(10, 20, 90), policy, [OFFER, cheap])
    alone, chosen = result.offers[1], result.offers[2]
    for one, other in zip(alone.policies, chosen.policies, strict=True):
        assert (one.name, one.dollars) == (other.name, other.dollars)
        assert other.ratio == pytest.approx(one.ratio, abs=1e-4)
