"""Teardown of every run: end worker, stop instance, disarm guard.

The stop depends on no answer of the store, the ledger or the worker. An instance that has another owner by
now is not touched, and is not reported as stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.alerts import alert
from batchscribe.controller.capacity import poll_one, update_offer, update_offer_if_changed
from batchscribe.controller.context import (
    START_VISIBILITY_DELAY,
    RunConfig,
    World,
    assume_started_if_tagged,
    is_late,
    log,
    poll_machines,
    read_moment,
    save,
    save_best_effort,
    try_action,
)
from batchscribe.controller.external_state import clean_up_external_state, record_external_state
from batchscribe.controller.follow import ensure_agent
from batchscribe.controller.records import read_exit
from batchscribe.controller.sharing.revocation import return_rest
from batchscribe.core.messages import Level
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.meter import Moment, Poll
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.errors import BatchscribeError, InterruptedRunError

SILENT_HOST = 120.0
"""Seconds until a borrowed host is handed back if it does not report whether our worker still runs."""

NO_WORKER = {Outcome.WORKER_LOST, Outcome.LAUNCH_FAILED}
"""Outcomes after which no worker has a window to finish."""

OLD_POLL = 60.0
"""Maximum age in seconds of a poll before a stop: the instance may have another owner since."""


def begin_teardown(world: World, run: Run) -> Run:
    """Asks workers that may still run to end; never raises."""
    now = read_moment(world)
    run = save_best_effort(world, replace(run, stop_requested=now), "stop due")
    if run.dispatched and run.work_ended is None:
        run = _ask_all_to_end(world, run)
        if not _is_recorded(world, run):
            # The next pass would restart the workers' grace period, and never stop: they get none.
            run = run.with_work_ended(now.at)
    return run


def _ask_all_to_end(world: World, run: Run) -> Run:
    """Asks the workers of all machines to end, and records their poll."""
    try:
        polls = poll_machines(world, run, run.machines)
        for name, poll in polls.items():
            if _may_act_on(run, run.machine(name), poll):
                run = _record_meter(world, run, run.machine(name), poll)
            _ask_to_end(world, run, poll.instance, force=False)
    except Exception as error:  # noqa: BLE001  the stop must follow any error
        log.warning("worker.cancel_failed", run=run.id, error=str(error))
    return run


def _is_recorded(world: World, run: Run) -> bool:
    try:
        recorded = world.ledger.run(run.id)
    except BatchscribeError:
        return False
    return recorded is not None and recorded.stop_requested is not None


def teardown(world: World, config: RunConfig, run: Run) -> Run:
    """Polls all machines, and makes at most one act on each."""
    since = run.stop_requested
    assert since is not None
    run = run if run.started else _check_tags(world, run)
    if not run.started:
        for machine in run.machines:
            run = run.with_machine(machine.id, meter=machine.meter.end(since), released=True)
        return _clean_up(world, run, "never started")
    run, notes, errors = _tear_down_each(world, config, run, run.machines)
    if all(machine.released for machine in run.machines):
        return _clean_up(world, run, "; ".join(notes))
    return _record_released(world, run, notes, errors)


def stop_idle(world: World, config: RunConfig, run: Run) -> Run:
    """Stops the machines whose work is over, and returns their rest."""
    if run.in_teardown or not any(machine.over and not machine.released for machine in run.machines):
        return run
    before = {machine.id for machine in run.machines if machine.released}
    idle = [machine for machine in run.machines if machine.over]
    run, notes, errors = _tear_down_each(world, config, run, idle)
    for machine in run.machines:
        if machine.released and machine.id not in before:
            run = return_rest(world, run, machine.id)
    return _record_released(world, run, notes, errors)


def _record_released(world: World, run: Run, notes: list[str], errors: list[Exception]) -> Run:
    if notes:
        run = save_best_effort(world, run, "; ".join(notes))
    if errors:
        raise errors[0]
    return run


def _tear_down_each(
    world: World, config: RunConfig, run: Run, machines: Iterable[Machine]
) -> tuple[Run, list[str], list[Exception]]:
    """Polls those that are held, with at most one act on each."""
    held = [machine for machine in machines if not machine.released]
    polls, errors, notes = poll_machines(world, run, held), list[Exception](), list[str]()
    for name, poll in polls.items():
        try:
            run, note = _tear_down_machine(world, config, run, run.machine(name), poll)
            notes += [f"{name}: {note}" if len(run.machines) > 1 else note] if note else []
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001  one machine must not prevent the stop of the others
            errors.append(error)
    return run, notes, errors


def _tear_down_machine(
    world: World, config: RunConfig, run: Run, machine: Machine, poll: Poll
) -> tuple[Run, str]:
    """Returns the run, and a note once the machine is released."""
    if not _may_act_on(run, machine, poll):
        if _may_become_ours(run, machine, poll):
            return run, ""
        return _leave_foreign(run, machine, poll)
    run = update_offer_if_changed(world, _record_meter(world, run, machine, poll), poll.instance)
    stays_up = run.borrowed or config.shared_machine
    if stays_up and not _is_work_over(world, config, run, poll):
        return run, ""
    if run.borrowed:
        return _mark_released(run, poll, "handed back running")
    return _stop_machine(world, config, run, poll, seen_down=machine.meter.stopped is not None)


def _check_tags(world: World, run: Run) -> Run:
    """Returns the run as started if its tag is on a machine."""
    try:
        for name, poll in poll_machines(world, run, run.machines).items():
            run = assume_started_if_tagged(run, run.machine(name), poll)
    except BatchscribeError as error:
        log.warning("tag.check_failed", run=run.id, error=str(error))
    return run


def _stop_machine(
    world: World, config: RunConfig, run: Run, poll: Poll, *, seen_down: bool
) -> tuple[Run, str]:
    """`seen_down`: an earlier poll showed the instance no longer running."""
    seen, now, machine = poll.instance, poll.answered, run.machine(poll.instance.id)
    meter, due = machine.meter, run.stop_due(machine)
    gone = seen.state is InstanceState.MISSING and meter.up_since is None
    if seen.state.proved_stopped or gone:
        if _may_still_start(run, machine, now):
            return run, ""
        # One answer may be wrong, and this one takes the guard away: two polls have to agree.
        if meter.ran and not seen_down and not poll_one(world, seen.id).state.proved_stopped:
            return run, ""
        return _mark_released(run, poll, "observed stopped")
    assert due is not None
    graced = now.is_within(timedelta(seconds=config.waits.grace), of=due)
    if seen.state.billable and graced and not _is_ended(world, run, seen):
        return run, ""
    if read_moment(world).seconds_since(now) >= OLD_POLL:
        return run, ""
    # Force only an instance that was observed stopping, however late it is.
    hangs = is_late(meter.stopped, now, config.waits.force_after)
    if hangs or seen.state in {InstanceState.RUNNING, InstanceState.PENDING, InstanceState.MISSING}:
        world.capacity.teardown(seen.id, force=hangs)
    return run, ""


def _mark_released(run: Run, poll: Poll, note: str) -> tuple[Run, str]:
    instance = poll.instance.id
    meter = run.machine(instance).meter.end(poll.answered)
    return run.with_machine(instance, meter=meter, released=True), note


def _may_act_on(run: Run, machine: Machine, poll: Poll) -> bool:
    """True if the run may act on the instance.

    Requires our tag on our own start, or no tag on a start known as ours: tags get lost. If the tag was
    emptied after our start, the claim was released: an instance that is up since then is foreign. Every
    instance with the name of a created machine is ours.
    """
    seen, meter = poll.instance, machine.meter
    if run.borrowed or run.creates_machines:
        return True
    again = not seen.state.proved_stopped and meter.is_started_again(seen.launched_at)
    if seen.run not in {None, run.id} or again:
        return False
    up = seen.state.billable or seen.state.moving
    if seen.run == run.id or not up:
        return True
    if run.adopted and seen.released:
        return False  # Its own scheduler released it after all, and only the tag gave us the right to act.
    if meter.launched is not None:
        return True
    released = seen.released and not _may_still_start(run, machine, poll.answered)
    return meter.start_accepted is not None and not released


def _may_become_ours(run: Run, machine: Machine, poll: Poll) -> bool:
    """True if the poll may be older than our start."""
    seen, now = poll.instance, poll.answered
    if machine.meter.launched is None and seen.run is None and _start_may_be_invisible(run, machine, now):
        return True
    return _may_still_start(run, machine, now) and not seen.state.billable


def _record_meter(world: World, run: Run, machine: Machine, poll: Poll) -> Run:
    """Returns the run with the machine's meter after the poll.

    Saved if the bill depends on it: a failed stop or a crash would lose it.
    """
    before = machine.meter
    lands, created = _may_still_start(run, machine, poll.answered), run.creates_machines
    meter = before.read(poll, ours=not created, lands=lands, created=created)
    run = run.with_machine(machine.id, meter=meter)
    bounds = (meter.up_since, meter.idle_until, meter.running_since, meter.stopped)
    same = bounds == (before.up_since, before.idle_until, before.running_since, before.stopped)
    if same and meter.shared_seconds == before.shared_seconds:
        return run
    return save_best_effort(world, run, f"{poll.instance.state} during teardown")


def _may_still_start(run: Run, machine: Machine, now: Moment) -> bool:
    """True if `stopped` may be older than our start.

    The start's reply may be lost: `stopped` is proof only once the instance was observed up, or the start had
    time to show.
    """
    return machine.meter.up_since is None and _start_may_be_invisible(run, machine, now)


def _start_may_be_invisible(run: Run, machine: Machine, now: Moment) -> bool:
    """True if polls may not show the last start request yet."""
    meter = machine.meter
    if meter.start_requested is None:
        return False
    refused = (machine.outcome or run.outcome) in {Outcome.NO_CAPACITY, Outcome.QUOTA}
    # Another offer of a created machine may have been accepted before, with a lost reply.
    if refused and meter.start_accepted is None and not run.creates_machines:
        return False
    # An unconfirmed start may have been requested again just before teardown.
    asked = meter.start_accepted or run.stop_due(machine) or meter.start_requested
    return now.is_within(START_VISIBILITY_DELAY, of=asked)


def _is_work_over(world: World, config: RunConfig, run: Run, poll: Poll) -> bool:
    """True if our worker left a machine that stays up; ends it."""
    seen = poll.instance
    number = run.last_worker_on(seen.id)
    if number is None:
        return True
    alive = world.launcher.alive(seen, run.name_of(number))
    if alive is None:
        ensure_agent(world, run, seen)
        _ask_to_end(world, run, seen, force=False)
        return is_late(run.stop_due(run.machine(seen.id)), poll.answered, SILENT_HOST)
    if alive and is_late(run.stop_due(run.machine(seen.id)), poll.answered, config.waits.grace):
        _ask_to_end(world, run, seen, force=True)
    return not alive


def _is_ended(world: World, run: Run, seen: Instance) -> bool:
    """True if the machine's worker has ended, or cannot be checked."""
    number = run.last_worker_on(seen.id)
    if not run.dispatched or number is None or run.workers[number].ended is not None:
        return True
    if NO_WORKER & {run.outcome, run.machine(seen.id).outcome}:
        return True
    worker = run.name_of(number)
    try:
        return world.launcher.alive(seen, worker) is False or read_exit(world, worker) is not None
    except BatchscribeError:
        return True


def _ask_to_end(world: World, run: Run, seen: Instance, *, force: bool) -> None:
    """Asks the machine's worker to finish, or kills it; never raises."""
    number = run.last_worker_on(seen.id)
    if number is None or run.workers[number].ended is not None or not seen.state.billable:
        return
    try:
        world.launcher.cancel(seen, run.name_of(number), force=force)
    except Exception as error:  # noqa: BLE001  the stop must follow any error
        log.warning("worker.cancel_failed", run=run.id, error=str(error))


def end_settled(world: World, run: Run, seen: Instance) -> None:
    """Ends a machine of a settled run, and bills it to that.

    The cloud showed it too late, or its run was closed manually. The clean-up corrects the stored settlement.
    """
    if seen.state is InstanceState.SHUTTING_DOWN:
        return
    try:
        world.capacity.teardown(seen.id)
    finally:
        # It may have been ended nevertheless, and would not show again.
        _bill_settled(world, run, seen)


def _bill_settled(world: World, run: Run, seen: Instance) -> None:
    if seen.id not in run.instances:
        # Its region did not answer when the run was taken over.
        run = replace(run, machines=(*run.machines, Machine(id=seen.id)))
    now, machine, shown = read_moment(world), run.machine(seen.id), update_offer(world, run, seen)
    begin = machine.meter.start_requested or Moment(min(run.created, seen.launched_at or run.created))
    since = machine.meter.running_since or begin
    meter = replace(machine.meter, start_requested=begin, running_since=since, stopped=now)
    meter = meter.count_others(seen, now.at)
    # The time of an earlier machine with this name may have cost more.
    rates = filter(None, (machine.rate, shown.machine(seen.id).rate))
    rate = max(rates, key=lambda rate: rate.per_hour, default=None)
    billed = shown.with_machine(seen.id, meter=meter, rate=rate)
    why = f"{seen.id} was {seen.state} after its run was settled: it is being ended, and was billed up to now"
    record_external_state(world, run)
    billed = save(world, replace(billed, cost=billed.bill()), why)
    try_action([], run, "no report was written", lambda: world.report(billed))
    alert(world, f"settled/{seen.id}", "batchscribe: a machine of a settled run", why, Level.FAILURE)


def _clean_up(world: World, run: Run, note: str) -> Run:
    """Cleans up after all machines were stopped or left to their owners."""
    clean_up_external_state(world, run)
    return save_best_effort(world, run.to_state(RunState.VERIFYING), note)


def _leave_foreign(run: Run, machine: Machine, poll: Poll) -> tuple[Run, str]:
    seen, meter = poll.instance, machine.meter
    owner = f"claimed by run {seen.run}" if seen.run else "in use by another owner"
    detail = f"{seen.id} is {seen.state} and {owner}: not touched"
    if meter.start_accepted is not None and meter.is_started_since(seen.launched_at):
        meter = replace(meter, up_since=meter.up_since or poll.answered)
    changed = replace(
        run.with_machine(seen.id, meter=meter),
        abandoned_gpu=True,
        outcome=run.outcome or Outcome.INSTANCE_LOST,
        detail="; ".join(filter(None, (run.detail, detail))),
    )
    return _mark_released(changed, poll, detail)
