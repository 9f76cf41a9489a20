"""Offers of existing instances, and the ones that a run takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.controller.capacity import list_offers
from batchscribe.controller.external_state import record_external_state, retry_clean_up
from batchscribe.controller.recovery import recover
from batchscribe.controller.steps import open_run
from batchscribe.controller.tick import tick
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.decide.observation import IfRunning, InstanceChoice, Policy
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Launch, decide
from batchscribe.core.run.instances import RELEASED_TAGS, Claim, Instance, InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import RunState
from batchscribe.errors import MisconfiguredError, NoCapacityError
from batchscribe.ledger import Ledger
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute, Fault
from support.values import OFFER, backlog, instance, observation
from support.world import INSTANCE, Stage, once, stage

PRICES = {"g4dn.xlarge": "0.526", "g5.xlarge": "1.006", "g6.xlarge": "0.805"}


def price(instance_type: str) -> Rate:
    if instance_type not in PRICES:
        raise MisconfiguredError(f"the price of {instance_type} is unknown")
    return Rate(per_hour=Usd.parse(PRICES[instance_type]), source="test", as_of="2026-11-01")


def capacity(*types: str, own_type: str = "") -> ExistingInstances:
    compute = FakeCompute(FakeClock())
    return ExistingInstances(compute=compute, provider="ec2", rate_of=price, types=types, own_type=own_type)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, types=("g5.xlarge", "g6.xlarge"), rate_of=price)
    yield made
    made.ledger.close()


def test_offers_follow_the_order_of_the_settings_after_the_own_type() -> None:
    offers = capacity("g6.xlarge", "g4dn.xlarge", "g5.xlarge").offers(instance())
    assert [offer.instance_type for offer in offers] == ["g4dn.xlarge", "g6.xlarge", "g5.xlarge"]
    assert {(offer.provider, offer.market) for offer in offers} == {("ec2", Market.ON_DEMAND)}
    assert offers[1].rate == price("g6.xlarge")


def test_a_type_without_a_price_is_not_offered() -> None:
    offers = capacity("t9.unknown", "g5.xlarge").offers(instance())
    assert [offer.instance_type for offer in offers] == ["g4dn.xlarge", "g5.xlarge"]


def test_an_own_type_without_a_price_is_an_error() -> None:
    with pytest.raises(MisconfiguredError, match=r"t9\.unknown"):
        capacity("g5.xlarge").offers(instance(type="t9.unknown"))


def test_the_own_type_of_the_settings_is_used_if_no_poll_shows_one() -> None:
    missing = Instance(id="i-1", state=InstanceState.MISSING)
    assert capacity(own_type="g5.xlarge").offers(missing)[0].instance_type == "g5.xlarge"


def test_each_offer_has_the_measurements_of_its_type(at: Stage) -> None:
    at.ledger.learn(
        run="r1",
        engine="played",
        model="",
        instance_type="g5.xlarge",
        at=at.clock.now(),
        measured=Priors(speed=50.0, setup_seconds=90.0, release_seconds=30.0),
    )
    own, other, _last = list_offers(at.world, at.config, instance())
    assert (own.priors.speed, other.priors.speed, other.priors.setup_seconds) == (20.0, 50.0, 90.0)


def test_a_rehearsal_takes_the_first_offer_only(at: Stage) -> None:
    config = replace(at.config, first_offer_only=True)
    assert [offer.instance_type for offer in list_offers(at.world, config, instance())] == ["g4dn.xlarge"]


def test_a_start_takes_the_first_offer() -> None:
    other = replace(OFFER, instance_type="g5.xlarge", rate=FREE)
    decision = decide(observation(backlog(200), offers=(OFFER, other)), Policy())
    assert isinstance(decision, Launch)
    assert (decision.offer, decision.batch.estimate.rate) == (OFFER, OFFER.rate)


@pytest.mark.parametrize("second", [InstanceState.RUNNING, InstanceState.MISSING])
def test_an_instance_in_use_prevents_a_start_of_all(second: InstanceState) -> None:
    both = (instance(), instance(second, id="i-2"))
    decision = decide(observation(backlog(200), instances=both), Policy())
    assert not isinstance(decision, Launch)
    assert "i-2" in decision.reason.sentence


CHEAPEST = Policy(choice=InstanceChoice.CHEAPEST)


def offer(instance_type: str, dollars: str, speed: float = 20.0) -> Offer:
    rate = Rate(per_hour=Usd.parse(dollars), source="test")
    return replace(OFFER, instance_type=instance_type, rate=rate, priors=Priors(speed=speed))


def test_the_cheapest_offer_for_the_backlog_is_taken_and_the_runner_up_named() -> None:
    # 1,000 chunks of 10 s: 500 s of work at 20x, 125 s at 80x; 210 s besides
    offers = (offer("g4dn.xlarge", "0.526"), offer("g5.xlarge", "1.006", speed=80.0))
    decision = decide(observation(backlog(1000), offers=offers), CHEAPEST)
    assert isinstance(decision, Launch)
    assert decision.offer.instance_type == "g5.xlarge"
    assert decision.batch.estimate.rate == offers[1].rate
    assert decision.reason.sentence == (
        "1000 chunks pending, threshold 100 reached; g5.xlarge is the cheapest, at about $0.0936; next is "
        "g4dn.xlarge, $0.0101 more"
    )
    numbers = decision.reason.numbers
    assert (numbers["instance_type"], numbers["runner_up"]) == ("g5.xlarge", "g4dn.xlarge")
    # With fewer chunks, set-up dominates, and the lower rate wins.
    few = decide(observation(backlog(100), offers=offers), CHEAPEST)
    assert isinstance(few, Launch)
    assert few.offer.instance_type == "g4dn.xlarge"
    assert "g5.xlarge, $0.0242 more" in few.reason.sentence


def test_an_offer_that_would_be_late_is_passed_over() -> None:
    offers = (offer("slow", "0.10", speed=1.0), offer("fast", "9.00", speed=100.0))
    # 10,000 s of audio take 2.8 h with the slow one; the oldest chunk may wait for two more
    seen = observation(backlog(1000, hours_old=22.0), offers=offers)
    decision = decide(seen, replace(CHEAPEST, max_runtime=timedelta(hours=4)))
    assert isinstance(decision, Launch)
    assert decision.offer.instance_type == "fast"
    assert "fast is the cheapest that keeps the longest wait" in decision.reason.sentence
    assert "next is slow, $0.49 less" in decision.reason.sentence
    late = decide(replace(seen, now=seen.now + timedelta(hours=2)), CHEAPEST)
    assert isinstance(late, Launch)
    assert "fast is the fastest, and no type keeps the longest wait" in late.reason.sentence


def test_a_borrowed_instance_keeps_its_type() -> None:
    offers = (offer("g5.xlarge", "1.006"), offer("g4dn.xlarge", "0.526"))
    up = instance(InstanceState.RUNNING, type="g5.xlarge")
    decision = decide(
        observation(backlog(100), instance=up, offers=offers), replace(CHEAPEST, if_running=IfRunning.USE)
    )
    assert isinstance(decision, Launch)
    assert decision.offer.instance_type == "g5.xlarge"


def learn_speed(at: Stage, instance_type: str, speed: float) -> None:
    at.ledger.learn(
        run=instance_type,
        engine="played",
        model="",
        instance_type=instance_type,
        at=at.clock.now(),
        measured=Priors(speed=speed),
    )


def test_the_chosen_type_runs_and_the_own_one_comes_back(at: Stage) -> None:
    learn_speed(at, "g6.xlarge", 900.0)
    at.upload(200, size=400_000)
    at.clock.sleep(600)
    (run,) = tick(at.world, replace(at.config, policy=CHEAPEST)).runs
    assert run.outcome is Outcome.COMPLETED
    assert (run.instance_type, run.rate, run.tried_types) == ("g6.xlarge", price("g6.xlarge"), ())
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"


def test_a_run_restores_the_own_type_although_it_found_another_one(at: Stage) -> None:
    """An earlier run's type is still in force, and it is the cheapest: the decision changes nothing."""
    learn_speed(at, "g6.xlarge", 900.0)
    at.upload(200, size=400_000)
    at.clock.sleep(600)
    tick(at.world, replace(at.config, policy=CHEAPEST))
    at.compute.change_type(INSTANCE, "g6.xlarge")
    (found,) = at.ledger.runs(at.clock.now() - timedelta(hours=3))
    present = at.compute.describe(INSTANCE)
    decision = decide(observation(backlog(2000), instance=present), CHEAPEST)
    assert isinstance(decision, Launch)
    offer = replace(decision.offer, instance_type="g6.xlarge")
    run = open_run(at.world, at.config, replace(decision, offer=offer), (present,))
    assert (run.own_type, run.wanted_type, run.retyped) == (found.own_type, "", True)


def test_the_own_type_comes_back_once_another_schedulers_run_is_over(at: Stage) -> None:
    learn_speed(at, "g6.xlarge", 900.0)
    at.upload(200, size=400_000)
    at.clock.sleep(600)
    (run,) = tick(at.world, replace(at.config, policy=CHEAPEST)).runs
    at.compute.change_type(INSTANCE, "g6.xlarge")
    theirs = Claim(instance=INSTANCE, run="theirs", deadline=at.clock.now() + timedelta(hours=1))
    at.compute.tag(INSTANCE, theirs.tags)
    record_external_state(at.world, run)
    retry_clean_up(at.world, at.config)
    assert at.compute.describe(INSTANCE).type == "g6.xlarge"
    at.compute.tag(INSTANCE, RELEASED_TAGS)
    retry_clean_up(at.world, at.config)
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"


def test_without_capacity_for_the_chosen_type_the_own_one_follows(at: Stage) -> None:
    learn_speed(at, "g6.xlarge", 900.0)
    at.compute.fail("start", Fault(NoCapacityError("no capacity for g6.xlarge")))
    at.upload(200, size=400_000)
    at.clock.sleep(600)
    (run,) = tick(at.world, replace(at.config, policy=CHEAPEST)).runs
    assert run.outcome is Outcome.COMPLETED
    assert (run.instance_type, run.tried_types) == ("g4dn.xlarge", ("g6.xlarge",))
    assert at.compute.describe(INSTANCE).type == "g4dn.xlarge"


def test_a_lost_ledger_bills_the_type_that_ran_and_not_the_first_choice(at: Stage, tmp_path: Path) -> None:
    learn_speed(at, "g6.xlarge", 900.0)
    at.compute.fail("start", Fault(NoCapacityError("no capacity for g6.xlarge")))
    at.upload(200, size=400_000)
    at.clock.sleep(600)
    config = replace(at.config, policy=CHEAPEST)
    while not (runs := once(replace(at, config=config)).runs) or runs[0].state is not RunState.TRANSCRIBING:
        at.clock.sleep(20)
    assert (runs[0].rate, runs[0].tried_types) == (price("g4dn.xlarge"), ("g6.xlarge",))
    at.compute.stop(INSTANCE)
    at.clock.sleep(60)
    with closing(Ledger(tmp_path / "another.sqlite")) as fresh:
        recover(replace(at.world, ledger=fresh), config)
        (recovered,) = fresh.open_runs()
    assert recovered.billed_seconds > 0
    assert (recovered.instance_type, recovered.rate) == ("g4dn.xlarge", price("g4dn.xlarge"))
