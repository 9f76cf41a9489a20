"""Dependencies of a tick: external systems and resolved settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from batchscribe.controller.scan import Scanner
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.cloud_account import FurtherRegion
from batchscribe.core.run.instances import MACHINE_TAG, STOP_PATIENCE_SECONDS, Instance, InstanceState
from batchscribe.core.run.manifest import AudioOptions, EngineSpec, Limits, Progress, hash_values
from batchscribe.core.run.meter import FORGOTTEN, LONGEST_LAG, Meter, Moment, Poll
from batchscribe.core.run.outcomes import Outcome
from batchscribe.core.run.runs import Machine, Run, RunState
from batchscribe.core.run.waiting import Wait
from batchscribe.core.text.rendering import Rendering
from batchscribe.errors import (
    BatchscribeError,
    ComputeUnavailableError,
    InterruptedRunError,
    MisconfiguredError,
    TransientError,
)
from batchscribe.ledger import Ledger
from batchscribe.protocols import Capacity, Clock, Guard, Launcher, Notifier, Store

log = structlog.get_logger("batchscribe")

START_VISIBILITY_DELAY = timedelta(seconds=60)
"""Longest delay until polls show a start: its reply may be lost, and answers may be older than it."""


class Shield(Protocol):
    """Defers signals: inside the block they are only recorded."""

    def shielded(self) -> AbstractContextManager[None]: ...


class View(Protocol):
    """Shows the progress of a run, or what it waits for."""

    def show(self, run: Run, progress: Progress) -> None: ...

    def wait(self, wait: Wait, run: str = "") -> None:
        """Shows what is waited for; called once for each poll."""

    def clear(self) -> None:
        """Removes what it shows, before a command prints its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Intervals and timeouts of a run, in seconds."""

    poll: float = 5.0
    """Between two passes of a waiting tick; without one, a timer runs a pass each minute."""
    describe: float = 30.0
    """Between two polls of the instance while its worker works."""
    up: float = 600.0
    """From the start request to `running`."""
    reach: float = 600.0
    """From `running` to a host that can start a worker."""
    refused: float = 90.0
    """From the first refused connection to the end of the wait for a host that refuses all since."""
    silence: float = 900.0
    """A worker counts as lost if its progress does not change for this time."""
    blind: float = 300.0
    """Live work continues for this time if neither its store nor its instance can be polled."""
    grace: float = 10.0
    """Time for the last window after a worker is asked to end."""
    stop: float = STOP_PATIENCE_SECONDS
    """From the stop request to `stopped`; later than this raises an alert."""
    force_after: float = 240.0
    unreachable: float = 900.0
    """Alert if the store or the cloud of an open run does not answer for this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Run configuration: the settings as resolved for one tick."""

    scheduler: str
    """Id of this scheduler; it recovers its own runs if the ledger is lost."""
    host: str = ""
    """Name of this machine; a copy of its disk on another machine is another scheduler."""
    release: str
    provider: str
    instances: tuple[str, ...]
    """Existing instances; none if each run creates its machines."""
    max_machines: int = 1
    """The most machines of a run that creates its machines."""
    image: str = ""
    """Name of the record that created machines get a copy of: their launch template."""
    first_offer_only: bool = False
    """True for a rehearsal: it never changes the type of its instance."""
    launch: str = "auto"
    """auto (boot if the GPU host is set up for it), boot, ssh; held for a rehearsal."""
    region: str = ""
    further_regions: tuple[FurtherRegion, ...] = ()
    """Regions in which machines are created if those before have no capacity."""
    endpoint: str = ""
    guard: str = ""
    """Kind of guard (BATCH_CLOUD_GUARD)."""
    access: str = ""
    """Hash of the settings with which a GPU host is reached; empty: a failed start is never the same."""
    shared_machine: bool = False
    """True if the GPU's machine keeps running: a run has ended when its worker is gone."""
    policy: Policy
    choose_engine: Callable[[str], EngineSpec]
    """Resolves `auto` for a session's identified language, or an empty one.

    Called at first use: only the store shows what a GPU host was prepared for.
    """
    find_limits: Callable[[EngineSpec], str] = lambda _spec: ""
    """Returns why no machine can run this engine configuration, with the fix; empty if one can."""
    audio_options: AudioOptions = field(default_factory=AudioOptions)
    limits: Limits
    max_attempts: int
    priors: Priors
    """Defaults until earlier runs provide measurements."""
    waits: Waits = Waits()
    lane: RunConfig | None = None
    """Configuration of runs on this machine's processor; None if the GPU is in this machine."""
    find_lane_problem: Callable[[], str] = lambda: "BATCH_CPU_LANE is off"
    """Returns why this machine's processor can take no work, with the fix; empty if it can."""

    def of(self, run: Run) -> RunConfig:
        """The configuration of an open run."""
        return self.lane if run.lane and self.lane else self

    @property
    def engine(self) -> EngineSpec:
        """The engine of sessions whose language is not known."""
        return self.choose_engine("")

    @property
    def unsupported(self) -> str:
        """Reason why no machine can run this engine configuration, with the fix."""
        return self.find_limits(self.engine)

    def hash_settings(self, engine: EngineSpec) -> str:
        """Hash of all settings that change a transcript: engine and audio options."""
        return hash_values(engine, self.audio_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """External dependencies of a tick."""

    clock: Clock
    source: Store
    output: Store
    home: Store
    """Store of the instance records, which hold the claims for hosts that boot."""
    capacity: Capacity
    launcher: Launcher
    guard: Guard
    notifier: Notifier
    ledger: Ledger
    shield: Shield
    keep_alive: Callable[[], None]
    """Restarts the time limit after which a hung process is killed; called at each step."""
    elsewhere: Callable[[World, Run], World]
    """Returns this world with the stores, region and provider of a run opened with other settings."""
    view: View
    scanner: Callable[[bool], Scanner]
    """Returns a scanner; True if the user started the run manually: it ignores age and live locks."""
    preflight: Callable[[], None]
    """Raises MisconfiguredError if a start is bound to fail; called before anything costs money."""
    secret: str
    """Key that seals this scheduler's control objects; empty if the state directory cannot keep one."""
    new_run_id: Callable[[datetime], str]
    open_rendering: Callable[[], Rendering]
    """Reads how session files are rendered. Raises MisconfiguredError for a file with errors."""
    run_log: Callable[[Run], AbstractContextManager[None]]
    """Inside the block, log lines also go to the run's own file."""
    report: Callable[[Run], None]
    """Writes the report of a settled run."""
    lag: timedelta = LONGEST_LAG
    """Maximum age of the answer to a poll."""
    prepare_lane: Callable[[], None] = lambda: None
    """Starts the self-test of this machine's processor, if it needs one; does not wait for it."""
    open_identifier: Callable[[], Callable[[bytes], str] | None] = lambda: None
    """Returns a function from an audio file to its language, empty if unsure.

    None if this machine has no model for it, or if no engine depends on the language.
    """


def refuse_unsupported(unsupported: str) -> None:
    """Raises MisconfiguredError if no machine can run the configuration."""
    if unsupported:
        raise MisconfiguredError(f"{unsupported} (nothing was started)")


def read_moment(world: World) -> Moment:
    """Returns the present wall time, monotonic time and boot."""
    return Moment(world.clock.now(), world.clock.monotonic(), world.clock.boot())


def seconds_left(world: World, run: Run) -> float:
    """Seconds until the run's deadline, which no clock change extends."""
    now, start = read_moment(world), run.start_requested
    left = (run.deadline - now.at).total_seconds()
    if start is None:
        return left
    return min(left, (run.deadline - run.created).total_seconds() - now.seconds_since(start))


def is_over(world: World, run: Run) -> bool:
    """True if the run's deadline has passed."""
    return seconds_left(world, run) <= 0


def poll_machines(world: World, run: Run, machines: Iterable[Machine]) -> dict[str, Poll]:
    """Polls machines of a run, by id.

    Raises what Capacity.poll raises, and ComputeUnavailableError if an answer may be older than the last. Of
    several machines, only those answers are left out, as are those that the capacity leaves out.
    """
    asked = read_moment(world)
    found = world.capacity.poll(tuple(machine.id for machine in machines))
    answered = read_moment(world)
    polls = {
        seen.id: Poll(asked=asked, answered=answered, instance=_doubt_absence(run, seen, answered))
        for seen in found
    }
    old = {name for name, poll in polls.items() if run.machine(name).meter.contradicts(poll, world.lag)}
    if old and len(polls) == 1:
        (name,) = old
        state = polls[name].instance.state
        raise ComputeUnavailableError(f"{name} is {state}, but was up a moment ago: will poll again")
    return {name: poll for name, poll in polls.items() if name not in old}


def _doubt_absence(run: Run, seen: Instance, now: Moment) -> Instance:
    """Shows a created machine without an instance as missing for a while.

    Its cloud would still show its end. Its name is a tag of the instance, and tags get lost.
    """
    if seen.tags or seen.state is not InstanceState.STOPPED or not run.creates_machines:
        return seen
    meter = run.machine(seen.id).meter
    shown = meter.running_until or meter.up_since
    if shown is None or not now.is_within(FORGOTTEN, of=shown):
        return seen
    reason = f"no instance has its name in the tag {MACHINE_TAG}; it may still run"
    return replace(seen, state=InstanceState.MISSING, state_reason=reason)


def explain_not_up(machine: Machine, seen: Instance) -> str:
    """Reason why the machine is not up for its run, or empty."""
    if not seen.state.billable:
        return f"{seen.id} is {seen.state}"
    again = machine.meter.is_started_again(seen.launched_at)
    return f"{seen.id} was started again from outside" if again else ""


def assume_started_if_tagged(run: Run, machine: Machine, poll: Poll) -> Run:
    """Returns the run as started if only the instance's tag shows that.

    The ledger was replaced by an older copy, so the machine is billed from the run's creation on.
    """
    if machine.meter.start_requested is not None or run.borrowed or poll.instance.run != run.id:
        return run
    before = machine.meter.launched_before
    meter = Meter.recovered(run.created, started=True, launched_before=before)
    return run.with_machine(machine.id, meter=meter)


def apply_poll(run: Run, machine: Machine, poll: Poll) -> Run:
    created = run.creates_machines
    meter = machine.meter.read(poll, ours=not created, created=created)
    return run.with_machine(machine.id, meter=meter)


def is_poll_due(machine: Machine, config: RunConfig, now: Moment) -> bool:
    """True if the last poll of the running machine is too old."""
    last = machine.meter.running_until
    return last is not None and not now.is_within(timedelta(seconds=config.waits.describe), of=last)


def read_latest(world: World, run: Run) -> Run:
    """Returns the run as recorded, perhaps by a step that failed later."""
    try:
        return world.ledger.run(run.id) or run
    except BatchscribeError:
        return run


def is_late(since: Moment | None, now: Moment, seconds: float) -> bool:
    """True if `seconds` have passed, or the clock was set back."""
    return since is not None and not now.is_within(timedelta(seconds=seconds), of=since)


def save_best_effort(world: World, run: Run, note: str = "") -> Run:
    """Records the run if possible: a broken ledger prevents no teardown."""
    try:
        return save(world, run, note)
    except BatchscribeError as error:
        log.warning("ledger.write_failed", run=run.id, error=str(error))
        return run
    except Exception:
        log.exception("ledger.write_failed", run=run.id)
        return run


def try_action(errors: list[BatchscribeError], run: Run, what: str, act: Callable[[], object]) -> None:
    """Runs an action; logs and collects its error, so that others run."""
    try:
        act()
    except BatchscribeError as error:
        log.warning("action.failed", run=run.id, what=what, error=str(error))
        errors.append(error)
    except Exception as error:
        log.exception("action.crashed", run=run.id, what=what)
        errors.append(BatchscribeError(f"{what}: internal error {type(error).__name__}"))


def save(world: World, run: Run, note: str = "") -> Run:
    """Records the run durably and logs the note."""
    world.ledger.save_run(run, at=world.clock.now(), note=note)
    if text := note or (run.detail if run.state is RunState.RELEASING else ""):
        log.info("run.recorded", run=run.id, state=run.state.value, note=text)
    return run


def note_trouble(world: World, run: Run, trouble: str, *, event: str = "") -> Run:
    """Records the last trouble of a run, and logs it as `event`."""
    if trouble == run.trouble:
        return run
    if event:
        log.warning(event, run=run.id, state=run.state.value, error=trouble)
    return save_best_effort(world, replace(run, trouble=trouble))


def end_machine(
    world: World, run: Run, instance: str, outcome: Outcome | None, detail: str = "", *, note: str = ""
) -> Run:
    """Ends the work of one machine. Begins teardown once none works.

    The run has failed if the work of all its machines failed; its outcome is then one of a machine that ran,
    if one did. A broken ledger does not prevent the teardown.
    """
    others = [machine for machine in run.machines if machine.id != instance]
    if not others:
        return save_best_effort(world, run.to_teardown(outcome, detail), note)
    run = run.with_machine(instance, over_since=read_moment(world), outcome=outcome)
    if run.working:
        return save_best_effort(world, run, f"{instance}: {detail or note}")
    outcomes = [outcome, *(machine.outcome for machine in others)]
    if outcome and outcome.no_start:
        outcome = next((each for each in outcomes if each and not each.no_start), outcome)
    return save_best_effort(world, run.to_teardown(outcome if all(outcomes) else None, detail), note)


def step_each(
    world: World,
    run: Run,
    machines: Iterable[Machine],
    act: Callable[[Run, Machine], Run],
    failed: Outcome,
) -> Run:
    """Takes a step of each machine.

    With several, an error ends one as `failed`, and not the others. Raises the last transient error if no
    working machine could take its step.
    """
    waiting = set[str]()
    transient: TransientError | None = None
    for machine in machines:
        try:
            run = act(run, run.machine(machine.id))
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            if len(run.machines) == 1:
                raise
            run = read_latest(world, run)
            log.warning("machine.step_failed", run=run.id, instance=machine.id, error=str(error))
            if isinstance(error, TransientError):
                waiting.add(machine.id)
                transient = error
            else:
                run = end_machine(world, run, machine.id, failed, str(error))
        if run.in_teardown:
            return run
    if transient and waiting.issuperset(machine.id for machine in run.working):
        raise transient
    return run
