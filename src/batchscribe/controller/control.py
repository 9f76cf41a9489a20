"""What controller and worker tell each other through the store, read back; and how late it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchscribe.controller.context import Terms, World
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.box import BoxEnd, read
from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import ExitRecord, Manifest, Progress, Tally, Timings, WorkerEnd
from batchscribe.core.runs import Run
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError

ONCE = "once/"
"""Where the ledger says that a run is stepped on by one short tick after another: nobody holds the lock
meanwhile, and yet it has its controller."""


def read_manifest(world: World, key: str) -> Manifest:
    """Raises ObjectNotFoundError, and MisconfiguredError where it cannot be read."""
    try:
        return wire.decode(world.output.get(key).data, Manifest)
    except MisconfiguredError as error:
        raise MisconfiguredError(f"{key} is {error}") from error


def manifests_of(world: World, run_id: str) -> tuple[str, ...]:
    """Keys of all manifests that the store has of a run, in the order they were dispatched."""
    prefix = f"{keys.RUNS}{run_id}/workers/"
    return tuple(i.key for i in world.output.list(prefix) if i.key.endswith("/manifest.json"))


def read_exit(world: World, manifest: Manifest) -> ExitRecord | None:
    """The worker's last word. One that cannot be read is a failure: whoever said it is at work no more."""
    key = keys.exit_record(manifest.run, manifest.worker)
    try:
        data = world.output.get(key).data
    except ObjectNotFoundError:
        return None
    try:
        return wire.decode(data, ExitRecord)
    except MisconfiguredError as error:
        return _unreadable(world, manifest, f"the worker's last word cannot be read: {key} is {error}")


def _unreadable(world: World, manifest: Manifest, message: str) -> ExitRecord:
    """What is known all the same: how far the worker was when it reported last."""
    progress = read_progress(world, manifest)
    return ExitRecord(
        run=manifest.run,
        worker=manifest.worker,
        end=WorkerEnd.FAILED,
        message=message,
        at=world.clock.now(),
        tally=progress.tally if progress else Tally(),
        timings=progress.timings if progress else Timings(),
    )


def read_progress(world: World, manifest: Manifest) -> Progress | None:
    """The worker's progress; None where there is none yet, or where it is torn."""
    try:
        return wire.decode(world.output.get(keys.progress(manifest.run, manifest.worker)).data, Progress)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def read_box_end(world: World, run: Run) -> BoxEnd | None:
    """Why the box powered itself off; None where it did not, or did not get to say so."""
    try:
        return read(world.output.get(keys.box_end(run.id)).data, BoxEnd)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def by_our_clock(run: Run, told: datetime, now: datetime) -> datetime:
    """A moment that the box told, whose clock may be off: after it was seen running, and not ahead of now."""
    return min(now, max(filter(None, (run.running_since, told))))


def not_up(run: Run, seen: Instance) -> str:
    """Why the instance is not up for this run; empty where it is."""
    if not seen.state.billable:
        return f"{seen.id} is {seen.state}"
    return f"{seen.id} was started again by somebody" if run.started_again(seen.launched_at) else ""


def looked_at(run: Run, seen: Instance, now: datetime) -> Run:
    """What a look at a working instance tells of its bill: the last that saw it run, the first that did not.

    A look at `pending` is older than one that saw it running, and tells nothing.
    """
    if not not_up(run, seen):
        return replace(run, running_until=now, stopped=None)
    over = seen.state is not InstanceState.PENDING or run.started_again(seen.launched_at)
    return replace(run, stopped=run.stopped or now) if over else run


def look_due(run: Run, terms: Terms, now: datetime) -> bool:
    """Whether the last look is too old; one that lies ahead of a clock that was set back tells nothing."""
    if run.running_until is None:
        return False
    return not timedelta(0) <= now - run.running_until < timedelta(seconds=terms.waits.describe)


def late(since: datetime | None, now: datetime, seconds: float) -> bool:
    return since is not None and now - since >= timedelta(seconds=seconds)
