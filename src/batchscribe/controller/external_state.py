"""What a run puts down outside itself before its start, and takes away after it.

The guard's order, the claim that a booting box looks for, the tags, another type: none of them may
keep a run open once its instance was seen stopped, and none may be forgotten. What could not be taken
away is noted in the ledger, and a later tick takes it away.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from batchscribe.controller.context import START_LANDS, Terms, World, log, moment
from batchscribe.controller.rehearsal_place import world_of
from batchscribe.core import keys
from batchscribe.core.run.host import BoxClaim, ClaimLaunch, InstanceRecord
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Run
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    MisconfiguredError,
    ObjectNotFoundError,
)
from batchscribe.reading import read_record

NOTED = "outside/"
LOCAL = "local"


def note_down(world: World, run: Run) -> None:
    """Remembers, before anything is put down, that it will have to be taken away."""
    world.ledger.put(f"{NOTED}{run.id}", run.instance)


def leave_claim(world: World, terms: Terms, run: Run) -> str:
    """Writes the claim into the instance's record; returns how the run's workers will be started.

    A borrowed instance gets none: it must not be powered off for this run.
    """
    if terms.shared_machine:
        return LOCAL
    record = None if run.borrowed else instance_record(world, run.instance)
    if record is None:
        return ClaimLaunch.SSH
    wanted = ClaimLaunch.BOOT if terms.launch == "auto" else ClaimLaunch(terms.launch)
    launch = record.launch(wanted)
    claim = BoxClaim(
        run=run.id,
        created=run.created,
        deadline=run.deadline,
        output=world.output.url,
        launch=launch,
        region=terms.region,
        endpoint=terms.endpoint,
    )
    _write(world, msgspec.structs.replace(record, claim=claim))
    return launch


def launch_left(world: World, run: Run) -> str:
    """How the workers of a run come to life that only the store remembers; empty where no claim tells."""
    record = instance_record(world, run.instance)
    claim = record.claim if record else None
    return claim.launch if claim and claim.run == run.id else ""


def instance_record(world: World, instance: str) -> InstanceRecord | None:
    """What `gpu setup` wrote of the instance; None where it wrote nothing that can be read."""
    try:
        return read_record(world.home, keys.instance(instance), InstanceRecord)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def own_type(world: World, seen: Instance) -> str:
    """The type that an instance has of its own: not one that an earlier run gave it, and that it still
    shows because nobody could give it back yet, or because looks are older than that.
    """
    left = (world.ledger.run(key.removeprefix(NOTED)) for key in world.ledger.facts(NOTED))
    lately = world.ledger.runs(world.clock.now() - START_LANDS)
    for run in (*lately, *filter(None, left)):
        if run.instance == seen.id and run.tried_types and run.own_type:
            return run.own_type
    return seen.type


def take_away(world: World, run: Run) -> None:
    """Takes away what stands there for a run whose instance was seen stopped, or was let go. Never raises."""
    if run.borrowed:
        return
    gone = [
        _done("the guard was not disarmed", run, partial(world.guard.disarm, run.instance, run.id)),
        _done("its claim was not taken back", run, partial(_take_claim, world, run)),
        _done("its instance was not given back as it was", run, partial(_give_back, world, run)),
    ]
    if all(gone):
        _done("what is gone was not noted", run, partial(world.ledger.put, f"{NOTED}{run.id}", None))


def sweep(world: World, terms: Terms) -> None:
    """Takes away what runs that are settled could not take away themselves, each where it was opened."""
    for key in world.ledger.facts(NOTED):
        run = world.ledger.run(key.removeprefix(NOTED))
        if run is None:  # a crash came before the run was recorded, so nothing followed from the note
            world.ledger.put(key, None)
        elif not run.open:
            take_away(world_of(world, terms, run), run)


def disarm_settled(world: World, instance: str) -> None:
    """Takes back the guard's orders of runs that are settled, noted or not: a ledger may have been lost."""
    for run_id in sorted(world.guard.armed(instance)):
        run = world.ledger.run(run_id)
        if run is not None and not run.open:
            log.info("a stale order of the guard is taken back", run=run_id, instance=instance)
            world.guard.disarm(instance, run_id)


def _take_claim(world: World, run: Run) -> None:
    record = instance_record(world, run.instance)
    if record is not None and record.claim is not None and record.claim.run == run.id:
        _write(world, msgspec.structs.replace(record, claim=None))


def _give_back(world: World, run: Run) -> None:
    """The tags emptied, and its own type: as far as nobody else has taken or changed it since."""
    if not run.started and not run.tried_types:
        return
    seen = world.compute.describe(run.instance)
    # Whichever of them it was changed to: the last that was wanted may never have come about.
    taken = {*run.tried_types, run.wanted_type, run.instance_type} - {"", run.own_type}
    to_change = run.tried_types and run.own_type and seen.run in {None, run.id} and seen.type in taken
    if to_change and seen.state is InstanceState.STOPPED:
        world.compute.change_type(run.instance, run.own_type)
    if seen.run == run.id:
        world.compute.release(run.instance)
    elif seen.run is None and run.meter.up_since is None and _just_over(world, run):
        raise ComputeUnavailableError(f"whether {seen.id} bears its tag is too early to tell")
    if to_change and seen.state is not InstanceState.STOPPED:
        raise ComputeUnavailableError(
            f"{seen.id} is {seen.state}: it becomes {run.own_type} again once stopped"
        )
    if run.wanted_type and seen.type == run.own_type and _just_over(world, run):
        raise ComputeUnavailableError(f"whether {seen.id} became {run.wanted_type} is too early to tell")


def _just_over(world: World, run: Run) -> bool:
    """True if the run's last call on its instance is so recent that polls may be older than it."""
    last = run.stop_requested or run.meter.start_accepted or run.meter.start_requested
    return last is not None and moment(world).is_within(START_LANDS, of=last)


def _write(world: World, record: InstanceRecord) -> None:
    world.home.replace(keys.instance(record.instance), msgspec.json.encode(record))


def _done(what: str, run: Run, act: Callable[[], object]) -> bool:
    try:
        act()
    except BatchscribeError as error:
        log.warning(f"{what}: a later tick tries again", run=run.id, error=str(error))
    except Exception:  # noqa: BLE001  the way out of a run must not break on what it left behind
        log.exception(what, run=run.id)
    else:
        return True
    return False
