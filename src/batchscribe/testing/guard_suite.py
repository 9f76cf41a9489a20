"""Pytest suite for guards; our own guard and the double pass it.

    @pytest.fixture
    def guard():
        return MyGuard()

    class TestMyGuard(GuardSuite):
        pass

It arms orders for instances that do not exist, with a deadline that is never reached, and disarms them.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from batchscribe.core.run.instances import Claim
from batchscribe.protocols import Guard

_numbers = itertools.count(1)


class GuardSuite:
    """Tests to inherit; the fixture `guard` can be armed."""

    deadline = datetime(2030, 1, 1, 14, 0, 0, 123456, tzinfo=UTC)

    def new_claim(self) -> Claim:
        """Claim of an instance without orders."""
        return Claim(
            instance=f"i-{next(_numbers):017x}", run="20300101-120000-abcdef", deadline=self.deadline
        )

    def test_an_order_is_armed_until_it_is_disarmed(self, guard: Guard) -> None:
        first = self.new_claim()
        second = replace(first, run="20300101-130000-abcdef")
        assert guard.armed(first.instance) == frozenset()
        guard.arm(first)
        guard.arm(second)
        assert guard.armed(first.instance) == {first.run, second.run}
        guard.disarm(first.instance, first.run)
        assert guard.armed(first.instance) == {second.run}
        guard.disarm(first.instance, second.run)
        assert guard.armed(first.instance) == frozenset()

    def test_arm_and_disarm_can_be_repeated(self, guard: Guard) -> None:
        claim = self.new_claim()
        for _ in range(2):
            guard.arm(claim)
            assert guard.armed(claim.instance) == {claim.run}
        for _ in range(2):
            guard.disarm(claim.instance, claim.run)
            assert guard.armed(claim.instance) == frozenset()

    def test_another_deadline_replaces_the_order(self, guard: Guard) -> None:
        claim = self.new_claim()
        guard.arm(claim)
        guard.arm(replace(claim, deadline=self.deadline + timedelta(hours=1)))
        assert guard.armed(claim.instance) == {claim.run}
        guard.disarm(claim.instance, claim.run)
        assert guard.armed(claim.instance) == frozenset()

    def test_an_order_belongs_to_one_instance(self, guard: Guard) -> None:
        claim = self.new_claim()
        guard.arm(claim)
        assert guard.armed(claim.instance[:-1]) == frozenset()
        assert guard.armed(self.new_claim().instance) == frozenset()
        guard.disarm(claim.instance, claim.run)

    def test_a_machine_that_its_run_creates_is_guarded_before_it_exists(self, guard: Guard) -> None:
        run = "20300101-120000-abcdef"
        first, other = (replace(self.new_claim(), instance=f"{run}-{number}", run=run) for number in (1, 11))
        guard.arm(first)
        assert guard.armed(first.instance) == {run}
        assert guard.armed(other.instance) == frozenset()
        guard.disarm(first.instance, run)
        assert guard.armed(first.instance) == frozenset()

    def test_the_description_is_one_line(self, guard: Guard) -> None:
        assert guard.description
        assert "\n" not in guard.description
