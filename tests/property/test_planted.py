"""The simulator is itself tested: bugs planted in the controller are found, by the invariants they break."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from batchscribe.controller import alerts, drive, outside, reconcile, release, settle, steps, tick
from batchscribe.controller.context import Terms, World, noted
from batchscribe.core import manifest as wire
from batchscribe.core.backlog import Backlog
from batchscribe.core.holding import Holder
from batchscribe.core.instances import Claim, InstanceState
from batchscribe.core.runs import Run, RunState
from batchscribe.errors import BatchscribeError
from batchscribe.testing.simulation.cloud import CloudApi
from batchscribe.testing.simulation.episode import play
from batchscribe.testing.simulation.listening import listening
from batchscribe.testing.simulation.seams import KernelLock

BUDGET = 2000
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Bug:
    plant: Callable[[Patch], None]
    breaks: frozenset[str]


def _intent_after_start(patch: Patch) -> None:
    opened = steps.open_run

    def start_first(world: World, terms: Terms, decision: Any, seen: Any) -> Run:
        now = world.clock.now()
        run = world.new_run_id(now)
        claim = Claim(instance=seen.id, run=run, deadline=now + terms.policy.max_runtime)
        world.compute.start(claim)
        return opened(replace(world, new_run_id=lambda _now: run), terms, decision, seen)

    patch.setattr(tick, "open_run", start_first)


def _disarm_before_the_stop_was_seen(patch: Patch) -> None:
    began = release.begin_release

    def hasty(world: World, run: Run) -> Run:
        world.guard.disarm(run.instance, run.id)
        return began(world, run)

    patch.setattr(drive, "begin_release", hasty)


def _no_release_on_an_exception(patch: Patch) -> None:
    def give_up(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        errors.append(error)
        out = run.releasing(outcome, str(error))
        return noted(world, out if out.state is not RunState.RELEASING else out.moved(RunState.VERIFYING))

    patch.setattr(drive, "_give_up", give_up)


def _the_workers_word_for_the_count(patch: Patch) -> None:
    closed = settle._closed

    def trusting(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        return replace(closed(world, run, verdict, work), chunks_done=sum(each.tally.done for each in work))

    patch.setattr(settle, "_closed", trusting)


def _the_workers_word_for_the_transcripts(patch: Patch) -> None:
    counted = settle._count_failures

    def trusting(world: World, run: Run, work: list[Any]) -> None:
        counted(world, run, work)
        for each in work:
            for chunk in each.manifest.chunks[: each.tally.done]:
                world.output.replace(chunk.transcript, b"{}")

    patch.setattr(settle, "_count_failures", trusting)


def _a_stale_lock_is_unlinked(patch: Patch) -> None:
    taken = KernelLock.take

    def original(self: KernelLock, process: Holder) -> None:
        if self.holder() and self.now() - self.since > 1200:
            self.unlink()
        taken(self, process)

    patch.setattr(KernelLock, "take", original)


def _the_tag_is_forgotten(patch: Patch) -> None:
    def untagged(self: CloudApi, claim: Claim) -> None:
        self._call("start", claim.run, lambda: self._start(claim))

    patch.setattr(CloudApi, "start", untagged)


def _the_tag_is_left(patch: Patch) -> None:
    patch.setattr(outside, "_give_back", lambda _world, _run: None)


def _a_stranger_is_adopted(patch: Patch) -> None:
    recover = reconcile.recover

    def adopting(world: World, terms: Terms) -> Any:
        seen = world.compute.describe(terms.instances[0])
        if seen.run and world.ledger.run(seen.run) is None and seen.state is InstanceState.RUNNING:
            world.compute.stop(seen.id)
        return recover(world, terms)

    patch.setattr(tick, "recover", adopting)


def _settled_before_the_stop_was_seen(patch: Patch) -> None:
    def hopeful(world: World, _terms: Terms, run: Run) -> Run:
        if run.start_requested is not None:
            world.compute.stop(run.instance)
        now = world.clock.now()
        outside.take_away(world, run)
        return noted(world, replace(run, stopped=now).moved(RunState.VERIFYING), "stopped, surely")

    patch.setattr(drive, "release", hopeful)


def _billed_while_seen_only(patch: Patch) -> None:
    def seen_only(self: Run) -> float:
        begin, end = self.running_since, self.running_until
        return (end - begin).total_seconds() if begin and end else 0.0

    patch.setattr(Run, "billed_seconds", property(seen_only))


def _billed_to_the_settlement(patch: Patch) -> None:
    closed = settle._closed

    def late(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        ended = world.clock.now() + timedelta(minutes=3)
        return closed(world, replace(run, stopped=ended), verdict, work)

    patch.setattr(settle, "_closed", late)


def _troubled_chunks_count(patch: Patch) -> None:
    patch.setattr(Backlog, "triggering", property(lambda self: self.pending))


def _a_vendors_words_are_told(patch: Patch) -> None:
    alert = alerts.alert

    def chatty(world: World, key: str, title: str, text: str) -> None:
        error = sys.exc_info()[1]
        alert(world, key, title, f"{text} ({error.__cause__ if error else ''})")

    patch.setattr(tick, "alert", chatty)


def _a_guard_that_comes_too_late(patch: Patch) -> None:
    claimed = steps.claim_of

    def generous(run: Run) -> Claim:
        return replace(claimed(run), deadline=run.deadline + timedelta(hours=8))

    armed = steps.arm

    def arm(world: World, terms: Terms, run: Run) -> Run:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(steps, "claim_of", generous)
            return armed(world, terms, run)

    patch.setitem(drive.ACTS, next(step for step, act in drive.ACTS.items() if act is armed), arm)


def _anybodys_instance_is_stopped(patch: Patch) -> None:
    patch.setattr(release, "_ours", lambda _run, _seen, _now: True)


def _a_claim_is_left(patch: Patch) -> None:
    patch.setattr(outside, "_take_claim", lambda _world, _run: None)


def _quarantine_is_forgotten(patch: Patch) -> None:
    """A quarantined chunk that the scan takes for pending is tried for ever."""
    decoded = wire.decode

    def forgetful(data: bytes, kind: Any) -> Any:
        record = decoded(data, kind)
        return replace_etag(record) if kind is wire.QuarantineRecord else record

    def replace_etag(record: wire.QuarantineRecord) -> wire.QuarantineRecord:
        return wire.QuarantineRecord(
            key=record.key,
            etag="another",
            decoder=record.decoder,
            attempts=record.attempts,
            message=record.message,
            at=datetime.fromtimestamp(0, tz=record.at.tzinfo),
        )

    patch.setattr(wire, "decode", forgetful)


BUGS = {
    "intent after start": Bug(_intent_after_start, frozenset({"I1"})),
    "disarmed before the stop was seen": Bug(_disarm_before_the_stop_was_seen, frozenset({"I1"})),
    "no release on an exception": Bug(_no_release_on_an_exception, frozenset({"I1", "I7"})),
    "the worker's word for the count": Bug(_the_workers_word_for_the_count, frozenset({"I4"})),
    "the worker's word for the transcripts": Bug(_the_workers_word_for_the_transcripts, frozenset({"I5"})),
    "a stale lock is unlinked": Bug(_a_stale_lock_is_unlinked, frozenset({"I6"})),
    "the tag is forgotten": Bug(_the_tag_is_forgotten, frozenset({"I1", "I7", "I8", "I11"})),
    "the tag is left": Bug(_the_tag_is_left, frozenset({"I8"})),
    "a stranger is adopted": Bug(_a_stranger_is_adopted, frozenset({"I3"})),
    "settled before the stop was seen": Bug(_settled_before_the_stop_was_seen, frozenset({"I1", "I7", "I8"})),
    "billed while it was seen only": Bug(_billed_while_seen_only, frozenset({"I7"})),
    "billed to its settlement": Bug(_billed_to_the_settlement, frozenset({"I7"})),
    "troubled chunks count": Bug(_troubled_chunks_count, frozenset({"I10"})),
    "a vendor's words are told": Bug(_a_vendors_words_are_told, frozenset({"I9"})),
    "a guard that comes too late": Bug(_a_guard_that_comes_too_late, frozenset({"I2"})),
    "anybody's instance is stopped": Bug(_anybodys_instance_is_stopped, frozenset({"I3"})),
    "a claim is left": Bug(_a_claim_is_left, frozenset({"I8"})),
    "quarantine is forgotten": Bug(_quarantine_is_forgotten, frozenset({"I4"})),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    BUGS[name].plant(monkeypatch)
    with listening() as listener:
        for seed in range(BUDGET):
            violation = play(seed, listener).violation
            if violation:
                record_property("episodes", seed + 1)
                assert violation.split(":")[0] in BUGS[name].breaks, violation
                return
    raise AssertionError(f"{BUDGET} episodes did not find it")
