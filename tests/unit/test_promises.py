"""The printed bounds follow from the constants that keep them."""

from __future__ import annotations

import math

from batchscribe.adapters.machine.schedule import WATCH_EVERY
from batchscribe.controller.context import Waits
from batchscribe.core.run.host import HostWaits
from batchscribe.core.run.instances import GUARD_EVERY, GUARD_FIRST, GUARD_LAST
from batchscribe.core.run.promises import (
    AFTER_DEADLINE,
    PASS_SECONDS,
    POWER_OFF_SECONDS,
    STALLED,
    list_promises,
)


def test_every_bound_is_printed_with_the_minutes_of_its_constants() -> None:
    usual, host, last = (each.sentence for each in list_promises(guarded=True, boots=True))
    waits = HostWaits()
    assert f"within {2 * PASS_SECONDS / 60:.0f} min" in usual
    assert f"within {math.ceil((waits.linger + POWER_OFF_SECONDS) / 60)} min after its work" in host
    assert f"ended within {math.ceil((waits.silence + waits.grace) / 60)} min" in host
    assert f"deadline + {(GUARD_FIRST + 2 * GUARD_EVERY).total_seconds() / 60:.0f} min" in last


def test_the_guard_goes_on_until_after_the_bound() -> None:
    assert GUARD_LAST >= AFTER_DEADLINE


def test_the_minute_timer_is_as_fast_as_the_bound_takes_it_for() -> None:
    assert WATCH_EVERY.minutes * 60 == PASS_SECONDS


def test_the_controller_ends_stalled_work_when_the_host_should_have_done_so() -> None:
    assert Waits().silence == STALLED.total_seconds()
