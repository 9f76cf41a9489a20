"""Bugs to be planted in the controller, each a mistake that somebody could make there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.agent import supervisor
from batchscribe.controller import (
    advance,
    alerts,
    context,
    dispatch,
    external_state,
    follow,
    observe,
    records,
    recovery,
    settle,
    steps,
    teardown,
    tick,
)
from batchscribe.controller.capacity import poll_one
from batchscribe.controller.context import RunConfig, World, log, read_moment, save
from batchscribe.controller.records import read_manifest
from batchscribe.controller.sharing import portions
from batchscribe.core import keys
from batchscribe.core.decide import policy, triggers
from batchscribe.core.decide.money import ZERO
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.instances import Claim, InstanceState
from batchscribe.core.run.meter import Meter, Moment
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.scan.backlog import Backlog
from batchscribe.errors import BatchscribeError, DamagedLedgerError, MisconfiguredError
from simulation import episode, played_host, stage
from simulation.actors import Actors
from simulation.cloud import CloudApi
from simulation.seams import KernelLock, LedgerSeam

Patch = pytest.MonkeyPatch


def intent_after_start(patch: Patch) -> None:
    opened = steps.open_run

    def start_first(world: World, config: RunConfig, decision: Any, seen: Any) -> Run:
        now = world.clock.now()
        run = world.new_run_id(now)
        claim = Claim(instance=seen[0].id, run=run, deadline=now + config.policy.max_runtime)
        world.capacity.acquire(claim, decision.offer, seen[0])
        return opened(replace(world, new_run_id=lambda _now: run), config, decision, seen)

    patch.setattr(tick, "open_run", start_first)


def disarm_before_the_stop_was_seen(patch: Patch) -> None:
    began = teardown.begin_teardown

    def hasty(world: World, run: Run) -> Run:
        world.guard.disarm(run.instance, run.id)
        return began(world, run)

    patch.setattr(advance, "begin_teardown", hasty)


def no_release_on_an_exception(patch: Patch) -> None:
    def give_up(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        errors.append(error)
        out = run.to_teardown(outcome, str(error))
        return save(world, out if out.state is not RunState.RELEASING else out.to_state(RunState.VERIFYING))

    patch.setattr(advance, "_give_up", give_up)


def the_workers_word_for_the_count(patch: Patch) -> None:
    closed = settle._close_run

    def trusting(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        return replace(closed(world, run, verdict, work), chunks_done=sum(each.tally.done for each in work))

    patch.setattr(settle, "_close_run", trusting)


def the_workers_word_for_the_transcripts(patch: Patch) -> None:
    counted = settle._count_failures

    def trusting(world: World, run: Run, work: list[Any]) -> None:
        counted(world, run, work)
        for each in work:
            for chunk in each.manifest.chunks[: each.tally.done]:
                world.output.replace(chunk.transcript, b"{}")

    patch.setattr(settle, "_count_failures", trusting)


def a_held_lock_is_unlinked(patch: Patch) -> None:
    taken = KernelLock.take

    def original(self: KernelLock, process: int) -> None:
        if self.holder():
            self.unlink()
        taken(self, process)

    patch.setattr(KernelLock, "take", original)


def the_tag_is_forgotten(patch: Patch) -> None:
    patch.setattr(CloudApi, "claim", lambda *_claim: None)


def the_tag_is_left(patch: Patch) -> None:
    patch.setattr(external_state, "_restore_instance", lambda *_run: None)


def a_stranger_is_adopted(patch: Patch) -> None:
    recover = recovery.recover

    def adopting(world: World, config: RunConfig) -> Any:
        seen = poll_one(world, config.instances[0])
        if seen.run and world.ledger.run(seen.run) is None and seen.state is InstanceState.RUNNING:
            world.capacity.teardown(seen.id)
        return recover(world, config)

    patch.setattr(tick, "recover", adopting)


def settled_before_the_stop_was_seen(patch: Patch) -> None:
    def hopeful(world: World, _config: RunConfig, run: Run) -> Run:
        if run.started:
            world.capacity.teardown(run.instance)
        external_state.clean_up_external_state(world, run)
        meter = run.machines[0].meter.end(read_moment(world))
        ended = run.with_machine(run.instance, meter=meter, released=True)
        return save(world, ended.to_state(RunState.VERIFYING), "stopped, surely")

    patch.setattr(advance, "teardown", hopeful)


def billed_while_seen_only(patch: Patch) -> None:
    def seen_only(self: Meter) -> float:
        begin, end = self.running_since, self.running_until
        return end.seconds_since(begin) if begin and end else 0.0

    patch.setattr(Meter, "billed_seconds", property(seen_only))


def billed_to_the_settlement(patch: Patch) -> None:
    closed = settle._close_run

    def much_later(world: World, run: Run, verdict: Any, work: list[Any]) -> Run:
        now = read_moment(world)
        late = Moment(now.at + timedelta(minutes=3), (now.uptime or 0.0) + 180.0, now.boot)
        meter = replace(run.machines[0].meter, stopped=late)
        return closed(world, run.with_machine(run.instance, meter=meter), verdict, work)

    patch.setattr(settle, "_close_run", much_later)


def troubled_chunks_count(patch: Patch) -> None:
    patch.setattr(Backlog, "triggering", property(lambda self: self.pending))


def a_vendors_words_are_told(patch: Patch) -> None:
    alert = alerts.send_alert

    def chatty(world: World, key: str, title: str, text: str, *level: Any) -> None:
        error = sys.exc_info()[1]
        alert(world, key, title, f"{text} ({error.__cause__ if error else ''})", *level)

    patch.setattr(tick, "send_alert", chatty)


def a_guard_that_comes_too_late(patch: Patch) -> None:
    claimed = steps.claim_of

    def generous(run: Run, instance: str) -> Claim:
        return replace(claimed(run, instance), deadline=run.deadline + timedelta(hours=8))

    armed, *outcomes = advance.ACTS[RunState.PLANNED]

    def arm(world: World, config: RunConfig, run: Run) -> Run:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(steps, "claim_of", generous)
            return armed(world, config, run)

    patch.setitem(advance.ACTS, RunState.PLANNED, (arm, *outcomes))


def anybodys_instance_is_stopped(patch: Patch) -> None:
    patch.setattr(teardown, "_may_act_on", lambda *_poll: True)


def a_claim_is_left(patch: Patch) -> None:
    patch.setattr(external_state, "_remove_claim", lambda *_run: None)


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
    def release_only(world: World, run: Run, _machine: Any) -> None:
        seen = poll_one(world, run.instance)
        if seen.run == run.id:
            world.capacity.release(run.instance)

    patch.setattr(external_state, "_restore_instance", release_only)


def nothing_is_billed(patch: Patch) -> None:
    patch.setattr(Run, "bill", lambda _run: ZERO)


def a_worker_is_left_on_a_borrowed_machine(patch: Patch) -> None:
    patch.setattr(teardown, "_is_work_over", lambda *_poll: True)


def others_claims_are_ignored(patch: Patch) -> None:
    patch.setattr(steps, "_claimed_by_another", lambda *_look: False)
    patch.setattr(observe, "foreign_claim", lambda *_look: None)


def hung_work_is_waited_for(patch: Patch) -> None:
    """On both sides: the controller's rule and the supervisor's each stop it alone."""
    patch.setattr(follow, "_find_stall", lambda *_progress: None)
    patch.setattr(supervisor.Supervisor, "_check_stall", lambda _watch: None)


def a_last_word_is_not_heard(patch: Patch) -> None:
    read_exit = records.read_exit

    def late(world: World, worker: wire.WorkerRef) -> wire.ExitRecord | None:
        run = world.ledger.run(worker.run)
        over = run is None or world.clock.now() >= run.deadline
        return read_exit(world, worker) if over else None

    patch.setattr(follow, "read_exit", late)
    patch.setattr(follow, "_follow_progress", lambda _world, _config, run, *_worker, **_seen: run)


def no_start_ever_pays(patch: Patch) -> None:
    def hold(*seen: Any) -> Any:
        decision = policy.decide(*seen)
        return policy.Hold(decision.reason) if isinstance(decision, policy.Launch) else decision

    patch.setattr(tick, "decide", hold)


def what_is_done_is_given_out_again(patch: Patch) -> None:
    with_manifest = dispatch.with_manifest

    def again(world: World, config: RunConfig, run: Run, instance: str, chunks: Any) -> Run:
        lately = world.ledger.runs(run.created - timedelta(days=1))
        before = [read_manifest(world, each, at) for each in lately for at in range(len(each.manifests))]
        given = (*chunks, *(chunk for manifest in before for chunk in manifest.chunks))
        return with_manifest(world, config, run, instance, {chunk.key: chunk for chunk in given}.values())

    patch.setattr(dispatch, "with_manifest", again)


def every_alarm_is_due(patch: Patch) -> None:
    patch.setattr(LedgerSeam, "is_alert_due", lambda *_alarm: True)


def a_mistake_in_the_code(patch: Patch) -> None:
    def broken(*_session: object) -> None:
        raise TypeError("a mistake")

    patch.setattr(settle, "publish_session", broken)


def a_secret_is_logged(patch: Patch) -> None:
    give_up = advance._give_up

    def chatty(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        log.warning("it failed", cause=str(error.__cause__))
        return give_up(world, run, outcome, error, errors)

    patch.setattr(advance, "_give_up", chatty)


def a_secret_is_stored(patch: Patch) -> None:
    give_up = advance._give_up

    def open_hearted(world: World, run: Run, outcome: Any, error: BatchscribeError, errors: list[Any]) -> Run:
        with suppress(BatchscribeError):
            world.output.replace(f"{keys.RUNS}{run.id}/trouble.json", str(error.__cause__).encode())
        return give_up(world, run, outcome, error, errors)

    patch.setattr(advance, "_give_up", open_hearted)


def nobody_looks_at_a_working_instance(patch: Patch) -> None:
    for module in (follow, dispatch):
        patch.setattr(module, "is_poll_due", lambda *_moment: False)


def every_stop_is_forced(patch: Patch) -> None:
    stop = CloudApi.stop
    patch.setattr(CloudApi, "stop", lambda self, instance, force=False: stop(self, instance, force=True))


def its_own_start_is_not_known_again(patch: Patch) -> None:
    patch.setattr(Meter, "is_started_again", lambda _meter, _launched_at: False)


def a_clock_set_back_grants_grace(patch: Patch) -> None:
    def by_the_wall(self: Moment, earlier: Moment) -> float:
        return (self.at - earlier.at).total_seconds()

    def is_within(self: Moment, span: timedelta, of: Moment) -> bool:
        return self.seconds_since(of) < span.total_seconds()

    patch.setattr(Moment, "seconds_since", by_the_wall)
    patch.setattr(Moment, "is_within", is_within)


def an_endless_chunk_in_company_goes_free(patch: Patch) -> None:
    endless = settle._list_endless

    def alone(run: Run, work: settle.WorkerResult, *, unproductive: bool) -> Any:
        return endless(run, work, unproductive=False)

    patch.setattr(settle, "_list_endless", alone)


def what_is_passed_over_goes_free(patch: Patch) -> None:
    patch.setattr(settle, "_passed_over", lambda _work: ())


def a_process_that_hangs_is_not_killed(patch: Patch) -> None:
    patch.setattr(stage, "HANG_SECONDS", math.inf)


def the_minute_timer_advances_nothing(patch: Patch) -> None:
    patch.setattr(episode, "watch", lambda *_world, **_locked: tick.Watched(found="nothing"))


def started_before_it_is_recorded(patch: Patch) -> None:
    def hasty(world: World, config: RunConfig, run: Run) -> Run:
        seen = poll_one(world, run.instance)
        if seen.state is InstanceState.STOPPED:
            world.capacity.acquire(steps.claim_of(run, run.instance), world.capacity.offers(seen)[0], seen)
        return provision(world, config, run)

    provision, *outcomes = advance.ACTS[RunState.ARMED]
    patch.setitem(advance.ACTS, RunState.ARMED, (hasty, *outcomes))


def a_recovered_run_is_billed_from_its_recovery(patch: Patch) -> None:
    def recovered(_created: datetime, *, started: bool, launched_before: datetime | None) -> Meter:
        return Meter(launched_before=launched_before)

    patch.setattr(Meter, "recovered", recovered)


def a_stored_settlement_proves_the_stop(patch: Patch) -> None:
    def believing(world: World, run: Run, note: str = "") -> Run:
        stored = run.state is RunState.RELEASING and run.detail == "its settlement is stored already"
        return save(world, run.to_state(RunState.VERIFYING) if stored else run, note)

    patch.setattr(recovery, "save", believing)


def a_copy_on_another_host_is_the_same_scheduler(patch: Patch) -> None:
    patch.setattr(
        recovery, "_is_at_present_place", lambda record, config, *_: record.scheduler == config.scheduler
    )


def any_manifest_is_worked_on(patch: Patch) -> None:
    """Of its three guards the seal stays: the ledger is rarely lost at that moment."""
    patch.setattr(played_host, "refuse_foreign_work", lambda *_manifest, **_place: None)
    refusal = supervisor.Supervisor._refusal_reason
    patch.setattr(supervisor.Supervisor, "_refusal_reason", lambda self, sha256: refusal(self, sha256 and ""))


def a_run_of_other_settings_is_refused(patch: Patch) -> None:
    patch.setattr(advance, "find_run_world", _at_home)


def _at_home(world: World, config: RunConfig, run: Run) -> World:
    if (run.instances, run.output) != (config.instances, world.output.url):
        raise MisconfiguredError(f"run {run.id} was begun with other settings")
    return world


def one_run_blocks_the_others(patch: Patch) -> None:
    """Refuses to do anything before what cannot be read is repaired, as it is refused at the end."""

    def first(act: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(world: World, *rest: Any, **more: Any) -> Any:
            tick._refuse_unreadable(world)
            return act(world, *rest, **more)

        return refuse

    for name in ("recover", "advance_all"):
        patch.setattr(tick, name, first(getattr(tick, name)))


def a_damaged_ledger_ends_every_process(patch: Patch) -> None:
    def refuse(self: Actors) -> None:
        if self.damaged:
            raise DamagedLedgerError("the ledger is damaged")

    patch.setattr(Actors, "open_ledger", refuse)


def a_chunk_that_failed_waits_for_company(patch: Patch) -> None:
    patch.setattr(triggers, "find_waiting_since", lambda seen: seen.backlog.oldest)


def a_clock_set_back_bills_nothing(patch: Patch) -> None:
    def by_the_wall(self: Meter) -> float:
        begin, end = self.idle_until or self.start_requested, self.stopped or self.running_until
        return max(0.0, (end.at - begin.at).total_seconds()) if begin and end and self.ran else 0.0

    patch.setattr(Meter, "billed_seconds", property(by_the_wall))
    patch.setattr(Run, "billed_seconds_of", lambda _run, machine: machine.meter.billed_seconds)


def any_record_is_believed(patch: Patch) -> None:
    patch.setattr(records, "is_sealed", lambda _data, _secret: True)


def idle_machines_are_kept(patch: Patch) -> None:
    """Machines without work are stopped with the last one of their run."""
    patch.setattr(steps, "stop_idle", lambda _world, _config, run: run)


def a_lost_create_reply_leaks_a_machine(patch: Patch) -> None:
    """A create call without a reply created nothing."""
    request = steps._request_start

    def request_start(world: World, config: RunConfig, run: Run, seen: Any, asked: Any) -> Run:
        out = request(world, config, run, seen, asked)
        if out.in_teardown or out.trouble in {"", run.trouble}:
            return out
        out = context.end_machine(world, out, seen.id, Outcome.START_FAILED, "no reply")
        return save(world, out.with_machine(seen.id, released=True))

    patch.setattr(steps, "_request_start", request_start)


def every_machine_has_the_runs_rate(patch: Patch) -> None:
    billed = Run.bill_of
    patch.setattr(Run, "bill_of", lambda run, machine: billed(run, replace(machine, rate=None)))


def a_rest_is_shared_while_its_worker_works(patch: Patch) -> None:
    """The worker is not asked to end, and its chunks count as returned."""
    tried = portions._list_tried

    def list_tried(world: World, run: Run, number: int, manifest: Any) -> Any:
        worker = run.workers[number]
        known = run.with_worker(number, ended=world.clock.now()) if worker.revoked else run
        return tried(world, known, number, manifest)

    patch.setattr(portions, "_list_tried", list_tried)
    patch.setattr(AgentLauncher, "cancel", lambda *_request, **_force: None)
