"""Decisions for any observation, and the longest wait on generated arrivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import accumulate, cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from batchscribe.core.decide.hours import parse_hours
from batchscribe.core.decide.money import FREE, Usd
from batchscribe.core.decide.observation import InstanceChoice, Policy, PolicyName
from batchscribe.core.decide.offers import CPU, Market, Offer
from batchscribe.core.decide.packing import Priors, foresee
from batchscribe.core.decide.policy import Hold, Launch, decide
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import Backlog
from batchscribe.core.scan.chunks import Chunk
from support.values import NOW, OFFER, chunk, observation, run

MINUTE = timedelta(minutes=1)
BYTES = 1_000
"""For each audio second."""
SETUP, SLOW_SETUP = 150.0, 300.0
times = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.integers(-100_000, 100).map(lambda minutes: NOW + minutes * MINUTE),
)
chunks = st.lists(
    st.builds(
        chunk,
        number=st.integers(0, 10_000),
        size=st.one_of(st.integers(1, 10**7), st.just(5 * 10**12)),
        modified=times,
        previously_failed=st.booleans(),
    ),
    max_size=8,
)
policies = st.builds(
    Policy,
    name=st.sampled_from(PolicyName),
    threshold=st.integers(1, 8),
    max_wait=st.integers(1, 8760 * 60).map(lambda minutes: minutes * MINUTE),
    max_runtime=st.integers(1, 168 * 60).map(lambda minutes: minutes * MINUTE),
    check_interval=st.integers(1, 24 * 60).map(lambda minutes: minutes * MINUTE),
    hours=st.sampled_from([None, parse_hours("mon-fri 22:00-06:00 Europe/Berlin"), parse_hours("sat")]),
    choice=st.sampled_from(InstanceChoice),
    limit=st.one_of(st.none(), st.integers(1, 4)),
    manual=st.booleans(),
)


def backlog_of(found: list[Chunk], waiting: int = 0) -> Backlog:
    fresh = [each for each in found if not each.previously_failed]
    failed = [each for each in found if each.previously_failed]
    return Backlog(
        sessions=1,
        pending=len(found),
        pending_bytes=sum(each.size for each in found),
        troubled=len(failed),
        waiting=waiting,
        oldest=min((each.modified for each in fresh), default=None),
        oldest_retry=min((each.modified for each in failed), default=None),
        candidates=tuple(fresh + failed),
    )


LANE = Offer(
    provider="local",
    instance_type=CPU,
    market=Market.LANE,
    rate=FREE,
    priors=Priors(speed=4.0, setup_seconds=5.0, setup_p95_seconds=10.0, bytes_per_second={"wav": BYTES}),
)
GPU = replace(
    OFFER,
    priors=Priors(setup_seconds=SETUP, setup_p95_seconds=SLOW_SETUP, bytes_per_second={"wav": BYTES}),
)
AT_WORK = run(id="on-this-machine", provider="local", lane=True, created=NOW, deadline=NOW + 60 * MINUTE)


@given(
    found=chunks,
    policy=policies,
    waiting=st.integers(0, 1),
    last=st.one_of(st.none(), times),
    beside=st.sampled_from([{}, {"lane": LANE}, {"lane_run": AT_WORK}]),
)
def test_every_observation_has_one_decision(
    found: list[Chunk], policy: Policy, waiting: int, last: datetime | None, beside: dict[str, object]
) -> None:
    slower = replace(OFFER, instance_type="g9.slower", priors=Priors(speed=2.0))
    seen = observation(backlog_of(found, waiting), last_start=last, offers=(OFFER, slower), **beside)
    decision = decide(seen, policy)
    assert decision == decide(seen, policy)
    assert decision.reason.sentence
    if isinstance(decision, Launch):
        assert 1 <= len(decision.batch.chunks) <= len(found)
    elif isinstance(decision, Hold) and decision.expected:
        assert decision.expected > NOW


@given(found=chunks, policy=policies)
def test_a_hold_ends_at_its_expected_time_and_not_before(found: list[Chunk], policy: Policy) -> None:
    seen = observation(backlog_of([each for each in found if each.modified <= NOW]))
    decision = decide(seen, policy)
    if isinstance(decision, Hold) and decision.expected:
        assert isinstance(decide(replace(seen, now=decision.expected + MINUTE / 60), policy), Launch)
        for part in (0.02, 0.5, 0.98):
            before = NOW + (decision.expected - NOW) * part
            assert isinstance(decide(replace(seen, now=before), policy), Hold)


@given(found=chunks, more=st.integers(1, 10**7), runtime=st.floats(60, 10_000), limit=st.integers(1, 5))
def test_more_audio_never_costs_less(found: list[Chunk], more: int, runtime: float, limit: int) -> None:
    def dollars(chunks: list[Chunk]) -> Usd:
        backlog = backlog_of(chunks)
        return foresee(backlog, Priors(), OFFER.rate, runtime=runtime, pause=60.0, limit=limit)[0].cost

    assert dollars([*found, chunk(size=more)]) >= dollars(found)


arrivals = st.lists(
    st.tuples(st.integers(0, 3 * 24 * 60), st.integers(10, 3_600)), min_size=1, max_size=30
).map(sorted)


limited = st.builds(
    Policy,
    name=st.sampled_from([PolicyName.DEADLINE, PolicyName.BALANCED]),
    check_interval=st.sampled_from([1, 15, 60]).map(lambda minutes: minutes * MINUTE),
    max_runtime=st.sampled_from([20, 60, 120]).map(lambda minutes: minutes * MINUTE),
    max_wait=st.integers(12, 48).map(lambda hours: timedelta(hours=hours)),
    hours=st.sampled_from([None, parse_hours("22:00-06:00"), parse_hours("sat")]),
)


@settings(deadline=None)
@given(arrivals, limited, st.lists(st.floats(10.0, SLOW_SETUP), min_size=1, max_size=4))
def test_no_chunk_waits_too_long_if_the_starts_succeed(
    arrivals: list[tuple[int, int]], policy: Policy, setups: list[float]
) -> None:
    assert max(replay(arrivals, policy, setups)) <= policy.max_wait


def replay(arrivals: list[tuple[int, int]], policy: Policy, setups: list[float]) -> list[timedelta]:
    """Waits of all chunks. There is a check at each interval, unless a run is open."""
    offer, priors, coming = GPU, GPU.priors, make_coming(arrivals)
    waits: dict[str, timedelta] = {}
    now, last_start, starts = NOW, None, 0
    while len(waits) < len(coming):
        pending = [each for each in coming if each.modified <= now and each.key not in waits]
        seen = observation(backlog_of(pending), now=now, offers=(offer,), last_start=last_start)
        decision = decide(seen, policy)
        later = [each.modified for each in coming if each.modified > now]
        if isinstance(decision, Launch):
            last_start, done = now, now + timedelta(seconds=setups[starts % len(setups)])
            starts += 1
            for each in decision.batch.chunks:
                done += timedelta(seconds=each.size / BYTES / priors.speed)
                waits[each.key] = done - each.modified
            later = [done + timedelta(seconds=priors.release_seconds)]
        elif isinstance(decision, Hold) and decision.expected:
            later.append(decision.expected)
        # Nothing changes before the earliest of these times.
        now += max(1, -((now - min(later, default=now)) // policy.check_interval)) * policy.check_interval
    return list(waits.values())


@settings(deadline=None, max_examples=40)
@given(
    arrivals,
    limited.map(lambda policy: replace(policy, check_interval=60 * MINUTE)),
    st.one_of(st.just([0.0]), st.lists(st.sampled_from([0.0, 0.02, 0.5, 1.0, 2.0]), min_size=1, max_size=4)),
    st.one_of(st.just([0.7, 1.0]), st.lists(st.sampled_from([0.1, 0.7, 1.0]), min_size=1, max_size=4)),
)
def test_a_slow_or_dead_lane_delays_no_chunk_beyond_its_limit(
    arrivals: list[tuple[int, int]], policy: Policy, lanes: list[float], gaps: list[float]
) -> None:
    assert max(replay_with_lane(arrivals, policy, lanes, gaps)) <= policy.max_wait


def replay_with_lane(
    arrivals: list[tuple[int, int]], policy: Policy, lanes: list[float], gaps: list[float]
) -> list[timedelta]:
    """Waits of all chunks. Each run on the lane is as fast as a part of its estimate; 0 does nothing.

    The next check comes after a part of the longest interval.
    """
    player = LanePlayer(policy, cycle(lanes), make_coming(arrivals))
    now = NOW
    for gap in cycle(gaps):
        assert now < NOW + timedelta(days=10), "a chunk waits for ever"
        player.check(now)
        missing = [each.modified for each in player.coming if each.key not in player.done]
        if not missing:
            break
        now += gap * policy.check_interval
        now = now if player.lane_run else max(now, min(missing))
    return [player.done[each.key] - each.modified for each in player.coming]


def make_coming(arrivals: list[tuple[int, int]]) -> list[Chunk]:
    return [
        chunk(
            number, key=f"{number}.wav", session=f"{number}", modified=NOW + at * MINUTE, size=audio * BYTES
        )
        for number, (at, audio) in enumerate(arrivals)
    ]


@dataclass
class LanePlayer:
    """A scheduler with a lane, at its checks."""

    policy: Policy
    speeds: Iterator[float]
    """Of each run on the lane, as a part of its estimate."""
    coming: list[Chunk]
    done: dict[str, datetime] = field(default_factory=dict)
    lane_run: Run | None = None
    planned: dict[str, datetime] = field(default_factory=dict)
    """Times at which the open run on the lane finishes its chunks."""
    gpu_until: datetime = NOW

    def check(self, now: datetime) -> None:
        self._follow_lane(now)
        if now < self.gpu_until:
            return
        pending = [each for each in self.coming if each.modified <= now and each.key not in self.done]
        lane = None if self.lane_run else LANE
        seen = observation(
            backlog_of(pending), now=now, offers=(GPU,), lane=lane, lane_run=self.lane_run, last_start=None
        )
        decision = decide(seen, self.policy)
        if isinstance(decision, Launch):
            (self._start_lane if decision.lane else self._start_gpu)(now, decision.batch.chunks)

    def _follow_lane(self, now: datetime) -> None:
        if self.lane_run:
            until = min(now, self.lane_run.deadline)
            self.done |= {key: end for key, end in self.planned.items() if end <= until}
            self.planned = {key: end for key, end in self.planned.items() if end > until}
            if not self.planned or now >= self.lane_run.deadline:
                self.lane_run = None

    def _start_lane(self, now: datetime, chunks: Sequence[Chunk]) -> None:
        self.lane_run = replace(AT_WORK, created=now, deadline=now + self.policy.check_interval)
        speed = next(self.speeds) * LANE.priors.speed
        self.planned = finish(chunks, now, speed) if speed else {"nothing": self.lane_run.deadline + MINUTE}

    def _start_gpu(self, now: datetime, chunks: Sequence[Chunk]) -> None:
        self.lane_run = None
        ends = finish(chunks, now + timedelta(seconds=SLOW_SETUP), GPU.priors.speed)
        self.done |= ends
        self.gpu_until = max(ends.values()) + timedelta(seconds=GPU.priors.release_seconds)


def finish(chunks: Sequence[Chunk], begin: datetime, speed: float) -> dict[str, datetime]:
    """Ends of the chunks, one after the other, by key."""
    ends = accumulate(each.size / BYTES / speed for each in chunks)
    return {each.key: begin + timedelta(seconds=end) for each, end in zip(chunks, ends, strict=True)}
