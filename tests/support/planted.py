"""Bugs to be planted in the controller, each a mistake that somebody could make there."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from batchscribe.controller import (
    alerts,
    control,
    dispatch,
    drive,
    follow,
    observe,
    outside,
    reconcile,
    release,
    settle,
    steps,
    tick,
)
from batchscribe.controller.context import Terms, World, log, noted
from batchscribe.controller.records import read_manifest
from batchscribe.core import keys, policy
from batchscribe.core import manifest as wire
from batchscribe.core.backlog import Backlog
from batchscribe.core.holding import Holder
from batchscribe.core.instances import Claim, InstanceState
from batchscribe.core.money import ZERO
from batchscribe.core.runs import Run, RunState
from batchscribe.errors import BatchscribeError
from batchscribe.testing.simulation.cloud import CloudApi
from batchscribe.testing.simulation.seams import KernelLock, LedgerSeam

Patch = pytest.MonkeyPatch


def intent_after_start(patch: Patch) -> None:
    opened = steps.open_run

    def start_first(world: World, terms: Terms, decision: Any, seen: Any) -> Run:
        now = world.clock.now()
        run = world.new_run_id(now)
        claim = Claim(instance=seen.id, run=run, deadline=now + terms.policy.max_runtime)
        world.compute.start(claim)
        return opened(replace(world, new_run_id=lambda _now: run), terms, decision, seen)

    patch.setattr(tick, "open_run", start_first)


def disarm_before_the_stop_was_seen(patch: Patch) -> None:
    began = release.begin_release

    def hasty(world: World, run: Run) -> Run:
        world.guard.disarm(run.instance, run.id)
        return began(world, run)

    patch.setattr(drive, "begin_release", hasty)


def no_release_on_an_exception(patch: Patch) -> None:
    def give_up(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        errors.append(error)
        out = run.releasing(outcome, str(error))
        return noted(world, out if out.state is not RunState.RELEASING else out.moved(RunState.VERIFYING))

    patch.setattr(drive, "_give_up", give_up)


def the_workers_word_for_the_count(patch: Patch) -> None:
    closed = settle._closed

    def trusting(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        return replace(closed(world, run, verdict, work), chunks_done=sum(each.tally.done for each in work))

    patch.setattr(settle, "_closed", trusting)


def the_workers_word_for_the_transcripts(patch: Patch) -> None:
    counted = settle._count_failures

    def trusting(world: World, run: Run, work: list[Any]) -> None:
        counted(world, run, work)
        for each in work:
            for chunk in each.manifest.chunks[: each.tally.done]:
                world.output.replace(chunk.transcript, b"{}")

    patch.setattr(settle, "_count_failures", trusting)


def a_stale_lock_is_unlinked(patch: Patch) -> None:
    taken = KernelLock.take

    def original(self: KernelLock, process: Holder) -> None:
        if self.holder() and self.now() - self.since > 1200:
            self.unlink()
        taken(self, process)

    patch.setattr(KernelLock, "take", original)


def the_tag_is_forgotten(patch: Patch) -> None:
    def untagged(self: CloudApi, claim: Claim) -> None:
        self._call("start", claim.run, lambda: self._start(claim))

    patch.setattr(CloudApi, "start", untagged)


def the_tag_is_left(patch: Patch) -> None:
    patch.setattr(outside, "_give_back", lambda _world, _run: None)


def a_stranger_is_adopted(patch: Patch) -> None:
    recover = reconcile.recover

    def adopting(world: World, terms: Terms) -> Any:
        seen = world.compute.describe(terms.instances[0])
        if seen.run and world.ledger.run(seen.run) is None and seen.state is InstanceState.RUNNING:
            world.compute.stop(seen.id)
        return recover(world, terms)

    patch.setattr(tick, "recover", adopting)


def settled_before_the_stop_was_seen(patch: Patch) -> None:
    def hopeful(world: World, _terms: Terms, run: Run) -> Run:
        if run.start_requested is not None:
            world.compute.stop(run.instance)
        now = world.clock.now()
        outside.take_away(world, run)
        return noted(world, replace(run, stopped=now).moved(RunState.VERIFYING), "stopped, surely")

    patch.setattr(drive, "release", hopeful)


def billed_while_seen_only(patch: Patch) -> None:
    def seen_only(self: Run) -> float:
        begin, end = self.running_since, self.running_until
        return (end - begin).total_seconds() if begin and end else 0.0

    patch.setattr(Run, "billed_seconds", property(seen_only))


def billed_to_the_settlement(patch: Patch) -> None:
    closed = settle._closed

    def late(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        ended = world.clock.now() + timedelta(minutes=3)
        return closed(world, replace(run, stopped=ended), verdict, work)

    patch.setattr(settle, "_closed", late)


def troubled_chunks_count(patch: Patch) -> None:
    patch.setattr(Backlog, "triggering", property(lambda self: self.pending))


def a_vendors_words_are_told(patch: Patch) -> None:
    alert = alerts.alert

    def chatty(world: World, key: str, title: str, text: str) -> None:
        error = sys.exc_info()[1]
        alert(world, key, title, f"{text} ({error.__cause__ if error else ''})")

    patch.setattr(tick, "alert", chatty)


def a_guard_that_comes_too_late(patch: Patch) -> None:
    claimed = steps.claim_of

    def generous(run: Run) -> Claim:
        return replace(claimed(run), deadline=run.deadline + timedelta(hours=8))

    armed = steps.arm

    def arm(world: World, terms: Terms, run: Run) -> Run:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(steps, "claim_of", generous)
            return armed(world, terms, run)

    patch.setitem(drive.ACTS, next(step for step, act in drive.ACTS.items() if act is armed), arm)


def anybodys_instance_is_stopped(patch: Patch) -> None:
    patch.setattr(release, "_ours", lambda _run, _seen, _now: True)


def a_claim_is_left(patch: Patch) -> None:
    patch.setattr(outside, "_take_claim", lambda _world, _run: None)


def quarantine_is_forgotten(patch: Patch) -> None:
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


def type_is_kept(patch: Patch) -> None:
    def release_only(world: World, run: Run) -> None:
        seen = world.compute.describe(run.instance)
        if seen.run == run.id:
            world.compute.release(run.instance)

    patch.setattr(outside, "_give_back", release_only)


def nothing_is_billed(patch: Patch) -> None:
    patch.setattr(Run, "bill", lambda _run: ZERO)


def a_worker_is_left_on_a_borrowed_machine(patch: Patch) -> None:
    patch.setattr(release, "_work_over", lambda *_look: True)


def others_claims_are_ignored(patch: Patch) -> None:
    patch.setattr(steps, "_claimed_by_another", lambda *_look: False)
    patch.setattr(observe, "stranger", lambda *_look: None)


def hung_work_is_waited_for(patch: Patch) -> None:
    for module in (follow, reconcile):
        patch.setattr(module, "stands_still", lambda *_look: "")


def a_last_word_is_not_heard(patch: Patch) -> None:
    read_exit = control.read_exit

    def late(world: World, manifest: wire.Manifest) -> wire.ExitRecord | None:
        record = read_exit(world, manifest)
        return record if world.clock.now() >= manifest.deadline else None

    for module in (follow, reconcile):
        patch.setattr(module, "read_exit", late)


def no_start_ever_pays(patch: Patch) -> None:
    def hold(*seen: Any) -> Any:
        decision = policy.decide(*seen)
        return policy.Hold(decision.reason) if isinstance(decision, policy.Launch) else decision

    patch.setattr(tick, "decide", hold)


def what_is_done_is_given_out_again(patch: Patch) -> None:
    manifest = dispatch._manifest

    def again(world: World, terms: Terms, run: Run, *given: Any) -> wire.Manifest:
        made = manifest(world, terms, run, *given)
        lately = world.ledger.runs(run.created - timedelta(days=1))
        before = [read_manifest(world, key) for each in lately for key in each.manifests]
        chunks = {chunk.key: chunk for each in (made, *before) for chunk in each.chunks}
        return msgspec.structs.replace(made, chunks=tuple(chunks.values()))

    patch.setattr(dispatch, "_manifest", again)


def every_alarm_is_due(patch: Patch) -> None:
    patch.setattr(LedgerSeam, "alert_due", lambda *_alarm: True)


def a_mistake_in_the_code(patch: Patch) -> None:
    def broken(*_session: object) -> None:
        raise TypeError("a mistake")

    patch.setattr(settle, "publish_session", broken)


def a_secret_is_logged(patch: Patch) -> None:
    give_up = drive._give_up

    def chatty(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        log.warning("it failed", cause=str(error.__cause__))
        return give_up(world, run, outcome, error, errors)

    patch.setattr(drive, "_give_up", chatty)


def a_secret_is_stored(patch: Patch) -> None:
    give_up = drive._give_up

    def open_hearted(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        with suppress(BatchscribeError):
            world.output.replace(f"{keys.RUNS}{run.id}/trouble.json", str(error.__cause__).encode())
        return give_up(world, run, outcome, error, errors)

    patch.setattr(drive, "_give_up", open_hearted)


def nobody_looks_at_a_working_instance(patch: Patch) -> None:
    for module in (follow, dispatch):
        patch.setattr(module, "look_due", lambda *_look: False)


def every_stop_is_forced(patch: Patch) -> None:
    stop = CloudApi.stop
    patch.setattr(CloudApi, "stop", lambda self, instance, force=False: stop(self, instance, force=True))


def its_own_start_is_not_known_again(patch: Patch) -> None:
    patch.setattr(Run, "started_again", lambda _run, _launched_at: False)


def a_clock_set_back_puts_the_look_off(patch: Patch) -> None:
    def due(run: Run, terms: Terms, now: datetime) -> bool:
        return run.running_until is not None and now - run.running_until >= timedelta(
            seconds=terms.waits.describe
        )

    for module in (follow, dispatch):
        patch.setattr(module, "look_due", due)


def an_endless_chunk_in_company_goes_free(patch: Patch) -> None:
    endless = settle._endless

    def alone(run: Run, work: settle.Work, *, fruitless: bool) -> Any:
        return endless(run, work, fruitless=False)

    patch.setattr(settle, "_endless", alone)


def what_is_passed_over_goes_free(patch: Patch) -> None:
    patch.setattr(settle, "_passed_over", lambda _work: ())


def a_late_start_is_not_waited_for(patch: Patch) -> None:
    patch.setattr(release, "_may_still_start", lambda _run, _now: False)
