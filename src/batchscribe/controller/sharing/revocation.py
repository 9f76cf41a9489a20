"""Work that returns to the run, from slow and stopped machines."""

from __future__ import annotations

from collections.abc import Iterator

from batchscribe.controller.capacity import read_priors
from batchscribe.controller.context import RunConfig, World, save
from batchscribe.controller.records import read_manifests, read_progress
from batchscribe.core.decide.packing import LEAST_PORTION_SECONDS
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.runs import Run

WORTH_SECONDS = 2 * LEAST_PORTION_SECONDS
"""Work left of a worker from which on it shares its rest: a portion for it, and one for the idle machine."""


def return_rest(world: World, run: Run, instance: str) -> Run:
    """Returns the unfinished chunks of a stopped machine to the run."""
    now = world.clock.now()
    for number in run.workers_on(instance):
        if run.workers[number].ended is None:
            run = run.with_worker(number, ended=now, revoked=True)
    return run


def await_rest(world: World, config: RunConfig, run: Run) -> Run | None:
    """The run with a worker that was asked for its rest.

    None if no work will return. Recorded before the worker is asked, and asked again at each pass: it may not
    have got the request.
    """
    asked = [number for number, each in enumerate(run.workers) if each.revoked and each.ended is None]
    if not asked:
        if any(_returns_rest(run, number) for number in range(len(run.workers))):
            return run
        asked = [
            number for left, number in sorted(_list_left(world, config, run))[-1:] if left >= WORTH_SECONDS
        ]
        if not asked:
            return None
        run = save(world, run.with_worker(asked[0], revoked=True), f"worker {asked[0]} shares its rest")
    for number in asked:
        seen = Instance(id=run.workers[number].machine, state=InstanceState.RUNNING)
        world.launcher.cancel(seen, run.name_of(number))
    return run


def _returns_rest(run: Run, number: int) -> bool:
    """True if the worker's machine is being stopped, which returns its rest."""
    machine = run.machine(run.workers[number].machine)
    return machine.over and not machine.released and run.workers[number].ended is None


def _list_left(world: World, config: RunConfig, run: Run) -> Iterator[tuple[float, int]]:
    """Yields (seconds of work left, number) of each worker that can share."""
    manifests = read_manifests(world, run)
    for machine in run.working:
        number = run.last_worker_on(machine.id)
        if number not in manifests or not run.is_at_work(machine):
            continue
        progress = read_progress(world, run.name_of(number))
        if progress and progress.total - progress.tally.seen < 2:
            continue
        if progress and progress.time_left is not None:
            yield progress.time_left.total_seconds(), number
            continue
        priors = read_priors(world, config, machine.type or run.instance_type)
        chunks = manifests[number].chunks
        if len(chunks) > 1:
            yield sum(priors.estimate_seconds(each.key, each.size) for each in chunks) / priors.speed, number
