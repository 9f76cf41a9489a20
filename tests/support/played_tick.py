"""Ticks that die in the middle, the timer's passes after them, and runs that are followed half-way."""

from __future__ import annotations

import contextlib

from batchscribe.controller.tick import tick, watch
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import Phase, Progress, Tally, Timings
from batchscribe.core.run.runs import Run, RunState
from support.world import Stage, once

MINUTE = 60.0


class DeadError(BaseException):
    """The process is gone: nothing after it happens."""


def die(at: Stage, after: float) -> None:
    """Runs a tick that waits, and that is killed after so many seconds, at whatever step it is then."""

    def kill() -> None:
        raise DeadError

    at.clock.at(after, kill)
    with contextlib.suppress(DeadError):
        tick(at.world, at.config)
        raise AssertionError("it came to its end")


def watch_for(at: Stage, minutes: float) -> list[Run]:
    """Makes a pass each minute, as the timer does; the runs that the passes closed."""
    closed: list[Run] = []
    until = at.clock.monotonic() + minutes * MINUTE
    while at.clock.monotonic() < until:
        closed += watch(at.world, at.config).runs
        at.clock.sleep(MINUTE)
    return closed


def put_in_progress(at: Stage) -> Run:
    """Begins a run of four chunks; its worker reports one done, one failed, and a minute of work left."""
    at.upload(4)
    at.clock.sleep(600)
    at.worker.seconds_each = 1e6
    while once(at).runs[0].state is not RunState.TRANSCRIBING:
        at.clock.sleep(5)
    (run,) = at.ledger.open_runs()
    progress = Progress(
        run=run.id,
        worker=0,
        sequence=9,
        phase=Phase.WORKING,
        at=at.clock.now(),
        total=4,
        tally=Tally(done=1, failed=1),
        timings=Timings(elapsed=70.0, first_window=10.0),
    )
    at.store.replace(keys.progress(run.id, 0), wire.encode(progress))
    return run
