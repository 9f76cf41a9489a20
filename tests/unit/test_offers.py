"""Offers of existing instances, and the ones that a run takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.controller.capacity import list_offers
from batchscribe.core.decide.money import FREE, Rate, Usd
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.offers import Market
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Launch, decide
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import MisconfiguredError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from support.values import OFFER, backlog, instance, observation
from support.world import Stage, stage

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
    own, other, _last = list_offers(at.world, at.terms, instance())
    assert (own.priors.speed, other.priors.speed, other.priors.setup_seconds) == (20.0, 50.0, 90.0)


def test_a_rehearsal_takes_the_first_offer_only(at: Stage) -> None:
    terms = replace(at.terms, first_offer_only=True)
    assert [offer.instance_type for offer in list_offers(at.world, terms, instance())] == ["g4dn.xlarge"]


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
