"""The sum of a start, as far as no command shows it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from batchscribe.core.decide.hours import parse_hours
from batchscribe.core.decide.observation import IfRunning, Policy
from batchscribe.core.decide.policy import FOREVER
from batchscribe.core.decide.start_sum import sum_up_start
from batchscribe.core.run.instances import InstanceState
from support.values import NOW, backlog, instance, observation, run

HOUR = timedelta(hours=1)


def test_the_sum_of_a_batch_that_a_hosted_service_would_not_undercut() -> None:
    total = sum_up_start(observation(backlog(360, hours_old=2.0)), Policy())
    assert (total.chunks, total.audio_minutes, total.runs, total.oldest_wait_hours) == (360, 60.0, 1, 2.0)
    # 150 s of set-up, 180 s of work and 60 s to stop
    assert total.dollars == total.dollars_per_audio_hour == pytest.approx(0.526 * 390 / 3600, abs=1e-6)
    assert total.setup_dollars == pytest.approx(0.526 * 210 / 3600, abs=1e-6)
    assert total.setup_share == pytest.approx(210 / 390, abs=1e-4)
    assert total.hosted is not None
    assert (total.hosted.hosted, total.hosted_is_cheaper) == (0.36, False)
    assert total.expected_start == NOW


def test_all_obstacles_are_listed_by_precedence() -> None:
    seen = observation(
        backlog(1),
        instance=instance(InstanceState.RUNNING),
        paused_until=NOW + HOUR,
        open_run=run(start_requested=NOW),
    )
    policy = Policy(hours=parse_hours("22:00-23:00"), if_running=IfRunning.HOLD)
    codes = [obstacle.code for obstacle in sum_up_start(seen, policy).obstacles]
    assert codes == ["open-run", "paused", "gpu-in-use", "outside-hours"]


@pytest.mark.parametrize(("until", "starts"), [(NOW + HOUR, NOW + HOUR), (FOREVER, None)])
def test_a_pause_moves_the_expected_start(until: datetime, starts: datetime | None) -> None:
    seen = replace(observation(backlog(100)), paused_until=until)
    assert sum_up_start(seen, Policy()).expected_start == starts


def test_nothing_that_may_start_has_no_expected_start() -> None:
    exhausted = backlog(1, troubled=1, oldest=None, exhausted=1)
    assert sum_up_start(observation(exhausted), Policy()).expected_start is None
