"""The CPU lane: this machine's processor beside the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.no_guard import NOT_NEEDED, NoGuard
from batchscribe.controller.context import World
from batchscribe.controller.observe import find_lane_problem
from batchscribe.controller.tick import Ticked, tick, watch
from batchscribe.core import keys
from batchscribe.core.decide.money import FREE, ZERO, Usd
from batchscribe.core.decide.observation import Observation, Policy, PolicyName, ReasonCode
from batchscribe.core.decide.offers import CPU, Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Hold, Launch, Resume, decide
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.period import period_of
from batchscribe.core.run.runs import Run
from batchscribe.ledger import Ledger
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.launcher import FakeLauncher
from support.values import NOW, backlog, instance, observation, run
from support.world import INSTANCE, PlayedWorkers, Stage, stage

LANE = Offer(
    provider="local",
    instance_type=CPU,
    market=Market.LANE,
    rate=FREE,
    priors=Priors(speed=4.0, setup_seconds=5.0, setup_p95_seconds=10.0, release_seconds=15.0),
)
HOUR = timedelta(hours=1)


def seen(pending: int = 7, **changes: object) -> Observation:
    return observation(backlog(pending), **({"lane": LANE} | changes))


def test_the_lane_takes_a_backlog_that_it_can_finish_before_the_next_check() -> None:
    decision = decide(seen(), Policy())
    assert isinstance(decision, Launch)
    assert (decision.lane, decision.offer, len(decision.batch.chunks)) == (True, LANE, 7)
    assert decision.reason.code is ReasonCode.CPU_LANE
    assert decision.reason.sentence == (
        "7 chunks pending, 1.2 min of audio on this machine at $0.00, done in about 28 s; "
        "the GPU would cost $0.0312"
    )
    assert decision.reason.numbers["estimated_dollars"] == 0
    assert decision.reason.numbers["runner_up"] == "g4dn.xlarge"
    assert decision.reason.numbers["runner_up_dollars"] == 0.031195


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (Policy(check_interval=timedelta(seconds=25)), {}),
        (Policy(limit=6), {}),
        (Policy(manual=True), {}),
        (Policy(), {"lane": None}),
        (Policy(), {"paused_until": NOW + HOUR}),
        (Policy(max_wait=timedelta(hours=2)), {}),
    ],
)
def test_the_lane_takes_nothing_that_it_could_delay(policy: Policy, changes: dict[str, object]) -> None:
    decision = decide(observation(backlog(7), **({"lane": LANE} | changes)), policy)
    assert isinstance(decision, Hold) or not getattr(decision, "lane", False)


def test_the_gpu_starts_if_the_next_check_could_be_too_late_for_it() -> None:
    late = seen()
    policy = Policy(name=PolicyName.DEADLINE, max_wait=timedelta(hours=2, minutes=10))
    decision = decide(late, policy)
    assert isinstance(decision, Launch)
    assert (decision.lane, decision.reason.code) == (False, ReasonCode.LAST_SAFE_MOMENT)


def test_the_lane_works_if_the_gpu_cannot_start() -> None:
    spent = seen(spent_today=Usd.parse("5"))
    policy = Policy(max_wait=timedelta(hours=1), daily_budget=Usd.parse("5"))
    decision = decide(spent, policy)
    assert isinstance(decision, Launch)
    assert decision.lane


def test_the_lane_is_never_used_for_chunks_that_failed_before() -> None:
    found = backlog(3, oldest=None, oldest_retry=NOW - HOUR, troubled=3)
    assert isinstance(decide(observation(found, lane=LANE), Policy()), Hold)


def test_an_open_lane_continues_until_the_gpu_is_needed() -> None:
    at_work = run(provider="local", lane=True, created=NOW, deadline=NOW + HOUR)
    early = decide(seen(lane=None, lane_run=at_work), Policy())
    assert isinstance(early, Resume)
    late = decide(seen(lane=None, lane_run=at_work), Policy(max_wait=HOUR))
    assert isinstance(late, Launch)
    assert not late.lane
    assert late.reason.sentence.endswith(f"run {at_work.id} on this machine is ended")
    stuck = instance(InstanceState.RUNNING)
    assert isinstance(decide(seen(lane_run=at_work, instance=stuck), Policy(max_wait=HOUR)), Resume)


@dataclass
class LaneStage:
    """A stage with a lane."""

    at: Stage
    world: World
    workers: PlayedWorkers
    compute: FakeCompute
    problem: str = ""

    def tick(self, *, wait: bool = True, manual: bool = False) -> Ticked:
        config = replace(self.at.config, find_lane_problem=lambda: self.problem)
        if manual:
            config = replace(config, policy=replace(config.policy, manual=True))
        return tick(self.world, config, wait=wait)

    def watch(self, minutes: int) -> None:
        for _ in range(minutes):
            watch(self.world, self.at.config)
            self.at.clock.sleep(60)

    def runs(self) -> list[Run]:
        return list(self.at.ledger.runs(NOW - timedelta(days=9999)))


def lane_stage(folder: Path, policy: Policy | None = None) -> LaneStage:
    policy = policy or Policy(max_wait=timedelta(hours=10))
    at = stage(folder, policy=policy)
    compute = FakeCompute(at.clock, pending=timedelta(0), stopping=timedelta(0))
    compute.add("local", instance_type=CPU)
    capacity = ExistingInstances(
        compute=compute, provider="local", rate_of=lambda _type: FREE, own_type=CPU, market=Market.LANE
    )
    workers = PlayedWorkers(at.clock, at.store)
    launcher = FakeLauncher(on_launch=workers.launch, on_cancel=workers.cancel, on_kill=workers.kill)
    launcher.is_alive = workers.is_alive

    def elsewhere(world: World, run: Run) -> World:
        guard = NoGuard(NOT_NEEDED)
        if not run.lane:
            return world
        return replace(world, capacity=capacity, launcher=launcher, guard=guard, lag=timedelta(0))

    lane = replace(
        at.config,
        provider="local",
        instances=("local",),
        shared_machine=True,
        policy=replace(policy, max_runtime=policy.check_interval),
        priors=LANE.priors,
    )
    at.config = replace(at.config, lane=lane)
    return LaneStage(at, replace(at.world, elsewhere=elsewhere), workers, compute)


@pytest.fixture
def lane(tmp_path: Path) -> Iterator[LaneStage]:
    made = lane_stage(tmp_path)
    yield made
    made.at.ledger.close()


def test_a_lane_is_a_run_like_any_other(lane: LaneStage) -> None:
    names = lane.at.upload(3)
    lane.at.clock.sleep(600)
    (done,) = lane.tick().runs
    assert (done.outcome, done.chunks_done, done.lane) == (Outcome.COMPLETED, 3, True)
    assert (done.provider, done.instance, done.instance_type) == ("local", "local", CPU)
    assert (done.cost, done.billed_seconds, done.abandoned_gpu) == (ZERO, 0.0, False)
    assert lane.workers.published == names
    assert not lane.at.compute.calls or {call for call, _ in lane.at.compute.calls} == {"describe"}
    assert lane.at.store.get(keys.settlement(done.id)).data
    assert lane.at.guard.armed(INSTANCE) == frozenset()
    period = period_of([done], done.created, lane.at.clock.now())
    assert (period.totals.starts, period.gpu_share, period.usage.audio_per_gpu_second) == (0, 0.0, None)
    assert (period.runs[0].type, period.runs[0].cost, period.totals.audio_hours > 0) == (CPU, 0.0, True)


def test_a_slow_lane_ends_before_the_next_check_and_no_chunk_is_blamed(lane: LaneStage) -> None:
    lane.at.upload(9)
    lane.workers.seconds_each = 800.0
    lane.at.clock.sleep(600)
    lane.tick(wait=False)
    lane.watch(66)
    (slow,) = lane.runs()
    assert (slow.outcome, slow.chunks_done) == (Outcome.TIMED_OUT, 3)
    assert slow.settled
    assert slow.settled - slow.created <= timedelta(minutes=64)
    assert list(lane.at.store.list(keys.ATTEMPTS)) == []
    held = lane.tick().decision
    assert isinstance(held, Hold), "the lane is not used again for a day"
    assert find_lane_problem(lane.world, replace(lane.at.config, find_lane_problem=lambda: "")).startswith(
        f"its last run, {slow.id}, was timed-out"
    )
    lane.at.clock.sleep(9 * 3600)
    (gpu,) = lane.tick().runs
    assert (gpu.lane, gpu.outcome, gpu.chunks_done) == (False, Outcome.COMPLETED, 6)


def test_the_gpu_takes_over_from_a_lane_at_the_last_moment(lane: LaneStage) -> None:
    lane.at.upload(3)
    lane.workers.seconds_each, lane.workers.deaf = 10_000.0, True
    lane.at.clock.sleep(600)
    lane.tick(wait=False)
    lane.at.config = replace(lane.at.config, policy=replace(lane.at.config.policy, max_wait=HOUR))
    ticked = lane.tick()
    assert isinstance(ticked.decision, Launch)
    ended, gpu = lane.runs()
    assert (ended.outcome, ended.detail, ended.lane) == (Outcome.INTERRUPTED, "the GPU takes over", True)
    assert ended.chunks_done == 0, "the GPU did them before the worker ended"
    assert {share.run for share in lane.at.ledger.sessions(NOW)} == {gpu.id}
    assert (gpu.outcome, gpu.chunks_done, gpu.lane) == (Outcome.COMPLETED, 3, False)


def test_a_user_does_not_wait_for_the_lane(lane: LaneStage) -> None:
    lane.at.upload(2)
    lane.workers.seconds_each = 1_000.0
    lane.at.clock.sleep(600)
    lane.tick(wait=False)
    assert [each.lane for each in lane.tick(manual=True).runs] == [True, False]


def test_a_dead_lane_costs_no_chunk_an_attempt(lane: LaneStage) -> None:
    lane.at.upload(3)
    lane.workers.dies_after = 1
    lane.at.clock.sleep(600)
    (lost,) = lane.tick().runs
    assert (lost.outcome, lost.chunks_done) == (Outcome.WORKER_LOST, 1)
    assert list(lane.at.store.list(keys.ATTEMPTS)) == []


def test_a_lane_that_the_ledger_lost_is_recovered(lane: LaneStage, tmp_path: Path) -> None:
    lane.at.upload(3)
    lane.workers.seconds_each = 100.0
    lane.at.clock.sleep(600)
    lane.tick(wait=False)
    lane.watch(1)
    with Ledger(tmp_path / "another.sqlite") as fresh:
        lane.world = replace(lane.world, ledger=fresh)
        (done,) = lane.tick().runs
        assert (done.lane, done.outcome, done.chunks_done) == (True, Outcome.COMPLETED, 3)


def test_a_problem_of_the_lane_leaves_everything_as_without_it(lane: LaneStage) -> None:
    lane.at.upload(3)
    lane.at.clock.sleep(600)
    lane.problem = "no self-test"
    assert isinstance(lane.tick().decision, Hold)


def test_lanes_are_no_unproductive_starts(lane: LaneStage) -> None:
    lane.at.upload(1)
    lane.workers.seconds_each = 10_000.0
    for _ in range(3):
        lane.at.clock.sleep(25 * 3600)
        lane.at.config = replace(lane.at.config, policy=replace(lane.at.config.policy, max_wait=200 * HOUR))
        lane.tick()
    assert [each.outcome for each in lane.runs()] == [Outcome.WORKER_LOST] * 3
    seen_now = lane.tick().seen
    assert seen_now
    assert (seen_now.unproductive, seen_now.last_start) == (0, None)
