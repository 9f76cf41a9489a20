"""Findings that need a user, for the overview and health checks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from batchscribe.controller.commands.doctor import (
    check_open_runs,
    check_other_scheduler,
    check_proofs,
    check_schedule,
)
from batchscribe.controller.commands.overview import Overview
from batchscribe.controller.commands.rehearsal import PROVED
from batchscribe.controller.context import RunConfig, World
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.policy import describe_pause
from batchscribe.core.figures import format_count, format_hours
from batchscribe.core.run.host import Finding, Grade, failed, passed, warned
from batchscribe.core.scan.backlog import Backlog

MISSED_CHECKS = 3
"""A tick is late after this number of intervals between two checks."""
_ORDER = (Grade.FAIL, Grade.WARN)


def check_health(world: World, config: RunConfig) -> tuple[Finding, ...]:
    """Checks the ledger alone: overdue runs, and the last tick's age.

    Raises what the ledger raises.
    """
    now, ledger = world.clock.now(), world.ledger
    runs = [each for each in check_open_runs(ledger.open_runs(), now) if not each.ok]
    unreadable = [failed("open run", text) for text in ledger.unreadable]
    return (check_last_tick(ledger.last_tick(), now, config.policy.check_interval), *runs, *unreadable)


def check_last_tick(last: datetime | None, now: datetime, interval: timedelta) -> Finding:
    """Fails if the last tick is older than some check intervals."""
    if last is None:
        return warned("last tick", "no tick has recorded anything yet", "`batchscribe tick`")
    age = format_hours((now - last).total_seconds())
    if now - last > MISSED_CHECKS * interval:
        every = format_hours(interval.total_seconds())
        detail = f"the last tick was {age} ago, and one is due every {every}"
        return failed("last tick", detail, "`batchscribe doctor` shows what starts it")
    return passed("last tick", f"{age} ago")


def list_attention(now: Overview, world: World, config: RunConfig, schedule: str) -> tuple[Finding, ...]:
    """Present warnings and failures, worst first; `schedule` starts the next tick."""
    found = [
        *_check_observation(now, config.policy),
        *check_health(world, config),
        check_schedule(schedule),
        check_other_scheduler(now.other_scheduler),
        *([] if config.shared_machine else check_proofs(world.ledger.facts(PROVED))),
        *_check_last_run(now),
    ]
    shown = [each for each in found if each.level in _ORDER]
    return tuple(sorted(shown, key=lambda each: _ORDER.index(each.level)))


def _check_observation(now: Overview, policy: Policy) -> Iterator[Finding]:
    if now.error:
        yield failed("store or cloud", now.error, "`batchscribe doctor` checks both")
    if now.paused_until:
        yield warned("paused", describe_pause(now.paused_until))
    if now.observed:
        yield from _check_backlog(now.observed.backlog, now.observed.now, policy)


def _check_backlog(backlog: Backlog, at: datetime, policy: Policy) -> Iterator[Finding]:
    if backlog.oldest and at - backlog.oldest > policy.max_wait:
        waited = format_hours((at - backlog.oldest).total_seconds())
        limit = format_hours(policy.max_wait.total_seconds())
        yield failed("longest wait", f"a chunk has waited for {waited}, and the limit is {limit}")
    if backlog.quarantined:
        count = format_count(backlog.quarantined, "chunk")
        yield warned("quarantine", f"{count} failed for good", "`batchscribe quarantine list`")


def _check_last_run(now: Overview) -> Iterator[Finding]:
    last = now.last_runs[-1] if now.last_runs else None
    if last and last.outcome and not last.outcome.success:
        detail = f"run {last.id} ended as {last.outcome}{f': {last.detail}' if last.detail else ''}"
        yield warned("last run", detail, f"`batchscribe logs {last.id}`")
