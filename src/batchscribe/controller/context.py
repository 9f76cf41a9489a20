"""What a tick works with: the world through its seams, and the terms that the settings set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from batchscribe.controller.scan import Scanner
from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Policy
from batchscribe.core.run.instances import STOP_PATIENCE_SECONDS
from batchscribe.core.run.manifest import EngineSpec, Hearing, Limits, Progress
from batchscribe.core.run.meter import LONGEST_LAG, Moment, Poll
from batchscribe.core.run.runs import Run, RunState
from batchscribe.core.text.transcripts import SessionTranscript
from batchscribe.errors import BatchscribeError, ComputeUnavailableError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.protocols import Clock, Compute, Guard, Launcher, Notifier, Store

log = structlog.get_logger("batchscribe")

START_LANDS = timedelta(seconds=60)
"""How long a start may take to show: a lost reply, and looks that are older than the start."""


class Shield(Protocol):
    """Holds signals back: inside the block they are only recorded."""

    def shielded(self) -> AbstractContextManager[None]: ...


class View(Protocol):
    """Shows the progress of a run."""

    def show(self, run: Run, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Intervals and timeouts of a run; seconds."""

    poll: float = 5.0
    """Between two passes of a tick that waits; without one, a timer makes a pass each minute."""
    describe: float = 30.0
    """Between two polls of the instance while its worker works."""
    up: float = 600.0
    """From the start request to `running`."""
    reach: float = 600.0
    """From `running` to a worker that answers."""
    silence: float = 900.0
    """A worker whose progress does not change for so long is lost."""
    blind: float = 300.0
    """Live work goes on for so long although neither its store nor its instance can be looked at."""
    grace: float = 10.0
    """For the last window, after a worker was asked to end."""
    stop: float = STOP_PATIENCE_SECONDS
    """From the stop request to `stopped`, before it is an alarm."""
    force_after: float = 240.0
    unreachable: float = 900.0
    """An open run whose store or cloud does not answer for so long is an alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was agreed before the tick began; from the settings, resolved."""

    scheduler: str
    """Id of this scheduler: its runs are recovered if the ledger is lost."""
    host: str = ""
    """Name of this machine: a copy of its disk on another machine is another scheduler."""
    release: str
    provider: str
    instances: tuple[str, ...]
    instance_type: str
    instance_types: tuple[str, ...] = ()
    """Types to try, in this order, when the cloud has no machine of the instance's own."""
    launch: str = "auto"
    """auto (boot where the box is set up for it), boot, ssh; held for a rehearsal."""
    region: str = ""
    endpoint: str = ""
    guard: str = ""
    """Kind of guard (BATCH_CLOUD_GUARD)."""
    shared_machine: bool = False
    """The GPU is in a machine that runs on: a run has ended when its worker is gone."""
    rate_of: Callable[[str], Rate]
    """The rate for an instance type as it was seen."""
    policy: Policy
    engine: EngineSpec
    unfit: str = ""
    """Why no machine could do what is asked of the engine, with the mend; empty where one could."""
    hearing: Hearing = field(default_factory=Hearing)
    settings_hash: str
    """Of everything that makes a transcript another one: engine and hearing."""
    limits: Limits
    max_attempts: int
    priors: Priors
    """What to believe before anything was learned."""
    waits: Waits = Waits()


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside that a tick can see or touch."""

    clock: Clock
    source: Store
    output: Store
    home: Store
    """Where the instances are recorded, and claims are left for a box that boots."""
    compute: Compute
    launcher: Launcher
    guard: Guard
    notifier: Notifier
    ledger: Ledger
    shield: Shield
    keep_alive: Callable[[], None]
    """Restarts the time limit after which a process that hangs is killed; called at each step."""
    elsewhere: Callable[[World, Run], World]
    """This world with the stores, region and provider of a run that was opened with other settings."""
    view: View
    scanner: Callable[[bool], Scanner]
    """A scanner; True where a person asked, so that age and live locks do not count."""
    preflight: Callable[[], None]
    """Raises MisconfiguredError where a start could only fail: asked before anything is paid."""
    secret: str
    """Seals what this scheduler stores; empty if its state directory cannot keep one."""
    new_run_id: Callable[[datetime], str]
    render: Callable[[SessionTranscript, str], bytes]
    """A session's transcript as a file of a format."""
    run_log: Callable[[Run], AbstractContextManager[None]]
    """While it is held, what is logged goes to the run's own file too."""
    report: Callable[[Run], None]
    """Writes the report of a settled run, for people and for later."""
    lag: timedelta = LONGEST_LAG
    """How old the answer to a poll may be."""


def refuse_unfit(unfit: str) -> None:
    """Raises MisconfiguredError, which has cost nothing yet, where no machine could do what is asked."""
    if unfit:
        raise MisconfiguredError(f"{unfit} (nothing was started)")


def moment(world: World) -> Moment:
    """Now, by both clocks."""
    return Moment(world.clock.now(), world.clock.monotonic(), world.clock.boot())


def poll_instance(world: World, run: Run) -> Poll:
    """Polls the instance of a run.

    Raises what Compute.describe raises, ComputeUnavailableError if the answer may be older than the last one.
    """
    asked = moment(world)
    seen = world.compute.describe(run.instance)
    poll = Poll(asked=asked, answered=moment(world), instance=seen)
    if run.meter.contradicts(poll, world.lag):
        raise ComputeUnavailableError(f"{seen.id} is {seen.state}, but was up a moment ago: will poll again")
    return poll


def is_late(since: Moment | None, now: Moment, seconds: float) -> bool:
    """True if `seconds` have passed since then; a clock that was set back grants no grace."""
    return since is not None and not now.is_within(timedelta(seconds=seconds), of=since)


def save_best_effort(world: World, run: Run, note: str = "") -> Run:
    """Records the run if possible: on the way out, a broken ledger must not keep a GPU running."""
    try:
        return save(world, run, note)
    except BatchscribeError as error:
        log.warning("the ledger could not be written", run=run.id, error=str(error))
        return run
    except Exception:
        log.exception("the ledger could not be written", run=run.id)
        return run


def save(world: World, run: Run, note: str = "") -> Run:
    """Records the run as it stands now, durably, before anything else happens."""
    world.ledger.save_run(run, at=world.clock.now(), note=note)
    if text := note or (run.detail if run.state is RunState.RELEASING else ""):
        log.info(text, run=run.id, state=run.state.value)
    return run
