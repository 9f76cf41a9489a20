"""Steps of a run up to a running instance.

Each makes one poll and at most one act, records the changed run and returns it. A step that has to wait
returns it in the same state, and a later pass repeats it; so a crash between two steps is only a pause.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from batchscribe.control_place import control_of
from batchscribe.controller.capacity import choose_offer, take_another_offer, with_type
from batchscribe.controller.context import (
    START_LANDS,
    Terms,
    World,
    is_late,
    log,
    moment,
    poll_instance,
    save,
)
from batchscribe.controller.dispatch import ensure_manifest, with_manifest
from batchscribe.controller.external_state import launch_left, leave_claim, note_down, own_type
from batchscribe.controller.follow import end_of_work
from batchscribe.controller.observation import read_tag
from batchscribe.controller.records import read_manifest, read_settlement, write_record
from batchscribe.core.decide.policy import INTENT_LASTS, Launch
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import digest
from batchscribe.core.run.meter import Meter, Moment, Poll
from batchscribe.core.run.runs import Outcome, Run, RunState
from batchscribe.errors import ComputeUnavailableError, CredentialsError, MisconfiguredError, NoCapacityError


def open_run(world: World, terms: Terms, decision: Launch, seen: Instance) -> Run:
    """Records the run and its manifest in the ledger. The deadline counts from here."""
    now = world.clock.now()
    batch = decision.batch
    run = Run(
        id=world.new_run_id(now),
        scheduler=terms.scheduler,
        host=terms.host,
        provider=decision.offer.provider,
        instances=terms.instances,
        region=terms.region,
        source=world.source.url,
        output=world.output.url,
        guard=terms.guard,
        control=control_of(world.home),
        borrowed=decision.borrowed,
        policy="by hand" if terms.policy.by_hand else terms.policy.name.value,
        reason=decision.reason.sentence,
        created=now,
        deadline=now + terms.policy.max_runtime,
        rate=decision.offer.rate,
        instance_type=decision.offer.instance_type,
        own_type=own_type(world, seen),
        meter=Meter(launched_before=seen.launched_at),
        by_hand=terms.policy.by_hand,
        limit=terms.policy.limit,
        planned_chunks=len(batch.chunks),
        planned_audio_seconds=batch.estimate.audio_seconds,
        planned_seconds=batch.estimate.seconds,
    )
    return save(world, with_manifest(world, terms, run, batch.chunks), decision.reason.sentence)


def arm(world: World, terms: Terms, run: Run) -> Run:
    """Stores the run's record and manifest, then arms the guard.

    If any of these fails, nothing is started.
    """
    run = ensure_manifest(world, terms, run)
    if run.ending:
        return run
    write_record(world, run)
    if run.borrowed:
        return save(world, run.moved(RunState.ARMED), "no guard: the instance was running before the run")
    note_down(world, run)
    world.guard.arm(claim_of(run))
    return save(world, run.moved(RunState.ARMED), f"guard: {world.guard.description}")


def provision(world: World, terms: Terms, run: Run) -> Run:
    """Records the coming start request once the instance is free."""
    poll = poll_instance(world, run)
    state, now = poll.instance.state, poll.answered
    if run.borrowed and state is InstanceState.PENDING and now.at - run.created < INTENT_LASTS:
        return run
    if run.borrowed:
        run = replace(run, launch=leave_claim(world, terms, run))
        return save(world, _borrow_instance(run, poll), f"instance is {state}")
    if (tagged := read_tag(run, poll)).started:
        launched = replace(tagged, launch=launch_left(world, run))
        return save(world, launched.moved(RunState.PROVISIONING), "its tag is on the instance already")
    if why := _refusal_reason(world, run, poll.instance, now.at):
        return save(world, run.releasing(Outcome.ABANDONED, why))
    return _provision_own(world, terms, run, poll)


def _provision_own(world: World, terms: Terms, run: Run, poll: Poll) -> Run:
    match poll.instance.state:
        case InstanceState.STOPPING:
            return run
        case InstanceState.STOPPED:
            run = replace(run, launch=leave_claim(world, terms, run))
            requested = run.moved(RunState.PROVISIONING, meter=run.meter.request_start(poll))
            return save(world, requested, "about to start")
        case _:
            detail = f"{run.instance} is {poll.instance.state}"
            return save(world, run.releasing(Outcome.START_FAILED, detail))


def _refusal_reason(world: World, run: Run, seen: Instance, now: datetime) -> str:
    """Reason why this run must no longer start the instance. Empty if it may."""
    if now - run.created >= INTENT_LASTS:
        return f"{seen.id} was not free for too long"
    if _claimed_by_another(world, run, seen, now):
        return f"{seen.id} was claimed by run {seen.run}"
    if seen.state.billable or seen.state is InstanceState.PENDING:
        return f"{seen.id} was started from outside"
    return ""


def await_running(world: World, terms: Terms, run: Run) -> Run:
    """Requests the start until accepted, then polls until the instance runs."""
    poll = poll_instance(world, run)
    seen, now = poll.instance, poll.answered
    if run.meter.is_started_again(seen.launched_at) and seen.state is not InstanceState.STOPPED:
        detail = f"{seen.id} came up, was stopped, and was started again from outside"
        return save(world, run.releasing(Outcome.INSTANCE_LOST, detail))
    up = seen.state is InstanceState.RUNNING and seen.run == run.id
    # Until it is observed up, `stopped` may be older than the start.
    run = replace(run, meter=run.meter.read(poll, ours=up or _is_our_start(run, poll), lands=True))
    if up:
        return save(world, _observe_up(world, run, poll), "observed running")
    if is_late(run.meter.start_requested, now, terms.waits.up):
        return save(world, run.releasing(*_start_timeout(run, seen, terms)))
    if seen.state is InstanceState.STOPPED:
        return _ask_for_start(world, terms, save(world, run), seen)
    tag_lags = seen.run is None and not is_late(run.meter.idle_until, now, START_LANDS.total_seconds())
    if seen.state.moving or (seen.state.billable and tag_lags):
        return save(world, run)
    return save(
        world, run.releasing(Outcome.START_FAILED, f"{seen.id} is {seen.state}, without this run's tag")
    )


def _observe_up(world: World, run: Run, poll: Poll) -> Run:
    """Returns the run with its instance observed running under its tag."""
    seen, now = poll.instance, poll.answered
    accepted = run.meter.start_accepted or now
    meter = replace(run.meter, start_accepted=accepted, launched=seen.launched_at)
    return with_type(world, run, seen).moved(RunState.DISPATCHING, reaching_since=now, meter=meter)


def _is_our_start(run: Run, poll: Poll) -> bool:
    """True if this poll, however old, shows our own start. Any later launch is then foreign."""
    accepted = run.meter.start_accepted
    old_enough = accepted is not None and not poll.answered.is_within(START_LANDS, of=accepted)
    return (
        old_enough and poll.instance.run == run.id and run.meter.is_started_since(poll.instance.launched_at)
    )


def _start_timeout(run: Run, seen: Instance, terms: Terms) -> tuple[Outcome, str]:
    detail = f"{seen.id} did not come up within {terms.waits.up / 60:.0f} min: it is {seen.state}"
    if run.meter.start_accepted is None and run.trouble:
        return Outcome.THROTTLED, f"{detail}; {run.trouble}"
    stayed = seen.state is InstanceState.STOPPED
    return Outcome.STAYED_STOPPED if stayed else Outcome.START_FAILED, detail


def claim_of(run: Run) -> Claim:
    return Claim(instance=run.instance, run=run.id, deadline=run.deadline)


def _borrow_instance(run: Run, poll: Poll) -> Run:
    if poll.instance.state is not InstanceState.RUNNING:
        detail = f"{run.instance} was running, but is {poll.instance.state} now"
        return run.releasing(Outcome.START_FAILED, detail)
    provisioning = run.moved(RunState.PROVISIONING, meter=run.meter.borrow(poll.answered))
    return provisioning.moved(RunState.DISPATCHING, reaching_since=poll.answered)


def _claimed_by_another(world: World, run: Run, seen: Instance, now: datetime) -> bool:
    """True if another run's claim is valid. A leftover claim of our own settled run is not."""
    if seen.run in {None, run.id} or (seen.deadline is not None and seen.deadline <= now):
        return False
    known = world.ledger.run(seen.run or "")
    return known is None or known.open


def _ask_for_start(world: World, terms: Terms, run: Run, seen: Instance) -> Run:
    """Makes one start call, unless another run has claimed the instance."""
    now, accepted = moment(world), run.meter.start_accepted
    if accepted is not None and run.meter.up_since is None and now.is_within(START_LANDS, of=accepted):
        return run  # the answer may be older than our start
    if accepted is not None:
        return save(world, _stopped_again(world, run, seen))
    if _claimed_by_another(world, run, seen, now.at):
        return save(world, run.releasing(Outcome.ABANDONED, f"{seen.id} was claimed by run {seen.run}"))
    if read_settlement(world, run) is not None:
        # The ledger could not be written meanwhile: a settled run is not started again.
        return save(world, run.releasing(Outcome.INTERRUPTED, "its settlement is stored already"))
    return _request_start(world, terms, run, seen, now)


def _announced_hash(world: World, run: Run) -> str:
    """Manifest hash if the host begins work at boot. Empty if started over ssh."""
    return digest(read_manifest(world, run)) if run.launch == ClaimLaunch.BOOT else ""


def _stopped_again(world: World, run: Run, seen: Instance) -> Run:
    """Moves the run to teardown. Its host did all its work between two passes, or it never came up."""
    if worked := end_of_work(world, run):
        return run.releasing(*worked)
    reason = seen.state_reason or "the cloud gave no reason"
    return run.releasing(Outcome.STAYED_STOPPED, f"{seen.id} was started but is stopped again: {reason}")


def _request_start(world: World, terms: Terms, run: Run, seen: Instance, asked: Moment) -> Run:
    """Makes the start call. After a lost reply, the next poll shows its result."""
    if run.wanted_type and seen.type == run.wanted_type:
        changed = replace(with_type(world, run, seen), wanted_type="")
        return save(world, changed, f"the instance is {seen.type}")
    try:
        offer = choose_offer(world, terms, run, seen)
        claim = replace(claim_of(run), manifest=_announced_hash(world, run))
        if not world.capacity.acquire(claim, offer, seen):
            return run
    except NoCapacityError as error:
        return take_another_offer(world, terms, run, seen, error)
    except ComputeUnavailableError as error:
        log.warning("start not confirmed", run=run.id, error=str(error))
        return save(world, replace(run, trouble=str(error)))
    except MisconfiguredError as error:
        if isinstance(error, CredentialsError) or not run.wanted_type:
            raise
        return take_another_offer(world, terms, run, seen, NoCapacityError(str(error)))
    meter = run.meter.accept_start(asked, moment(world))
    return save(world, replace(run, meter=meter), "start accepted")
