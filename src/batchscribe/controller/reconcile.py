"""Open runs held against what is true: in the ledger, in the store, and on the instance.

A run of ours with no live work, or past its deadline, is released first. A run whose worker makes
progress is never shot because a controller was away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from batchscribe.controller.context import Terms, World, keep, log, noted
from batchscribe.controller.control import (
    ONCE,
    late,
    looked_at,
    manifests_of,
    not_up,
    read_exit,
    read_manifest,
    read_progress,
)
from batchscribe.controller.follow import gone_down
from batchscribe.controller.outside import launch_left, note_down
from batchscribe.controller.retreat import place_of, world_of
from batchscribe.controller.settlement import as_settled, read_settlement, with_looks
from batchscribe.controller.silence import stands_still
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.box import ClaimLaunch
from batchscribe.core.instances import GUARD_LAST, Instance, InstanceState
from batchscribe.core.manifest import Intent, Progress
from batchscribe.core.money import Rate, Usd
from batchscribe.core.runs import Outcome, Run, RunState
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError

FRESH = timedelta(minutes=2)
"""A run that was stepped on this lately is in somebody's hands."""


def recover(world: World, terms: Terms) -> tuple[Run, ...]:
    """What the store knows and the ledger does not: runs of ours are put back, and those that were settled
    while it could not be written are on their way to be closed. Nothing is started for them again.
    """
    lying = tuple(_records(world))
    settled = {run_id for _, run_id, record in lying if record == "settlement.json"}
    for run in world.ledger.open_runs():
        if run.id in settled and run.state is not RunState.VERIFYING:
            keep(world, replace(run, state=RunState.VERIFYING), "it was settled before")
    begun = [(place, run_id) for place, run_id, record in lying if record == "intent.json"]
    found = [each for each in begun if world.ledger.run(each[1]) is None]
    tagged = world.compute.describe(terms.instances[0]).run if found else None
    remembered = ((place, _remembered(place, terms, run_id)) for place, run_id in found)
    return tuple(_put_back(place, run, tagged) for place, run in remembered if run)


def _put_back(world: World, run: Run, tagged: str | None) -> Run:
    """What it put down outside itself is forgotten with the ledger: it is looked for again.

    `tagged` is the run whose tag its instance bears, however long ago that was left behind.
    """
    if _may_be_left(world, run) or run.id == tagged:
        note_down(world, run)
    return keep(world, run, "recovered from the store")


def _may_be_left(world: World, run: Run) -> bool:
    """Whether something that the run put down outside itself may still be there."""
    return not run.borrowed and (run.open or world.clock.now() < run.deadline + GUARD_LAST)


def dead_runs(world: World, terms: Terms) -> tuple[Run, ...]:
    """Open runs with no live work, or past their deadline, already on their way out.

    A ledger that cannot be written is no reason to leave them there.
    """
    ended = (_ended(world_of(world, run), terms, run) for run in world.ledger.open_runs())
    return tuple(noted(world, run, "reclaimed") for run in ended if run)


def _ended(world: World, terms: Terms, run: Run) -> Run | None:
    """A run that nobody drives and that has ended, on its way out; None where its work is alive."""
    if run.state in {RunState.RELEASING, RunState.VERIFYING}:
        return run
    if run.start_requested is None:
        return run.releasing(Outcome.ABANDONED, "its controller died before any start")
    if world.clock.now() >= run.deadline:
        return run.releasing(Outcome.TIMED_OUT, "past its deadline")
    run = _with_manifest(world, run)
    if run.state is not RunState.TRANSCRIBING:
        if _stepped_on(world, run):
            return None
        return run.releasing(Outcome.INTERRUPTED, "its controller died before its worker was started")
    return _work(world, terms, run)


def _with_manifest(world: World, run: Run) -> Run:
    """A box that boots is at work as soon as its manifest is there, written down or not."""
    key = keys.manifest(run.id, len(run.manifests))
    if run.state is not RunState.DISPATCHING or run.launch != ClaimLaunch.BOOT:
        return run
    try:
        read_manifest(world, key)
    except (ObjectNotFoundError, MisconfiguredError):
        return run
    dispatched = run.dispatched or world.clock.now()
    given = replace(run, manifests=(*run.manifests, key), dispatched=dispatched, work_ended=None)
    return noted(world, given.moved(RunState.TRANSCRIBING), "its manifest was there already")


def _stepped_on(world: World, run: Run) -> bool:
    events = world.ledger.events(run.id) if world.ledger.get(f"{ONCE}{run.id}") else ()
    return bool(events) and world.clock.now() - events[-1].at < FRESH


def _work(world: World, terms: Terms, run: Run) -> Run | None:
    try:
        manifest = read_manifest(world, run.manifests[-1])
    except (ObjectNotFoundError, MisconfiguredError) as error:
        return run.releasing(Outcome.WORKER_FAILED, str(error))
    if (record := read_exit(world, manifest)) is not None:
        return run.releasing(None, record.message or "its work had ended")
    seen = world.compute.describe(run.instance)
    run = looked_at(run, seen, world.clock.now())
    alive = world.launcher.alive(seen, manifest)
    if alive is not False and (down := not_up(run, seen)):
        return gone_down(world, run, down)
    progress = read_progress(world, manifest)
    if alive or (alive is None and _lately(world, terms, run, progress)):
        still = stands_still(world, terms, run, manifest, progress)
        return run.releasing(Outcome.WORKER_LOST, still) if still else None
    return run.releasing(Outcome.WORKER_LOST, "its worker was gone")


def _lately(world: World, terms: Terms, run: Run, progress: Progress | None) -> bool:
    """Whether a worker that nobody can ask has shown itself, or still has time to."""
    if progress is not None:
        return True  # its own clock may be off: whether it stands still is for ours to say
    waited = late(run.reaching_since, world.clock.now(), terms.waits.reach)
    return run.launch == ClaimLaunch.BOOT and not waited


def _records(world: World) -> Iterator[tuple[World, str, str]]:
    """What the store tells of runs: the world that each belongs in (a rehearsal has its own), its id, and
    the name of a record of it.
    """
    for info in world.output.list(keys.RUNS):
        yield world, *_run_of(info.key)
    for info in world.home.list(keys.REHEARSALS):
        name, _, key = info.key.removeprefix(keys.REHEARSALS).partition("/")
        yield place_of(world, name), *_run_of(key)


def _run_of(key: str) -> tuple[str, str]:
    """The run that this key is of, and the name of the record; empty for any other key."""
    run_id, _, record = key.removeprefix(keys.RUNS).partition("/")
    return (run_id, record) if key.startswith(keys.RUNS) else ("", "")


def _remembered(world: World, terms: Terms, run_id: str) -> Run | None:
    """The run as the store tells it; None where it is another scheduler's, or not readable."""
    try:
        intent = wire.decode(world.output.get(keys.intent(run_id)).data, Intent)
    except (ObjectNotFoundError, MisconfiguredError):
        return None
    if intent.scheduler != terms.scheduler:
        return None
    run = _from_intent(intent)
    try:
        told = read_settlement(world, run_id)
    except ObjectNotFoundError:
        return _as_it_stands(world, terms, run)
    except MisconfiguredError:
        return None
    settled = with_looks(as_settled(run, told), told)
    if not run.own_type or not _may_be_left(world, settled):
        return settled
    return _retyped(terms, settled, world.compute.describe(run.instance))


def _from_intent(intent: Intent) -> Run:
    return Run(
        id=intent.run,
        provider=intent.provider,
        region=intent.region,
        source=intent.source,
        output=intent.output,
        instances=intent.instances,
        borrowed=intent.borrowed,
        policy=intent.policy,
        reason=intent.reason,
        created=intent.created,
        deadline=intent.deadline,
        rate=Rate(per_hour=Usd(intent.rate_micros), source=intent.rate_source, as_of=intent.rate_as_of),
        instance_type=intent.instance_type,
        own_type=intent.own_type,
        launched_before=intent.launched_before,
        planned_chunks=intent.chunks,
        planned_audio_seconds=intent.audio_seconds,
    )


def _as_it_stands(world: World, terms: Terms, run: Run) -> Run:
    """An open run again: billed from its intent on, since nobody remembers the start."""
    manifests = manifests_of(world, run.id)
    run = replace(run, launch=launch_left(world, run))
    seen = world.compute.describe(run.instance)
    run = _retyped(terms, run, seen)
    now = world.clock.now()
    ours = run.borrowed or seen.run == run.id
    ran = run.started_since(seen.launched_at)
    if not ours or seen.state is not InstanceState.RUNNING:
        lost = replace(
            run,
            state=RunState.RELEASING,
            start_requested=run.created if ours or manifests or ran else None,
            # Nobody remembers when it ran: it is billed from the intent to this look.
            running_since=run.created if manifests else None,
            running_until=now if manifests else None,
            seen_up=run.created if manifests else None,
            manifests=manifests,
            outcome=Outcome.INTERRUPTED,
            detail="the ledger was lost",
        )
        return looked_at(lost, seen, now)
    return replace(
        run,
        state=RunState.TRANSCRIBING if manifests else RunState.DISPATCHING,
        start_requested=run.created,
        start_accepted=run.created,
        running_since=now,
        running_until=now,
        launched=seen.launched_at,
        seen_up=now,
        reaching_since=now,
        dispatched=run.created if manifests else None,
        manifests=manifests,
    )


def _retyped(terms: Terms, run: Run, seen: Instance) -> Run:
    """Nobody remembers that it became another type: it is one of those that it may take, or bears our tag."""
    another = run.own_type and seen.type not in {"", run.own_type}
    if not another or (seen.run != run.id and (seen.run or seen.type not in terms.instance_types)):
        return run
    try:
        rate = terms.rate_of(seen.type)
    except MisconfiguredError as error:
        log.warning("it is priced as the type that it was", run=run.id, error=str(error))
        rate = run.rate
    return replace(run, tried_types=(run.own_type,), instance_type=seen.type, rate=rate)
