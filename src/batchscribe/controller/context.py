"""What a tick works with: the world through its seams, and the terms that the settings set."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from batchscribe.controller.scan import Scanner
from batchscribe.core.instances import STOP_PATIENCE_SECONDS
from batchscribe.core.manifest import EngineSpec, Hearing, Limits, Progress
from batchscribe.core.money import Rate
from batchscribe.core.packing import Priors
from batchscribe.core.policy import Policy
from batchscribe.core.runs import Run, RunState
from batchscribe.core.transcripts import SessionTranscript
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.protocols import Clock, Compute, Guard, Launcher, Notifier, Store

log = structlog.get_logger("batchscribe")

START_LANDS = timedelta(seconds=60)
"""How long a start may take to show: a lost reply, and looks that are older than the start."""


class Shield(Protocol):
    """Holds signals back for the block: they are noted, and raised after it."""

    def shielded(self) -> AbstractContextManager[None]: ...

    def check(self) -> None:
        """Raises InterruptedRunError where a signal came while it was held back."""


class View(Protocol):
    """Shows a person how far a run is."""

    def show(self, run: Run, progress: Progress) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a look waits for the next, and how long all looks together may take; seconds."""

    poll: float = 5.0
    describe: float = 30.0
    """While a worker works, its instance is looked at this often."""
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
    second_look: float = 60.0
    """The watchdog's, at a tick that showed no life: a machine that slept wakes both at once. A tick that
    was asked to end, and showed no life for so long again, is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was agreed before the tick began; from the settings, resolved."""

    scheduler: str
    """This host and state directory: whose intents are ours when the ledger is lost."""
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
    view: View
    scanner: Callable[[bool], Scanner]
    """A scanner; True where a person asked, so that age and live locks do not count."""
    preflight: Callable[[], None]
    """Raises MisconfiguredError where a start could only fail: asked before anything is paid."""
    new_run_id: Callable[[datetime], str]
    render: Callable[[SessionTranscript, str], bytes]
    """A session's transcript as a file of a format."""
    run_log: Callable[[Run], AbstractContextManager[None]]
    """While it is held, what is logged goes to the run's own file too."""
    report: Callable[[Run], None]
    """Writes the report of a settled run, for people and for later."""


def refuse_unfit(unfit: str) -> None:
    """Raises MisconfiguredError, which has cost nothing yet, where no machine could do what is asked."""
    if unfit:
        raise MisconfiguredError(f"{unfit} (nothing was started)")


def noted(world: World, run: Run, note: str = "") -> Run:
    """Records the run if that can be done: on the way out, a broken ledger must not keep a GPU running."""
    try:
        return keep(world, run, note)
    except BatchscribeError as error:
        log.warning("the ledger could not be written", run=run.id, error=str(error))
        return run
    except Exception:
        log.exception("the ledger could not be written", run=run.id)
        return run


def keep(world: World, run: Run, note: str = "") -> Run:
    """Records the run as it stands now, durably, before anything else happens."""
    world.ledger.save_run(run, at=world.clock.now(), note=note)
    if said := note or (run.detail if run.state is RunState.RELEASING else ""):
        log.info(said, run=run.id, state=run.state.value)
    return run
