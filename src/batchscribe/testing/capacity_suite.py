"""Pytest suite for capacities; our own providers pass it.

    @pytest.fixture
    def case():
        return CapacityCase(capacity=..., instance="machine-1", missing="machine-2", sleep=time.sleep)

    class TestMine(CapacitySuite):
        pass

Each test gets a stopped machine without a claim. `CreatedCapacitySuite` is for providers whose runs create
machines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from batchscribe.core.decide.offers import Offer
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG, RUN_TAG, Claim, Instance, InstanceState
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Capacity
from batchscribe.testing.expected_errors import expect_error

DEADLINE = datetime(2030, 1, 1, 14, tzinfo=UTC)
POLLS = 30
POLL_SECONDS = 5.0
SETTLES = 60.0
"""Seconds until polls show a change of tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityCase:
    """A capacity under test."""

    capacity: Capacity
    instance: str
    """A stopped machine."""
    missing: str
    """Id of a machine that does not exist."""
    sleep: Callable[[float], None]
    """Lets the provider's time pass."""
    has_tags: bool = True
    """False if its machines cannot read the hash of a manifest."""

    def claim(self, run: str = "run-1") -> Claim:
        return Claim(instance=self.instance, run=run, deadline=DEADLINE)

    def poll(self, instance: str = "") -> Instance:
        (seen,) = self.capacity.poll((instance or self.instance,))
        return seen

    def await_state(self, state: InstanceState) -> Instance:
        return self.await_any(lambda shown: shown is state, state)

    def await_any(self, reached: Callable[[InstanceState], bool], expected: str) -> Instance:
        """Returns the machine once a poll shows such a state."""
        seen = self.poll()
        for _ in range(POLLS):
            if reached(seen.state):
                return seen
            self.sleep(POLL_SECONDS)
            seen = self.poll()
        raise AssertionError(f"never {expected}: it is {seen.state}")

    def acquire(self, claim: Claim | None = None, offer: Offer | None = None) -> Instance:
        """Repeats the request until it is accepted, and returns the running machine."""
        for _ in range(POLLS):
            seen = self.poll()
            wanted = offer or self.capacity.offers(seen)[0]
            if self.capacity.acquire(claim or self.claim(), wanted, seen):
                return self.await_state(InstanceState.RUNNING)
            self.sleep(POLL_SECONDS)
        raise AssertionError("no start was accepted")

    def stop(self) -> Instance:
        self.capacity.teardown(self.instance)
        return self.await_state(InstanceState.STOPPED)


class CapacitySuite:
    """Tests for a subclass to inherit; its fixture `case` is a `CapacityCase`."""

    def test_each_machine_is_polled_in_the_given_order(self, case: CapacityCase) -> None:
        found = case.capacity.poll((case.missing, case.instance))
        assert [seen.id for seen in found] == [case.missing, case.instance]
        assert [seen.state for seen in found] == [InstanceState.MISSING, InstanceState.STOPPED]

    def test_a_stopped_machine_has_neither_claim_nor_address(self, case: CapacityCase) -> None:
        seen = case.poll()
        assert (seen.run, seen.public_address) == (None, None)

    def test_the_first_offer_is_the_machine_as_it_is(self, case: CapacityCase) -> None:
        seen = case.poll()
        offers = case.capacity.offers(seen)
        assert offers[0].instance_type == seen.type
        assert len({offer.instance_type for offer in offers}) == len(offers)
        assert all(offer.provider and offer.rate.source for offer in offers)

    def test_an_acquired_machine_runs_under_its_claim(self, case: CapacityCase) -> None:
        seen = case.acquire()
        assert (seen.run, seen.deadline) == ("run-1", DEADLINE)
        assert seen.public_address
        assert seen.launched_at is not None
        assert seen.launched_at.utcoffset() == timedelta(0)

    def test_a_repeated_request_does_not_start_it_again(self, case: CapacityCase) -> None:
        offer = case.capacity.offers(case.poll())[0]
        for _ in range(2):
            case.capacity.acquire(case.claim(), offer, case.poll())
        launched = case.await_state(InstanceState.RUNNING).launched_at
        case.capacity.acquire(case.claim(), offer, case.poll())
        assert case.await_state(InstanceState.RUNNING).launched_at == launched

    def test_a_stop_is_observed_and_can_be_repeated(self, case: CapacityCase) -> None:
        case.acquire()
        case.capacity.teardown(case.instance)
        seen = case.stop()
        assert seen.public_address is None
        case.capacity.teardown(case.instance, force=True)
        assert case.poll().state.proved_stopped

    def test_a_released_machine_has_no_claim(self, case: CapacityCase) -> None:
        case.acquire()
        case.stop()
        case.capacity.release(case.instance)
        seen = case.poll()
        assert (seen.run, seen.deadline) == (None, None)

    def test_a_released_machine_can_keep_running(self, case: CapacityCase) -> None:
        case.acquire()
        case.capacity.release(case.instance)
        assert case.await_state(InstanceState.RUNNING).run is None

    def test_the_next_claim_replaces_the_last_one(self, case: CapacityCase) -> None:
        case.acquire()
        assert case.acquire(case.claim("run-2")).tags[RUN_TAG] == "run-2"

    def test_another_manifest_is_announced_beside_the_claim(self, case: CapacityCase) -> None:
        if not case.has_tags:
            return
        assert case.acquire(replace(case.claim(), manifest="a" * 64)).tags[MANIFEST_TAG] == "a" * 64
        case.capacity.announce(case.instance, "b" * 64)
        case.sleep(SETTLES)
        seen = case.poll()
        assert (seen.tags[MANIFEST_TAG], seen.run) == ("b" * 64, "run-1")
        case.capacity.release(case.instance)
        case.sleep(SETTLES)
        assert case.poll().tags[MANIFEST_TAG] == ""

    def test_another_offer_changes_the_type_until_it_is_restored(self, case: CapacityCase) -> None:
        own = case.poll().type
        for offer in case.capacity.offers(case.poll())[1:]:
            assert not case.capacity.acquire(case.claim(), offer, case.poll()), "one request at a time"
            case.sleep(SETTLES)
            assert case.poll().run == "run-1", "claimed before its type changes"
            assert case.acquire(offer=offer).type == offer.instance_type
            case.stop()
            for _ in range(2):
                case.capacity.restore(case.instance, own)
            assert case.poll().type == own

    def test_a_machine_that_does_not_exist_cannot_be_acquired(self, case: CapacityCase) -> None:
        offer = case.capacity.offers(case.poll())[0]
        missing = replace(case.poll(case.missing), type=offer.instance_type)
        with expect_error(MisconfiguredError):
            case.capacity.acquire(replace(case.claim(), instance=case.missing), offer, missing)

    def test_the_end_of_a_machine_that_does_not_exist_is_no_error(self, case: CapacityCase) -> None:
        case.capacity.teardown(case.missing)
        case.capacity.release(case.missing)
        assert case.poll(case.missing).state is InstanceState.MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedCapacityCase(CapacityCase):
    """A capacity that creates machines; `instance` and `missing` name none yet."""

    run: str = "run-1"

    def acquire(self, claim: Claim | None = None, offer: Offer | None = None) -> Instance:
        """Creates the machine, and returns it running."""
        claim = claim or self.claim(self.run)
        (seen,) = self.capacity.poll((claim.instance,))
        assert self.capacity.acquire(claim, offer or self.capacity.offers(seen)[0], seen)
        return replace(self, instance=claim.instance).await_state(InstanceState.RUNNING)

    def await_down(self) -> Instance:
        """Returns the machine once it is observed ended."""
        return self.await_any(lambda state: state.proved_stopped, "ended")

    def list_created(self) -> list[str]:
        """Names of the case's machines that exist."""
        names = {self.instance, self.missing}
        return sorted(seen.id for seen in self.capacity.list_created() if seen.id in names)


class CreatedCapacitySuite:
    """Tests for a subclass to inherit; its fixture `case` is a `CreatedCapacityCase`.

    Each test gets two names that were never used.
    """

    def test_a_name_without_a_machine_is_stopped(self, case: CreatedCapacityCase) -> None:
        found = case.capacity.poll((case.missing, case.instance))
        assert [seen.id for seen in found] == [case.missing, case.instance]
        assert {(seen.state, seen.run, seen.type) for seen in found} == {(InstanceState.STOPPED, None, "")}

    def test_each_offer_has_a_name_of_its_own(self, case: CreatedCapacityCase) -> None:
        offers = case.capacity.offers(case.poll())
        assert len({offer.name for offer in offers}) == len(offers)
        assert all(offer.provider and offer.rate.source for offer in offers)

    def test_a_created_machine_runs_under_its_claim(self, case: CreatedCapacityCase) -> None:
        offer = case.capacity.offers(case.poll())[0]
        seen = case.acquire(offer=offer)
        assert (seen.id, seen.run, seen.deadline) == (case.instance, case.run, DEADLINE)
        assert seen.tags[MACHINE_TAG] == case.instance
        assert (seen.type, seen.market) == (offer.instance_type, offer.market)
        assert seen.launched_at is not None
        assert seen.launched_at.utcoffset() == timedelta(0)

    def test_every_offer_can_be_acquired(self, case: CreatedCapacityCase) -> None:
        for number, offer in enumerate(case.capacity.offers(case.poll())):
            claim = replace(case.claim(case.run), instance=f"{case.instance}{number}")
            seen = case.acquire(claim, offer)
            assert (seen.type, seen.market, seen.region) == (offer.instance_type, offer.market, offer.region)
            case.capacity.teardown(claim.instance)

    def test_the_first_offer_is_the_machine_as_it_is(self, case: CreatedCapacityCase) -> None:
        last = case.capacity.offers(case.poll())[-1]
        offers = case.capacity.offers(case.acquire(offer=last))
        assert offers[0].name == last.name
        assert len({offer.name for offer in offers}) == len(offers)

    def test_a_repeated_request_creates_no_second_machine(self, case: CreatedCapacityCase) -> None:
        offer = case.capacity.offers(case.poll())[0]
        launched = case.acquire(offer=offer).launched_at
        assert case.capacity.acquire(case.claim(case.run), offer, case.poll())
        assert case.await_state(InstanceState.RUNNING).launched_at == launched
        case.capacity.teardown(case.instance)
        case.await_down()
        assert case.list_created() == []

    def test_an_end_is_observed_and_can_be_repeated(self, case: CreatedCapacityCase) -> None:
        case.acquire()
        for force in (False, False, True):
            case.capacity.teardown(case.instance, force=force)
            case.await_down()
        case.capacity.release(case.instance)
        case.capacity.restore(case.instance, "x1.never")
        assert case.poll().state.proved_stopped

    def test_the_end_of_a_machine_that_was_never_created_is_no_error(self, case: CreatedCapacityCase) -> None:
        case.capacity.teardown(case.missing)
        case.capacity.release(case.missing)
        assert case.poll(case.missing).state is InstanceState.STOPPED

    def test_the_end_of_one_machine_leaves_the_others(self, case: CreatedCapacityCase) -> None:
        case.acquire()
        case.acquire(replace(case.claim(case.run), instance=case.missing))
        assert case.list_created() == sorted((case.instance, case.missing))
        case.capacity.teardown(case.instance)
        case.await_down()
        assert case.list_created() == [case.missing]
        assert case.poll(case.missing).state is InstanceState.RUNNING
        case.capacity.teardown(case.missing)

    def test_another_manifest_is_announced_beside_the_claim(self, case: CreatedCapacityCase) -> None:
        claim = replace(case.claim(case.run), manifest="a" * 64)
        assert case.acquire(claim).tags[MANIFEST_TAG] == "a" * 64
        case.capacity.announce(case.instance, "b" * 64)
        case.sleep(SETTLES)
        seen = case.poll()
        assert (seen.tags[MANIFEST_TAG], seen.run) == ("b" * 64, case.run)
