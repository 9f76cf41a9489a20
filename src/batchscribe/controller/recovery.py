"""Recovers runs that the ledger lost, from store and instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from batchscribe.control_place import find_control_url
from batchscribe.controller.alerts import alert, alert_conflict
from batchscribe.controller.capacity import find_rate, update_offer
from batchscribe.controller.context import (
    RunConfig,
    World,
    log,
    poll_machines,
    save,
)
from batchscribe.controller.external_state import (
    read_claimed_launch,
    read_instance_record,
    record_external_state,
)
from batchscribe.controller.records import (
    list_records,
    read_boot,
    read_record,
    read_settlement,
    recover_workers,
)
from batchscribe.controller.rehearsal_place import find_run_world, is_rehearsal
from batchscribe.controller.teardown import end_settled
from batchscribe.core import keys
from batchscribe.core.messages import Level
from batchscribe.core.run.instances import DEADLINE_TAG, GUARD_LAST, MACHINE_TAG, Instance, InstanceState
from batchscribe.core.run.meter import Meter, Moment, Poll
from batchscribe.core.run.other_scheduler import FIX, OtherScheduler
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import ADOPTED, Machine, Run, RunState
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    InterruptedRunError,
    MisconfiguredError,
    ObjectNotFoundError,
    RefusedError,
    combine_errors,
)
from batchscribe.ledger import Ledger

OVERDUE = timedelta(minutes=5)
"""Time after a run's deadline that its own scheduler has to stop it."""
FOREIGN = "foreign/"
"""Ledger facts: runs in the store that are not ours to recover; their records are read once."""
UNREADABLE = "unreadable"
OTHER = "other-scheduler"
"""Ledger fact: the last run of another scheduler on the same source."""


def recover(world: World, config: RunConfig) -> tuple[BatchscribeError, ...]:
    """Restores runs that are in the store but not in the ledger.

    Runs of this scheduler that the ledger lost are open again, or settled by their stored settlement. An open
    run with a stored settlement (its ledger could not be written) goes to teardown: the store never proves
    that an instance is stopped. Neither starts an instance again. Returns the errors of `adopt_overdue`; it
    follows also if runs cannot be polled, then raises all errors as one.
    """
    stored = tuple(list_records(world))
    settled = {run_id for _, run_id, name in stored if name == "settlement.json"}
    for run in world.ledger.open_runs():
        if run.id in settled and not run.in_teardown:
            save(world, run.to_teardown(Outcome.INTERRUPTED, "its settlement is stored already"))
    foreign, failures = _list_foreign(world, config), list[BatchscribeError]()
    for place, run_id, name in stored:
        if name == "intent.json" and run_id not in foreign and world.ledger.run(run_id) is None:
            try:
                _recover_run(place, config, run_id)
            except (ComputeUnavailableError, MisconfiguredError) as error:
                failures.append(error)
    errors = adopt_overdue(world, config)
    if failures:
        raise combine_errors((*failures, *errors)) from failures[0]
    return errors


def _list_foreign(world: World, config: RunConfig) -> set[str]:
    """Runs in the store that are known not to be ours.

    An unreadable record is read again while one of our instances has its tag: the answer may have been
    damaged, and the run may be ours.
    """
    facts = world.ledger.facts(FOREIGN)
    foreign = {key.removeprefix(FOREIGN) for key in facts}
    if UNREADABLE in facts.values():
        tagged = {seen.run for seen in poll_all(world, config)[0]}
        foreign -= {run_id for run_id in tagged if run_id and facts.get(f"{FOREIGN}{run_id}") == UNREADABLE}
    return foreign


def poll_all(world: World, config: RunConfig) -> tuple[tuple[Instance, ...], tuple[BatchscribeError, ...]]:
    """Polls the existing instances, and the machines that any runs created.

    A region without an answer keeps no machine of another one running: its error is returned, or raised if
    none has any.
    """
    seen = [*world.capacity.poll(config.instances)] if config.instances else []
    try:
        seen.extend(world.capacity.list_created())
    except (ComputeUnavailableError, MisconfiguredError) as error:
        if not seen:
            raise
        return tuple(seen), (error,)
    return tuple(seen), ()


def adopt_overdue(world: World, config: RunConfig) -> tuple[BatchscribeError, ...]:
    """Takes over foreign overdue runs, and ends machines of settled ones.

    Only the instance's own tag proves that: a record in the store alone never stops anything. Returns the
    errors: one machine that cannot be taken over prevents nothing else, nor does a region without an answer.
    """
    if config.shared_machine:
        return ()
    polled, silent = poll_all(world, config)
    errors = [*silent]
    for seen in polled:
        try:
            _end_unneeded(world, config, seen)
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            text = f"{seen.id} is {seen.state}: {error}"
            key = f"not-adopted/{seen.id}"
            alert(world, key, "batchscribe: a machine could not be taken over", text, Level.FAILURE)
            errors.append(error)
    return tuple(errors)


def _end_unneeded(world: World, config: RunConfig, seen: Instance) -> None:
    """Ends an instance's overdue foreign run, or a settled run's machine."""
    # A stop that hangs counts, too: it has to be forced.
    if seen.run is None or seen.state.proved_stopped:
        return
    run = world.ledger.run(seen.run)
    if run is not None:
        if not run.open and run.creates_machines and MACHINE_TAG in seen.tags:
            end_settled(world, run, seen)
        return
    if seen.deadline is None and MACHINE_TAG in seen.tags:
        text = (
            f"{seen.id} is {seen.state} for run {seen.run}, which is unknown here; its tag {DEADLINE_TAG} is "
            "not a time. It was not touched: end it in the cloud's console if no other scheduler uses it"
        )
        alert(world, f"no-deadline/{seen.id}", "batchscribe: a machine without a deadline", text)
    late = seen.deadline is not None and world.clock.now() >= seen.deadline + OVERDUE
    reused = seen.deadline and seen.launched_at and seen.launched_at > seen.deadline
    # Such an instance was started for another user, who left the tag of a run that is over.
    if late and (MACHINE_TAG in seen.tags or not reused):
        why = (
            f"{seen.id} was {seen.state} after the deadline of run {seen.run}, and its own scheduler did "
            "not stop it"
        )
        run = adopt_run(world, config, seen.run, Outcome.TIMED_OUT, why)
        why += "" if run.rate.per_hour.micros else f". Its bill is unknown: {run.rate.source}"
        key = f"adopted/{seen.run}"
        alert(world, key, "batchscribe: an abandoned run is being stopped", why, Level.FAILURE)


def adopt_run(world: World, config: RunConfig, run_id: str, outcome: Outcome, why: str) -> Run:
    """Takes over another scheduler's run and tears it down; results stay.

    Raises RefusedError if no instance's tag names it, and what the cloud raises if not all were listed.
    """
    found, silent = poll_all(world, config)
    tagged = [seen for seen in found if seen.run == run_id]
    if not tagged:
        if silent:
            raise combine_errors(silent)
        others = ", ".join(f"{seen.id} with {seen.run or 'none'}" for seen in found)
        raise RefusedError(
            f"no instance is tagged with run {run_id} ({others or 'none exists'}): not touched"
        )
    run = _reopen_run(world, _build_foreign_run(world, config, run_id, tagged)).to_teardown(outcome, why)
    record_external_state(world, run)
    return save(world, run, "adopted")


def _build_foreign_run(world: World, config: RunConfig, run_id: str, tagged: Sequence[Instance]) -> Run:
    """Builds the run from cloud and settings; its record names the scheduler."""
    seen = tagged[0]
    launches = [each.launched_at for each in tagged if each.launched_at]
    created = min(launches, default=world.clock.now() - config.policy.max_runtime)
    run = Run(
        id=run_id,
        provider=config.provider,
        region=config.region,
        further_regions=config.further_regions,
        machines=tuple(Machine(id=each.id) for each in tagged),
        source=world.source.url,
        output=world.output.url,
        control=find_control_url(world.home),
        policy=ADOPTED,
        reason="adopted from another scheduler",
        created=created,
        deadline=seen.deadline or world.clock.now(),
        rate=find_rate(world, seen),
        instance_type=seen.type,
    )
    try:
        record, _ours = read_record(world, run_id)
    except (ObjectNotFoundError, MisconfiguredError):
        return run
    return replace(run, scheduler=record.scheduler, host=record.host)


def _recover_run(world: World, config: RunConfig, run_id: str) -> None:
    try:
        record, sealed = read_record(world, run_id)
    except ObjectNotFoundError:
        return
    except MisconfiguredError as error:
        log.warning("run.unreadable", run=run_id, error=str(error))
        world.ledger.put(f"{FOREIGN}{run_id}", UNREADABLE)
        return
    config = config.of(record)
    if not _is_at_present_place(record, config, run_id, world):
        world.ledger.put(f"{FOREIGN}{run_id}", record.deadline.isoformat())
        _note_other_scheduler(world, config, record)
        return
    if not sealed:
        alert_conflict(world, keys.intent(run_id))
        world.ledger.put(f"{FOREIGN}{run_id}", "not sealed")
        return
    world = find_run_world(world, config, record)
    seen = world.capacity.poll(record.instances)
    run = _apply_type(world, _restore_stored(world, record), seen[0])
    may_be_left = not run.borrowed and (run.open or world.clock.now() < run.deadline + GUARD_LAST)
    if may_be_left or run.id in {each.run for each in seen}:
        # The record of its external state was lost with the ledger.
        record_external_state(world, run)
    save(world, run, "recovered from the store")


def find_competing_run(world: World, config: RunConfig, run_id: str = "") -> str:
    """Sentence about an unknown run that may create machines for this source.

    No tag of an instance decides between two such runs, so the records in the store do. Only another
    scheduler can check the seal of its record: a forged one holds starts back, with an alert, as long as it
    is recent.
    """
    stored = {(key, name) for _, key, name in list_records(world)}
    now, here = world.clock.now(), world.source.url.rstrip("/")
    for other, name in sorted(stored):
        if name != "intent.json" or other == run_id or (other, "settlement.json") in stored:
            continue
        if world.ledger.run(other) is not None:
            continue
        try:
            record, sealed = read_record(world, other)
        except (ObjectNotFoundError, MisconfiguredError):
            continue
        forged = bool(world.secret) and not sealed and _is_opened_here(record, config)
        valid = now < record.deadline + GUARD_LAST and OtherScheduler.of(record).is_recent(now)
        if record.creates_machines and record.source.rstrip("/") == here and valid and not forged:
            return OtherScheduler.of(record).sentence
    return ""


def find_other_scheduler(ledger: Ledger, now: datetime) -> OtherScheduler | None:
    """Returns the scheduler that lately worked on the source, as recorded."""
    noted = ledger.get(OTHER)
    found = msgspec.json.decode(noted, type=OtherScheduler) if noted else None
    return found if found and found.is_recent(now) else None


def _note_other_scheduler(world: World, config: RunConfig, record: Run) -> None:
    """Records and reports, once, that another scheduler works on this source."""
    now, other = world.clock.now(), OtherScheduler.of(record)
    same_source = record.source.rstrip("/") == world.source.url.rstrip("/")
    # Without an id, which the state folder could not keep, a run of this host may be our own.
    ours = _is_opened_here(record, config) or (not config.scheduler and record.host == config.host)
    if ours or is_rehearsal(record) or not same_source or not other.is_recent(now):
        return
    known = find_other_scheduler(world.ledger, now)
    world.ledger.put(OTHER, msgspec.json.encode(other).decode())
    if known is None or known.scheduler != other.scheduler:
        text = f"{other.sentence}. Nothing was changed: {FIX}"
        alert(world, OTHER, "batchscribe: two schedulers on one source", text)


def _is_opened_here(record: Run, config: RunConfig) -> bool:
    return record.scheduler == config.scheduler and record.host in {"", config.host}


def _is_at_present_place(record: Run, config: RunConfig, run_id: str, world: World) -> bool:
    """True if this scheduler opened the run for its present settings."""
    here = (config.instances, world.output.url.rstrip("/"), find_control_url(world.home))
    instances = () if record.creates_machines else record.instances
    same_place = (instances, record.output.rstrip("/"), record.control) == here
    return record.id == run_id and _is_opened_here(record, config) and same_place


def _restore_stored(world: World, record: Run) -> Run:
    """Returns the run from its settlement, or else in its present state."""
    if settled := read_settlement(world, record):
        return settled
    fresh = replace(
        record,
        state=RunState.PLANNED,
        outcome=None,
        workers=(),
        machines=tuple(
            Machine(id=machine.id, meter=Meter(launched_before=machine.meter.launched_before))
            for machine in record.machines
        ),
    )
    return _reopen_run(world, fresh)


def _reopen_run(world: World, run: Run) -> Run:
    """Reopens a run, which is billed from its creation on."""
    run = replace(run, launch=read_claimed_launch(world, run), workers=recover_workers(world, run))
    polls = poll_machines(world, run, run.machines)
    if silent := [name for name in run.instances if name not in polls]:
        raise ComputeUnavailableError(f"run {run.id}: no answer about {', '.join(silent)}; will poll again")
    for machine in run.machines:
        run = _recover_machine(run, machine, polls[machine.id])
        if run.creates_machines:
            run = _recover_created(world, run, polls[machine.id])
    # Created machines that do not run were ended above; one existing instance that is not up ends the run.
    if any(machine.reaching_since is None for machine in run.working) or not run.working:
        lost = replace(run, outcome=Outcome.INTERRUPTED, detail="the ledger was lost")
        dispatched = run.created if run.workers and run.started else None
        return replace(lost, state=RunState.RELEASING, dispatched=dispatched)
    return replace(
        run,
        state=RunState.TRANSCRIBING if run.workers else RunState.DISPATCHING,
        dispatched=run.created if run.workers else None,
    )


def _recover_created(world: World, run: Run, poll: Poll) -> Run:
    """Returns the run with a created machine's price, ended unless it runs.

    A start of it may be under way, and is stopped. If its cloud has forgotten it, it is billed up to the
    latest end that its deadline and its guard permit.
    """
    name = poll.instance.id
    run = update_offer(world, run, poll.instance)
    machine = run.machine(name)
    if machine.reaching_since is not None:
        return run
    known = read_instance_record(world, name) or read_boot(world, run, name)
    if machine.meter.start_requested is None and known is not None:
        begin, end = Moment(run.created), Moment(min(poll.answered.at, run.deadline + GUARD_LAST))
        machine = replace(machine, meter=Meter(start_requested=begin, running_since=begin, stopped=end))
    over = {"over_since": poll.answered, "outcome": Outcome.INTERRUPTED}
    return run.with_machine(name, meter=machine.meter, **over)


def _recover_machine(run: Run, machine: Machine, poll: Poll) -> Run:
    """Returns the run with the machine as a poll shows it."""
    before, seen = machine.meter.launched_before, poll.instance
    ours = run.borrowed or seen.run == run.id
    started = ours or machine.meter.is_started_since(seen.launched_at)
    meter = Meter.recovered(run.created, started=started, launched_before=before)
    meter = meter.read(poll, ours=ours and not run.creates_machines) if started else meter
    if not ours or seen.state is not InstanceState.RUNNING:
        return run.with_machine(machine.id, meter=meter)
    accepted = replace(meter, start_accepted=meter.start_requested)
    return run.with_machine(machine.id, meter=accepted, reaching_since=poll.answered)


def _apply_type(world: World, run: Run, seen: Instance) -> Run:
    """Returns the run with the type that it gave its instance.

    Its record names the first choice. Without capacity for that, it ran as another type or as its own; its
    own one is restored just before the tag is emptied, so a tagged instance has the type that ran.
    """
    tagged = seen.run == run.id
    another = run.own_type and seen.type not in {"", run.own_type}
    if not tagged and (seen.run or not another or not _is_offered(world, run, seen.type)):
        return run
    changed = replace(run, tried_types=(run.own_type,), instance_type=seen.type) if another else run
    try:
        return update_offer(world, changed, seen) if run.open else changed
    except MisconfiguredError as error:
        log.warning("price.missing", run=run.id, error=str(error))
        return changed


def _is_offered(world: World, run: Run, instance_type: str) -> bool:
    """True if a machine of the run may get this type."""
    own = Instance(id=run.instance, state=InstanceState.STOPPED, type=run.own_type)
    try:
        return any(offer.instance_type == instance_type for offer in world.capacity.offers(own))
    except MisconfiguredError:
        return False
