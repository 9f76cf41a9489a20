"""External state of a run: stop order, claim, tags and instance type.

The claim is read by a host at boot. None of this may keep a run open once its instance was observed stopped,
and all of it must be cleaned up. The ledger records what is left, and a later tick retries the clean-up.
"""

from __future__ import annotations

from functools import partial

import msgspec

from batchscribe.controller.capacity import poll_one
from batchscribe.controller.context import (
    START_VISIBILITY_DELAY,
    RunConfig,
    World,
    log,
    read_moment,
    try_action,
)
from batchscribe.controller.records import raise_settlement
from batchscribe.controller.rehearsal_place import find_run_world
from batchscribe.core import keys
from batchscribe.core.decide.offers import LOCAL
from batchscribe.core.decide.planned_start import ALREADY_UP
from batchscribe.core.run.host import ClaimLaunch, HostClaim, InstanceRecord
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Machine, Run
from batchscribe.errors import BatchscribeError, ComputeUnavailableError
from batchscribe.reading import read_if_valid

NOTED = "outside/"


def record_external_state(world: World, run: Run) -> None:
    """Records external state for clean-up, before it is created."""
    world.ledger.put(f"{NOTED}{run.id}", " ".join(run.instances))


def leave_claims(world: World, config: RunConfig, run: Run) -> str:
    """Writes the claims of all instances, and returns how workers start."""
    launches = {_leave_claim(world, config, run, instance) for instance in run.instances}
    return launches.pop() if len(launches) == 1 else ClaimLaunch.SSH


def _leave_claim(world: World, config: RunConfig, run: Run, instance: str) -> str:
    """Writes an instance's claim, and returns how its workers start.

    A borrowed instance gets none: it must not be powered off for this run.
    """
    if config.shared_machine:
        return LOCAL
    record = None if run.borrowed else read_instance_record(world, config.image or instance)
    if record is None:
        return ClaimLaunch.SSH
    wanted = ClaimLaunch.BOOT if config.launch == "auto" else ClaimLaunch(config.launch)
    launch = record.launch(wanted)
    claim = HostClaim(
        run=run.id,
        created=run.created,
        deadline=run.deadline,
        output=world.output.url,
        launch=launch,
        region=config.region,
        endpoint=config.endpoint,
        machine=instance if run.creates_machines else "",
    )
    _write_record(world, msgspec.structs.replace(record, instance=instance, claim=claim))
    return launch


def read_claimed_launch(world: World, run: Run) -> str:
    """Launch kind from the claim of a run, or empty without one."""
    record = read_instance_record(world, run.instance)
    claim = record.claim if record else None
    return claim.launch if claim and claim.run == run.id else ""


def read_instance_record(world: World, instance: str) -> InstanceRecord | None:
    """The instance's record by `gpu setup`. None if missing or unreadable."""
    return read_if_valid(world.home, keys.instance(instance), InstanceRecord)


def own_type(world: World, seen: Instance) -> str:
    """The instance's own type, not one that an earlier run gave it.

    Polls still show that one if it could not be restored yet, or if they are older than its change.
    """
    left = (world.ledger.run(key.removeprefix(NOTED)) for key in world.ledger.facts(NOTED))
    lately = world.ledger.runs(world.clock.now() - START_VISIBILITY_DELAY)
    for run in (*lately, *filter(None, left)):
        if seen.id in run.instances and run.retyped and run.own_type:
            return run.own_type
    return seen.type


def clean_up_external_state(world: World, run: Run) -> None:
    """Cleans up the run's external state after its teardown. Never raises."""
    if run.borrowed:
        return
    errors = list[BatchscribeError]()
    if not run.open:
        correct = partial(raise_settlement, world, run)
        try_action(errors, run, "its settlement was not corrected", correct)
    left = [machine for machine in run.machines if not _clean_up_machine(world, run, machine)]
    if not left and not errors:
        forget = partial(world.ledger.put, f"{NOTED}{run.id}", None)
        try_action([], run, "the clean-up was not recorded", forget)


def _clean_up_machine(world: World, run: Run, machine: Machine) -> bool:
    """True if nothing is left. A later tick retries the rest."""
    world.keep_alive()
    disarm = partial(world.guard.disarm, machine.id, run.id)
    remove = partial(_remove_claim, world, run, machine)
    restore = partial(_restore_instance, world, run, machine)
    errors = list[BatchscribeError]()
    try_action(errors, run, "the guard was not disarmed", disarm)
    try_action(errors, run, "its claim was not removed", remove)
    try_action(errors, run, "its instance's tags and type were not restored", restore)
    return not errors


def retry_clean_up(world: World, config: RunConfig) -> None:
    """Retries the clean-up of settled runs, each in its own world."""
    for key in world.ledger.facts(NOTED):
        run = world.ledger.run(key.removeprefix(NOTED))
        if run is None:  # a crash came before the run was recorded, so nothing followed from the note
            world.ledger.put(key, None)
        elif not run.open:
            clean_up_external_state(find_run_world(world, config, run), run)


def disarm_settled(world: World, instance: str) -> None:
    """Disarms the guard's remaining orders of all settled runs."""
    for run_id in sorted(world.guard.armed(instance)):
        run = world.ledger.run(run_id)
        if run is not None and not run.open:
            log.info("guard.disarmed", run=run_id, instance=instance)
            world.guard.disarm(instance, run_id)


def _remove_claim(world: World, run: Run, machine: Machine) -> None:
    """Removes the claim, or a created machine's whole record."""
    if run.creates_machines:
        world.home.delete(keys.instance(machine.id))
        return
    record = read_instance_record(world, machine.id)
    if record is not None and record.claim is not None and record.claim.run == run.id:
        _write_record(world, msgspec.structs.replace(record, claim=None))


def _restore_instance(world: World, run: Run, machine: Machine) -> None:
    """Empties the tags and restores the type, unless another owner changed them.

    A created machine is terminated: a user may only have stopped it.
    """
    if run.creates_machines and machine.meter.start_requested is not None:
        seen = poll_one(world, machine.id)
        if seen.state in ALREADY_UP:  # ended where it is billed, too: `recovery.adopt_overdue`
            raise ComputeUnavailableError(f"{seen.id} is {seen.state} after its run was settled")
        world.capacity.release(seen.id)
    if run.creates_machines or (not run.started and not run.retyped):
        return
    seen = poll_one(world, machine.id)
    # Any of these types may be in force: the last request may never have taken effect.
    taken = {*run.tried_types, run.wanted_type, run.instance_type} - {"", run.own_type}
    to_change = run.retyped and run.own_type and seen.type in taken
    is_free = seen.state is InstanceState.STOPPED and seen.run in {None, run.id}
    if to_change and is_free:
        world.capacity.restore(seen.id, run.own_type)
    if seen.run == run.id and _just_launched(world, seen):
        raise ComputeUnavailableError(f"{seen.id} was started again; its new tags may not show yet")
    if seen.run == run.id:
        world.capacity.release(seen.id)
    elif seen.run is None and machine.meter.up_since is None and _just_over(world, run, machine):
        raise ComputeUnavailableError(f"the tags of {seen.id} may be outdated: will poll again")
    if to_change and not is_free:
        # Another scheduler's run on it takes the present type for the instance's own.
        raise ComputeUnavailableError(
            f"{seen.id} is {seen.state}: its type {run.own_type} is restored once it is stopped and free"
        )
    if run.wanted_type and seen.type == run.own_type and _just_over(world, run, machine):
        raise ComputeUnavailableError(
            f"a change of {seen.id} to {run.wanted_type} may not show yet: will poll again"
        )


def _just_launched(world: World, seen: Instance) -> bool:
    """True if another owner's tags may be newer than this poll's."""
    up = seen.state.billable or seen.state is InstanceState.PENDING
    if not up or seen.launched_at is None:
        return up
    return abs(world.clock.now() - seen.launched_at) < START_VISIBILITY_DELAY


def _just_over(world: World, run: Run, machine: Machine) -> bool:
    """True if polls may be older than the run's last call."""
    meter = machine.meter
    last = run.stop_requested or meter.start_accepted or meter.start_requested
    return last is not None and read_moment(world).is_within(START_VISIBILITY_DELAY, of=last)


def _write_record(world: World, record: InstanceRecord) -> None:
    world.home.replace(keys.instance(record.instance), msgspec.json.encode(record))
