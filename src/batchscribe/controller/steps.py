"""Steps of a run up to a running instance.

Each makes one poll and at most one act, records the changed run and returns it. A step that has to wait
returns it in the same state, and a later pass repeats it; so a crash between two steps is only a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from batchscribe.control_place import find_control_url
from batchscribe.controller.capacity import (
    choose_offer,
    take_another_offer,
    update_offer,
    update_offer_if_changed,
)
from batchscribe.controller.context import (
    START_VISIBILITY_DELAY,
    RunConfig,
    World,
    assume_started_if_tagged,
    end_machine,
    is_late,
    note_trouble,
    poll_machines,
    read_latest,
    read_moment,
    save,
    step_each,
)
from batchscribe.controller.dispatch import ensure_manifest, with_first_manifests
from batchscribe.controller.external_state import (
    leave_claims,
    own_type,
    read_claimed_launch,
    record_external_state,
)
from batchscribe.controller.follow import dispatch_and_follow, end_of_work
from batchscribe.controller.observe import foreign_claim
from batchscribe.controller.records import read_manifest, write_record
from batchscribe.controller.recovery import find_competing_run
from batchscribe.controller.teardown import stop_idle
from batchscribe.core import keys
from batchscribe.core.decide.offers import Offer
from batchscribe.core.decide.policy import INTENT_LASTS, Launch
from batchscribe.core.run.host import ClaimLaunch
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import digest
from batchscribe.core.run.meter import Meter, Moment, Poll
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.errors import (
    ComputeUnavailableError,
    CredentialsError,
    MisconfiguredError,
    NoCapacityError,
    TransientError,
)
from batchscribe.reading import is_stored

Act = Callable[[World, RunConfig, Run], Run]


def open_run(world: World, config: RunConfig, decision: Launch, seen: Sequence[Instance]) -> Run:
    """Records the run and its first manifests; its deadline counts from here.

    Without existing instances it names the machines to create: names that the cloud's tags will have.
    """
    now = world.clock.now()
    batch, offer, run_id = decision.batch, decision.offer, world.new_run_id(now)
    present = (seen[0].type or offer.instance_type) if seen else ""
    own = own_type(world, seen[0]) if seen else ""
    machines = [Machine(id=each.id, meter=Meter(launched_before=each.launched_at)) for each in seen]
    run = Run(
        id=run_id,
        scheduler=config.scheduler,
        host=config.host,
        provider=offer.provider,
        machines=tuple(machines or [Machine(id=f"{run_id}-{n}") for n in range(decision.machines)]),
        region=config.region,
        further_regions=config.further_regions,
        source=world.source.url,
        output=world.output.url,
        guard=config.guard,
        control=find_control_url(world.home),
        lane=decision.lane,
        borrowed=decision.borrowed,
        policy="by hand" if config.policy.manual else config.policy.name.value,
        reason=decision.reason.sentence,
        created=now,
        deadline=now + config.policy.max_runtime,
        rate=offer.rate,
        instance_type=offer.instance_type,
        wanted_type="" if offer.name == present else offer.name,
        # An earlier run may have left the type in force: this one restores its own, too.
        chosen_type="" if offer.instance_type == (own or present) or not seen else offer.instance_type,
        own_type=own,
        by_hand=config.policy.manual,
        limit=config.policy.limit,
        planned_chunks=len(batch.chunks),
        planned_audio_seconds=batch.estimate.audio_seconds,
        planned_seconds=batch.estimate.seconds * batch.estimate.machines,
    )
    run = with_first_manifests(world, config, run, batch.chunks, offer.priors)
    return save(world, run, decision.reason.sentence)


def arm(world: World, config: RunConfig, run: Run) -> Run:
    """Stores the run's record and manifests, and arms each machine's guard.

    If any of these fails, nothing is started.
    """
    for machine in run.machines:
        if run.last_worker_on(machine.id) is not None:
            run = ensure_manifest(world, config, run, machine.id)
    if run.machines[0].over:
        run = save(world, run.to_teardown(None, "nothing was left to do"))
    if run.in_teardown:
        return run
    write_record(world, run)
    if run.creates_machines and (other := find_competing_run(world, config, run.id)):
        return save(world, run.to_teardown(Outcome.ABANDONED, f"{other}; nothing was requested"))
    if run.borrowed:
        return save(world, run.to_state(RunState.ARMED), "no guard: the instance was running before the run")
    record_external_state(world, run)
    for instance in run.instances:
        world.guard.arm(claim_of(run, instance))
    return save(world, run.to_state(RunState.ARMED), f"guard: {world.guard.description}")


def record_starts(world: World, config: RunConfig, run: Run) -> Run:
    """Records the coming start requests once all machines are free."""
    polls = poll_machines(world, run, run.machines)
    if len(polls) < len(run.machines):
        return run
    if run.borrowed:
        return _borrow_instances(world, config, run, polls)
    ready, recovered = run, False
    for machine in run.machines:
        poll = polls[machine.id]
        state, now = poll.instance.state, poll.answered
        tagged = assume_started_if_tagged(ready, machine, poll)
        if tagged is not ready:
            ready, recovered = tagged, True
        elif why := _find_refusal(world, run, poll.instance, now.at):
            return save(world, run.to_teardown(Outcome.ABANDONED, why))
        elif state is InstanceState.STOPPING:
            return run
        elif state is InstanceState.STOPPED:
            ready = ready.with_machine(machine.id, meter=machine.meter.request_start(poll))
        else:
            return save(world, run.to_teardown(Outcome.START_FAILED, f"{machine.id} is {state}"))
    launch = read_claimed_launch(world, run) if recovered else leave_claims(world, config, run)
    note = "its tag is on the instance already" if recovered else "about to start"
    return save(world, replace(ready, launch=launch).to_state(RunState.PROVISIONING), note)


def _find_refusal(world: World, run: Run, seen: Instance, now: datetime) -> str:
    """Reason why this run must no longer start the instance, or empty."""
    if now - run.created >= INTENT_LASTS:
        return f"{seen.id} was not free for too long"
    if _claimed_by_another(world, run, seen, now):
        return f"{seen.id} was claimed by run {seen.run}"
    if seen.state.billable or seen.state is InstanceState.PENDING:
        return f"{seen.id} was started from outside"
    return ""


def start_machines(world: World, config: RunConfig, run: Run) -> Run:
    """Requests the starts, and polls until the first machine runs."""
    run = _act_each(world, config, run, (request_starts, stop_idle))
    if run.in_teardown or len(run.awaited) == len(run.working):
        return run
    return save(world, run.to_state(RunState.DISPATCHING), "observed running")


def request_starts(world: World, config: RunConfig, run: Run) -> Run:
    """Makes the next request for each machine not observed up yet."""
    polls = poll_machines(world, run, run.awaited) if run.awaited else {}

    def act(run: Run, machine: Machine) -> Run:
        return _advance_start(world, config, run, machine, polls[machine.id])

    awaited = [machine for machine in run.awaited if machine.id in polls]
    return step_each(world, run, awaited, act, Outcome.START_FAILED)


def work(world: World, config: RunConfig, run: Run) -> Run:
    """Advances each of several machines by its own next act."""
    return _act_each(world, config, run, (request_starts, dispatch_and_follow, stop_idle))


def _act_each(world: World, config: RunConfig, run: Run, acts: Iterable[Act]) -> Run:
    """Takes acts on different machines; raises a transient error only afterwards."""
    failed: TransientError | None = None
    for act in acts:
        try:
            run = act(world, config, run)
        except TransientError as error:
            run, failed = read_latest(world, run), failed or error
        if run.in_teardown:
            return run
    if failed:
        raise failed
    return run


def _advance_start(world: World, config: RunConfig, run: Run, machine: Machine, poll: Poll) -> Run:
    seen, now, meter = poll.instance, poll.answered, machine.meter
    created = run.creates_machines
    if meter.is_started_again(seen.launched_at) and seen.state is not InstanceState.STOPPED:
        detail = f"{seen.id} came up, was stopped, and was started again from outside"
        return end_machine(world, run, seen.id, Outcome.INSTANCE_LOST, detail)
    up = seen.state is InstanceState.RUNNING and seen.run == run.id
    # Until it is observed up, `stopped` may be older than the start.
    ours = not created and (up or _is_our_start(run, meter, poll))
    meter = meter.read(poll, ours=ours, lands=True, created=created)
    run = update_offer_if_changed(world, run.with_machine(seen.id, meter=meter), seen)
    if up:
        return _observe_up(world, run, poll)
    if is_late(meter.start_requested, now, config.waits.up):
        return end_machine(world, run, seen.id, *_explain_timeout(run, meter, seen, config))
    if seen.state is InstanceState.STOPPED or (created and seen.state.proved_stopped):
        return _check_then_start(world, config, save(world, run), seen)
    tag_lags = seen.run is None and not is_late(meter.idle_until, now, START_VISIBILITY_DELAY.total_seconds())
    if seen.state.moving or (seen.state.billable and tag_lags):
        return save(world, run)
    detail = f"{seen.id} is {seen.state}, without this run's tag"
    return end_machine(world, run, seen.id, Outcome.START_FAILED, detail)


def _observe_up(world: World, run: Run, poll: Poll) -> Run:
    """Returns the run with a machine observed running under its tag."""
    seen, now = poll.instance, poll.answered
    meter = run.machine(seen.id).meter
    # A second instance with the name of a created machine is ours, too: it is billed and stopped with it.
    launched = None if run.creates_machines else seen.launched_at
    meter = replace(meter, start_accepted=meter.start_accepted or now, launched=launched)
    up = update_offer(world, run, seen).with_machine(seen.id, reaching_since=now, meter=meter)
    return up if len(run.machines) == 1 else save(world, up)


def _is_our_start(run: Run, meter: Meter, poll: Poll) -> bool:
    """True if this poll shows our own start: later launches are foreign."""
    accepted = meter.start_accepted
    old_enough = accepted is not None and not poll.answered.is_within(START_VISIBILITY_DELAY, of=accepted)
    return old_enough and poll.instance.run == run.id and meter.is_started_since(poll.instance.launched_at)


def _explain_timeout(run: Run, meter: Meter, seen: Instance, config: RunConfig) -> tuple[Outcome, str]:
    detail = f"{seen.id} did not come up within {config.waits.up / 60:.0f} min: it is {seen.state}"
    if meter.start_accepted is None and run.trouble:
        return Outcome.THROTTLED, f"{detail}; {run.trouble}"
    stayed = seen.state is InstanceState.STOPPED
    return Outcome.STAYED_STOPPED if stayed else Outcome.START_FAILED, detail


def claim_of(run: Run, instance: str) -> Claim:
    return Claim(instance=instance, run=run.id, deadline=run.deadline)


def _borrow_instances(world: World, config: RunConfig, run: Run, polls: Mapping[str, Poll]) -> Run:
    """Bills instances from now on, once all of them run already."""
    borrowed = replace(run, launch=leave_claims(world, config, run))
    for name, poll in polls.items():
        state, now = poll.instance.state, poll.answered
        if state is InstanceState.PENDING and now.at - run.created < INTENT_LASTS:
            return run
        if state is not InstanceState.RUNNING:
            detail = f"{name} was running, but is {state} now"
            return save(world, borrowed.to_teardown(Outcome.START_FAILED, detail), f"instance is {state}")
        meter = run.machine(name).meter.borrow(now)
        borrowed = borrowed.with_machine(name, meter=meter, reaching_since=now)
    borrowed = borrowed.to_state(RunState.PROVISIONING).to_state(RunState.DISPATCHING)
    return save(world, borrowed, f"instance is {InstanceState.RUNNING}")


def _claimed_by_another(world: World, run: Run, seen: Instance, now: datetime) -> bool:
    """True if another scheduler, or another open run, has a valid claim."""
    known = world.ledger.run(seen.run) if seen.run and seen.run != run.id else None
    if known is None or not known.open:
        return seen.run != run.id and foreign_claim(world, seen, now) is not None
    return seen.deadline is None or now < seen.deadline


def _check_then_start(world: World, config: RunConfig, run: Run, seen: Instance) -> Run:
    """Makes one start call, unless another run has claimed the instance."""
    now, meter = read_moment(world), run.machine(seen.id).meter
    accepted = meter.start_accepted
    if accepted is not None and meter.up_since is None and now.is_within(START_VISIBILITY_DELAY, of=accepted):
        return run  # the answer may be older than our start
    if accepted is not None:
        return end_machine(world, run, seen.id, *_explain_stop(world, run, seen))
    if _claimed_by_another(world, run, seen, now.at):
        detail = f"{seen.id} was claimed by run {seen.run}"
        return end_machine(world, run, seen.id, Outcome.ABANDONED, detail)
    if is_stored(world.output, keys.settlement(run.id)):
        # Our ledger could not be written meanwhile, or another scheduler took the run over and disarmed its
        # guard: a run with any settlement is not started again.
        return save(world, run.to_teardown(Outcome.INTERRUPTED, "its settlement is stored already"))
    return _request_start(world, config, run, seen, now)


def _find_announced_hash(world: World, run: Run, instance: str) -> str:
    """Manifest hash for a host that begins work at boot, else empty."""
    number = run.last_worker_on(instance)
    if number is None or run.launch != ClaimLaunch.BOOT:
        return ""
    return digest(read_manifest(world, run, number))


def _explain_stop(world: World, run: Run, seen: Instance) -> tuple[Outcome | None, str]:
    """Outcome of a stop after our start, with or without work done."""
    if worked := end_of_work(world, run, seen.id):
        return worked
    reason = seen.state_reason or "the cloud gave no reason"
    return Outcome.STAYED_STOPPED, f"{seen.id} was started but is stopped again: {reason}"


def _request_start(world: World, config: RunConfig, run: Run, seen: Instance, asked: Moment) -> Run:
    """Requests the start, or a change of type.

    After a lost reply, a created machine repeats this offer, and an existing one is polled again.
    """
    if run.wanted_type and seen.type == run.wanted_type and not run.creates_machines:
        changed = replace(update_offer(world, run, seen), wanted_type="")
        return save(world, changed, f"the instance is {seen.type}")
    offer: Offer | None = None
    try:
        offer = choose_offer(world, config, run, seen)
        claim = replace(claim_of(run, seen.id), manifest=_find_announced_hash(world, run, seen.id))
        if not world.capacity.acquire(claim, offer, seen):
            return run
    except NoCapacityError as error:
        return _take_refusal(world, config, run, seen, error)
    except ComputeUnavailableError as error:
        if run.creates_machines and offer is not None:
            run = save(world, _record_requested_offer(run, seen.id, offer, unconfirmed=read_moment(world)))
        return note_trouble(world, run, str(error), event="start.unconfirmed")
    except MisconfiguredError as error:
        if isinstance(error, CredentialsError) or not run.wanted_type or run.creates_machines:
            raise
        return take_another_offer(world, config, run, seen, NoCapacityError(str(error)))
    meter = run.machine(seen.id).meter.accept_start(asked, read_moment(world))
    accepted = replace(run, trouble="").with_machine(seen.id, meter=meter)
    if run.creates_machines:
        accepted = _record_requested_offer(accepted, seen.id, offer)
    return save(world, accepted, "start accepted")


def _record_requested_offer(
    run: Run, instance: str, offer: Offer, *, unconfirmed: Moment | None = None
) -> Run:
    """The run with the offer that was requested for a created machine."""
    return run.with_machine(
        instance,
        type=offer.instance_type,
        market=offer.market.value,
        region=offer.region,
        rate=offer.rate,
        unconfirmed=unconfirmed,
    )


def _take_refusal(world: World, config: RunConfig, run: Run, seen: Instance, error: NoCapacityError) -> Run:
    """Takes another offer, once polls would show a start without reply."""
    unconfirmed = run.machine(seen.id).unconfirmed
    if unconfirmed is None:
        return take_another_offer(world, config, run, seen, error)
    if read_moment(world).is_within(START_VISIBILITY_DELAY, of=unconfirmed):
        return run
    free = run.with_machine(seen.id, type="", market="", region="", rate=None, unconfirmed=None)
    return save(world, free, str(error))
