"""The steps of a run up to a running instance: each is one look at the world and at most one act.

A step returns the run as it is afterwards, already recorded. Where nothing has changed it returns
it in the same state, and whoever drives it waits and calls again; so every step can be repeated,
and a crash between two looks is only a pause.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from batchscribe.controller.capacity import become_that_type, take_another_type
from batchscribe.controller.context import START_LANDS, Terms, World, keep, log
from batchscribe.controller.control import late, looked_at
from batchscribe.controller.outside import leave_claim, note_down, own_type
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.instances import Claim, Instance, InstanceState
from batchscribe.core.policy import INTENT_LASTS, Launch
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import ComputeUnavailableError, NoCapacityError


def open_run(world: World, terms: Terms, decision: Launch, seen: Instance) -> Run:
    """Records the intent in the ledger. The deadline counts from here."""
    now = world.clock.now()
    batch = decision.batch
    run = Run(
        id=world.new_run_id(now),
        provider=terms.provider,
        instances=terms.instances,
        region=terms.region,
        source=world.source.url,
        output=world.output.url,
        borrowed=decision.borrowed,
        policy="by hand" if terms.policy.by_hand else terms.policy.name.value,
        reason=decision.reason.sentence,
        created=now,
        deadline=now + terms.policy.max_runtime,
        rate=batch.estimate.rate,
        instance_type=seen.type or terms.instance_type,
        own_type=own_type(world, seen),
        launched_before=seen.launched_at,
        by_hand=terms.policy.by_hand,
        limit=terms.policy.limit,
        planned_chunks=len(batch.chunks),
        planned_audio_seconds=batch.estimate.audio_seconds,
        planned_seconds=batch.estimate.seconds,
    )
    return keep(world, run, decision.reason.sentence)


def arm(world: World, terms: Terms, run: Run) -> Run:
    """Puts the intent into the store too, then arms the stop order outside this machine.

    Where either fails, nothing is started.
    """
    world.output.create(keys.intent(run.id), wire.encode(_intent(run, terms)))
    if run.borrowed:
        return keep(world, run.moved(RunState.ARMED), "no guard: the instance is somebody else's")
    note_down(world, run)
    world.guard.arm(claim_of(run))
    return keep(world, run.moved(RunState.ARMED), f"guard: {world.guard.description}")


def provision(world: World, terms: Terms, run: Run) -> Run:
    """Records that the instance may be started from now on, once it is free to be."""
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if run.borrowed and seen.state is InstanceState.PENDING and now - run.created < INTENT_LASTS:
        return run
    if run.borrowed:
        run = replace(run, launch=leave_claim(world, terms, run))
        return keep(world, _borrow(run, seen, now), f"instance is {seen.state}")
    if why := _not_for_us(world, run, seen, now):
        return keep(world, run.releasing(Outcome.ABANDONED, why))
    match seen.state:
        case InstanceState.STOPPING:
            return run
        case InstanceState.STOPPED:
            run = replace(run, launch=leave_claim(world, terms, run))
            requested = run.moved(
                RunState.PROVISIONING, start_requested=now, launched_before=seen.launched_at
            )
            return keep(world, requested, "about to start")
        case state:
            return keep(world, run.releasing(Outcome.START_FAILED, f"{seen.id} is {state}"))


def _not_for_us(world: World, run: Run, seen: Instance, now: datetime) -> str:
    """Why this run must not start the instance any more; empty where it may."""
    if now - run.created >= INTENT_LASTS:
        return f"{seen.id} was not free for too long"
    if _claimed_by_another(world, run, seen, now):
        return f"{seen.id} was claimed by run {seen.run}"
    if seen.state.billable or seen.state is InstanceState.PENDING:
        return f"{seen.id} was started by somebody else"
    return ""


def await_running(world: World, terms: Terms, run: Run) -> Run:
    """Asks for the start until it is accepted, then looks until the instance runs."""
    before = world.clock.now()
    seen = world.compute.describe(run.instance)
    now = world.clock.now()
    if run.started_again(seen.launched_at) and seen.state is not InstanceState.STOPPED:
        detail = f"{seen.id} came up, was stopped, and was started again by somebody"
        return keep(world, run.releasing(Outcome.INSTANCE_LOST, detail))
    if seen.state.billable or seen.state.moving:
        launched = run.launched or (seen.launched_at if _is_our_start(run, seen, now) else None)
        run = replace(run, seen_up=run.seen_up or now, launched=launched)
    if seen.state is InstanceState.RUNNING and seen.run == run.id:
        rate = terms.rate_of(seen.type) if seen.type else run.rate
        up = run.moved(
            RunState.DISPATCHING,
            running_since=now,
            running_until=now,
            stopped=None,
            reaching_since=now,
            # The reply to the start may have been lost; under our tag it runs for us.
            start_accepted=run.start_accepted or now,
            launched=seen.launched_at,
            rate=rate,
            instance_type=seen.type or run.instance_type,
        )
        return keep(world, up, "seen running")
    if late(run.start_requested, now, terms.waits.up):
        return keep(world, run.releasing(*_never_up(run, seen, terms)))
    down = seen.state is InstanceState.STOPPED
    run = looked_at(run, seen, now) if _may_have_run(run, seen) else run.idle(before, never_started=down)
    if down:
        return _ask_for_start(world, terms, run, seen)
    tag_lags = seen.run is None and not late(run.idle_until, now, START_LANDS.total_seconds())
    if seen.state.moving or (seen.state.billable and tag_lags):
        return keep(world, run)
    return keep(world, run.releasing(Outcome.START_FAILED, f"{seen.id} is {seen.state}, and not ours"))


def _is_our_start(run: Run, seen: Instance, now: datetime) -> bool:
    """Whether this look, however old, is about our own start: a later launch is then somebody else's."""
    accepted = run.start_accepted is not None and now - run.start_accepted >= START_LANDS
    return accepted and seen.run == run.id and run.started_since(seen.launched_at)


def _may_have_run(run: Run, seen: Instance) -> bool:
    """Whether it may have been billed by the time of this look, which did not see it running."""
    if seen.state is InstanceState.STOPPED:
        return run.seen_up is not None or run.started_since(seen.launched_at)
    return seen.state is not InstanceState.PENDING


def _never_up(run: Run, seen: Instance, terms: Terms) -> tuple[Outcome, str]:
    detail = f"{seen.id} did not come up within {terms.waits.up / 60:.0f} min: it is {seen.state}"
    if run.start_accepted is None and run.trouble:
        return Outcome.THROTTLED, f"{detail}; {run.trouble}"
    stayed = seen.state is InstanceState.STOPPED
    return Outcome.STAYED_STOPPED if stayed else Outcome.START_FAILED, detail


def claim_of(run: Run) -> Claim:
    return Claim(instance=run.instance, run=run.id, deadline=run.deadline)


def _intent(run: Run, terms: Terms) -> wire.Intent:
    return wire.Intent(
        run=run.id,
        scheduler=terms.scheduler,
        created=run.created,
        deadline=run.deadline,
        provider=run.provider,
        region=run.region,
        source=run.source,
        output=run.output,
        instances=run.instances,
        borrowed=run.borrowed,
        policy=run.policy,
        reason=run.reason,
        chunks=run.planned_chunks,
        audio_seconds=run.planned_audio_seconds,
        rate_micros=run.rate.per_hour.micros,
        rate_source=run.rate.source,
        rate_as_of=run.rate.as_of,
        instance_type=run.instance_type,
        own_type=run.own_type,
        launched_before=run.launched_before,
    )


def _borrow(run: Run, seen: Instance, now: datetime) -> Run:
    if seen.state is not InstanceState.RUNNING:
        return run.releasing(Outcome.START_FAILED, f"{seen.id} was to be used, but is {seen.state} now")
    provisioning = run.moved(RunState.PROVISIONING, start_requested=now, start_accepted=now)
    return provisioning.moved(
        RunState.DISPATCHING, running_since=now, running_until=now, seen_up=now, reaching_since=now
    )


def _claimed_by_another(world: World, run: Run, seen: Instance, now: datetime) -> bool:
    """A claim of another run that still counts; one of our own settled runs was only left behind."""
    if seen.run in {None, run.id} or (seen.deadline is not None and seen.deadline <= now):
        return False
    known = world.ledger.run(seen.run or "")
    return known is None or known.open


def _ask_for_start(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """One start call, where nobody else wants the instance by now."""
    now = world.clock.now()
    if run.start_accepted is not None and run.seen_up is None and now - run.start_accepted < START_LANDS:
        return run  # what the cloud shows may be older than our start
    if run.start_accepted is not None:
        reason = seen.state_reason or "the cloud gave no reason"
        detail = f"{seen.id} was started but is stopped again: {reason}"
        return keep(world, run.releasing(Outcome.STAYED_STOPPED, detail))
    if _claimed_by_another(world, run, seen, now):
        return keep(world, run.releasing(Outcome.ABANDONED, f"{seen.id} was claimed by run {seen.run}"))
    return _start(world, terms, run, seen)


def _start(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """A lost reply changes nothing here: the next look shows what it did."""
    now = world.clock.now()
    try:
        if run.wanted_type:
            return become_that_type(world, terms, run, seen)
        world.compute.start(claim_of(run))
    except NoCapacityError as error:
        return take_another_type(world, terms, run, error)
    except ComputeUnavailableError as error:
        log.warning("start not confirmed", run=run.id, error=str(error))
        return replace(run, trouble=str(error))
    # What an earlier start came to, whose reply was lost, is no end of this one.
    accepted = replace(run, start_accepted=world.clock.now(), idle_until=now, stopped=None)
    return keep(world, accepted, "start accepted")
