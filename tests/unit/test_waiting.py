"""Waits of a run: what is shown, what is recorded, and when a wait ends early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import structlog

from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.policy import Hold, Launch
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    HostTimeoutError,
    LaunchError,
    MisconfiguredError,
    PortClosedError,
    UnreadableError,
)
from batchscribe.testing.compute import Fault
from support.world import INSTANCE, Stage

SILENT = HostTimeoutError("ssh to 1.2.3.4:22: connection timed out")
REFUSED = PortClosedError("ssh to 1.2.3.4:22: connection refused")


@pytest.fixture
def at(at: Stage) -> Stage:
    at.upload(120)
    at.clock.sleep(600)
    return at


def test_a_host_that_refuses_connections_is_not_awaited_for_long(at: Stage) -> None:
    # The network answers before the ssh server, which is restarted once.
    at.launcher.fail("probe", *[SILENT] * 20, *[REFUSED] * 15, SILENT, *[REFUSED] * 1000)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.LAUNCH_FAILED
    assert run.detail.endswith(f"{REFUSED}: {PortClosedError.fix}")
    polls = 20 + 15 + 1 + at.config.waits.refused / at.config.waits.poll
    assert run.billed_seconds == pytest.approx(polls * at.config.waits.poll, abs=60)
    assert at.compute.describe(INSTANCE).state is InstanceState.STOPPED


def test_a_host_that_does_not_answer_gets_the_whole_time(at: Stage) -> None:
    at.launcher.fail("probe", *[SILENT] * 1000)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.LAUNCH_FAILED
    assert run.billed_seconds == pytest.approx(at.config.waits.reach, abs=60)
    assert run.detail.endswith(f"{SILENT}: check its security group")


def test_refusals_before_the_first_worker_do_not_count_for_the_second(at: Stage) -> None:
    at.upload(30, session="more")
    at.clock.sleep(600)
    at.worker.seconds_each = 6
    at.launcher.fail("probe", *[REFUSED] * 3)
    at.clock.at(60, lambda: at.upload(40, session="later"))
    at.clock.at(700, lambda: at.launcher.fail("probe", *[REFUSED] * 3))
    (run,) = tick(at.world, at.config).runs
    assert (run.outcome, run.chunks_done, len(run.workers)) == (Outcome.COMPLETED, 190, 2)


def test_each_wait_is_shown_with_its_cause_and_its_limit(at: Stage) -> None:
    at.compute.fail("start", Fault(ComputeUnavailableError("throttled")))
    at.launcher.fail("probe", *[SILENT] * 3)
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert f"starting {INSTANCE} (g4dn.xlarge): throttled, 0:00 of 10:00" in at.notes.waits
    assert f"starting {INSTANCE} (g4dn.xlarge), 0:05 of 10:00" in at.notes.waits
    assert f"{SILENT}, 0:10 of 10:00" in at.notes.waits
    assert f"stopping {INSTANCE}, 0:05" in at.notes.waits
    assert not run.trouble


def test_a_cause_that_stays_is_recorded_and_logged_once(at: Stage) -> None:
    at.compute.fail("describe", *[None] * 3, *[Fault(ComputeUnavailableError("throttled"))] * 5)
    at.launcher.fail("probe", *[SILENT] * 60)
    saved: list[str] = []
    save = at.ledger.save_run

    def count(run: Run, **rest: Any) -> None:
        saved.append(run.trouble)
        save(run, **rest)

    at.ledger.save_run = count  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logged:
        (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.COMPLETED
    assert len([line for line in logged if line.get("error") == "throttled"]) == 1
    due = 60 * at.config.waits.poll / at.config.waits.describe
    assert 1 <= saved.count(str(SILENT)) <= due + 1, "once, and with each poll of the instance"


def again(at: Stage, **changes: Any) -> type[object]:
    """Kind of the decision of a tick an hour later."""
    at.clock.sleep(3600)
    return type(tick(at.world, replace(at.config, **changes)).decision)


@pytest.mark.parametrize(
    "causes", [[REFUSED] * 1000, [MisconfiguredError("the host key differs from the pinned one")] * 1000]
)
def test_a_start_that_would_fail_again_waits_for_a_change(at: Stage, causes: list[BatchscribeError]) -> None:
    at.launcher.fail("probe", *causes)
    at.config = replace(at.config, access="before")
    (run,) = tick(at.world, at.config).runs
    assert run.outcome is Outcome.LAUNCH_FAILED
    assert again(at) is Hold
    assert str(causes[0]) in tick(at.world, at.config).decision.reason.sentence
    assert again(at, access="after") is Launch
    assert again(at, access="after") is Hold, "the change did not help"
    record = InstanceRecord(instance=INSTANCE, release=at.config.release, at=at.clock.now())
    at.store.replace(keys.instance(INSTANCE), msgspec.json.encode(record))
    assert again(at, access="after") is Launch


@pytest.mark.parametrize("cause", [SILENT, LaunchError("no route to host"), UnreadableError("torn manifest")])
def test_a_cause_that_may_pass_is_tried_again(at: Stage, cause: BatchscribeError) -> None:
    at.launcher.fail("probe", *[cause] * 1000)
    at.config = replace(at.config, access="before")
    tick(at.world, at.config)
    assert again(at) is Launch


def test_another_version_on_the_host_starts_it_once(at: Stage) -> None:
    at.launcher.version = "0.0.1"
    at.config = replace(at.config, access="before")
    tick(at.world, at.config)
    assert again(at) is Hold
    manual = replace(at.config, policy=replace(at.config.policy, manual=True))
    assert isinstance(tick(at.world, manual).decision, Launch)
