"""Composition root of the scheduler."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec

from batchscribe import __version__
from batchscribe.adapters.machine.clock import Interrupts, Shielded, SystemClock, TimeLimit
from batchscribe.adapters.machine.logs import run_log
from batchscribe.adapters.output.progress import ProgressView
from batchscribe.adapters.output.reports import write_report
from batchscribe.controller.alerts import alert
from batchscribe.controller.context import RunConfig, Shield, View, Waits, World, log, refuse_unsupported
from batchscribe.controller.observe import find_lane_problem
from batchscribe.core.decide.fixed import CostBasis
from batchscribe.core.decide.observation import Policy
from batchscribe.core.decide.offers import FLEET, LOCAL
from batchscribe.core.decide.packing import Priors
from batchscribe.core.figures import BLOCK_TITLE
from batchscribe.core.keys import CONTROL
from batchscribe.core.run.cost_block import cost_block
from batchscribe.core.run.engine_time import format_engine_time
from batchscribe.core.run.manifest import AudioOptions, Limits, hash_values
from batchscribe.core.run.meter import LONGEST_LAG
from batchscribe.core.run.report import build
from batchscribe.core.run.runs import Run
from batchscribe.core.run.timeline import format_timeline
from batchscribe.core.scan.backlog import Backlog
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.protocols import Lock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.costs import copy_parked_parts, read_cost_basis
from batchscribe.wiring.engine_choice import EngineChoice
from batchscribe.wiring.fallback import Fallbacks, usable_ledger
from batchscribe.wiring.lane import Lane, open_lane_capacity, open_lane_launcher
from batchscribe.wiring.preflight import find_engine_problem, preflight
from batchscribe.wiring.prices import read_spot_prices
from batchscribe.wiring.process import scheduler_identity
from batchscribe.wiring.scanners import new_scanner
from batchscribe.wiring.seams import (
    list_instances,
    list_required,
    open_capacity,
    open_guard,
    open_launcher,
    open_ledger,
    open_notifier,
    open_store_if_possible,
    open_stores,
    settings_of_run,
    tick_lock,
    with_control,
)

LAG_POLLS = 6
LOCAL_WAITS = Waits(poll=0.25, describe=2.0, reach=60.0)
HANG_SECONDS = 900.0
"""A process whose step takes longer is killed: no successful call takes a quarter of an hour."""
LOCAL_PRIORS = Priors(speed=4.0, setup_seconds=5.0, setup_p95_seconds=60.0, release_seconds=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """The objects that a scheduler command needs."""

    settings: Settings
    world: World
    config: RunConfig
    lock: Lock
    trouble: Fallbacks
    lane: Lane | None = None

    def describe_lane(self) -> str | None:
        """The CPU lane's last self-test or its problem; None if off."""
        if self.lane is None or not self.settings.has_lane:
            return None
        try:
            return find_lane_problem(self.world, self.config) or self.lane.describe()
        except BatchscribeError as error:
            return str(error)

    def with_ledger(self, ledger: Ledger) -> Scheduler:
        """The same with another ledger."""
        return replace(self, world=replace(self.world, ledger=ledger))

    def locked(self, patience: float) -> AbstractContextManager[None]:
        """Holds the lock of this state directory."""
        return self.trouble.locked(self.lock, patience)

    def find_refusal(self, *, check_start: bool = True) -> MisconfiguredError | None:
        """Error that would refuse a start, now or later; None without one."""
        try:
            if check_start:
                self.world.preflight()
            refuse_unsupported(self.config.unsupported)
        except MisconfiguredError as error:
            return error
        return None

    def cost_basis(self) -> CostBasis | None:
        """Prices and facts for the costs beside the GPU's."""
        world = self.world
        return read_cost_basis(self.settings, world.ledger, world.clock.now(), store=world.output)


@contextmanager
def open_scheduler(
    settings: Settings,
    *,
    manual: bool = False,
    remember: bool = True,
    lenient: bool = False,
    only: frozenset[str] = frozenset(),
    quiet: bool = False,
) -> Iterator[Scheduler]:
    """Builds the scheduler of a command, with its handling of signals.

    Progress goes to stderr, if not `quiet`. With `remember=False` it writes nothing to disk. `only` restricts
    a manual run to these sessions; empty: all. Errors in the ledger, the lock or the settings do not prevent
    stopping a GPU: they are raised at the end, and nothing is started.
    """
    if lenient:
        settings = _collect_missing(settings)
    else:
        settings.require("BATCH_SOURCE")
    if remember and not lenient:
        read_spot_prices(settings, SystemClock())
    trouble = Fallbacks([MisconfiguredError(problem) for problem in settings.problems])
    view = ProgressView(SystemClock(), quiet=quiet)
    with Interrupts() as interrupts, TimeLimit(HANG_SECONDS) as limit, view:
        # A function's machine is frozen between two passes: its uptime would shorten the bill.
        clock = SystemClock(interrupts, boot=secrets.token_hex(8) if settings.state_url else "")
        path = settings.state_dir / FILE_NAME
        ledger = (
            usable_ledger(path, clock.now(), trouble) if remember else open_ledger(settings, remember=False)
        )
        with ledger:
            yield _make_scheduler(
                settings,
                clock,
                ledger,
                trouble,
                view=view,
                shield=interrupts,
                keep_alive=limit.restart,
                remember=remember,
                manual=manual,
                only=only,
            )
            trouble.refuse_start()


def make_observer(settings: Settings) -> Scheduler:
    """Builds the scheduler of a view, for any thread.

    It handles no signals and writes nothing to disk. Its ledger is closed: `with_ledger` adds the one of a
    thread.
    """
    settings.require("BATCH_SOURCE")
    clock = SystemClock()
    with Ledger(Path(":memory:")) as ledger:
        return _make_scheduler(
            settings,
            clock,
            ledger,
            Fallbacks(),
            view=ProgressView(clock),
            shield=Shielded(),
            keep_alive=lambda: None,
            remember=False,
        )


def _make_scheduler(
    settings: Settings,
    clock: SystemClock,
    ledger: Ledger,
    trouble: Fallbacks,
    *,
    view: View,
    shield: Shield,
    keep_alive: Callable[[], None],
    remember: bool,
    manual: bool = False,
    only: frozenset[str] = frozenset(),
) -> Scheduler:
    lock = tick_lock(settings, clock)
    identity, secret = scheduler_identity(settings, remember=remember)
    world = _build_world(
        settings,
        clock,
        ledger,
        lock,
        trouble,
        view=view,
        shield=shield,
        keep_alive=keep_alive,
        secret=secret,
        only=only,
    )
    choice = EngineChoice(settings, world.output)
    lane = Lane(settings, choice, clock)
    world = replace(
        world,
        prepare_lane=lane.prepare,
        open_identifier=choice.open_identifier,
    )
    if remember and (found := (*trouble.notices, *map(str, trouble.errors))):
        alert(world, "ledger", "batchscribe: its own files need attention", "; ".join(found))
    config = lane.configure(_build_config(settings, choice, identity, manual=manual))
    return Scheduler(settings=settings, world=world, config=config, lock=lock, trouble=trouble, lane=lane)


def _collect_missing(settings: Settings) -> Settings:
    """Adds missing required settings to `problems`."""
    problems = list(settings.problems)
    for name in list_required(settings):
        try:
            settings.require(name)
        except MisconfiguredError as error:
            problems.append(str(error))
    return replace(settings, problems=tuple(problems))


def _check_start(trouble: Fallbacks, settings: Settings, output: Store) -> None:
    trouble.refuse_start()
    preflight(settings, output)


def access_hash(settings: Settings) -> str:
    """Hash of the host's access settings, and of the version it needs."""
    ssh = (settings.ssh_user, settings.ssh_port, str(settings.ssh_key_path), settings.ssh_host)
    machines = (settings.launch_template, *map(str, settings.further_regions))
    return hash_values(__version__, settings.provider, settings.instance_id, *machines, settings.launch, ssh)


def derived_values(settings: Settings) -> dict[str, str]:
    """Values in effect of settings that are not set, by name."""
    poll = (LOCAL_WAITS if settings.provider == LOCAL else Waits()).poll
    return {
        "BATCH_CONTROL": f"{settings.output}/{CONTROL}".rstrip("/") if settings.output else "",
        "BATCH_POLL_SECONDS": f"{poll:g}",
        "BATCH_LANGUAGE": "auto",
        "BATCH_CHUNK_OVERLAP_MS": "auto",
    }


def _build_world(
    settings: Settings,
    clock: SystemClock,
    ledger: Ledger,
    lock: Lock,
    trouble: Fallbacks,
    *,
    view: View,
    shield: Shield,
    keep_alive: Callable[[], None],
    secret: str,
    only: frozenset[str],
) -> World:
    source, output = open_stores(settings)
    return World(
        clock=clock,
        source=source,
        output=output,
        home=output,
        capacity=open_capacity(settings, clock),
        launcher=open_launcher(settings, output),
        guard=open_guard(settings),
        notifier=open_notifier(settings),
        ledger=ledger,
        shield=shield,
        keep_alive=keep_alive,
        elsewhere=partial(_build_world_of_run, settings),
        view=view,
        scanner=lambda manual: new_scanner(
            settings, source, output, clock, manual=manual, keep_alive=keep_alive, only=only
        ),
        preflight=partial(_check_start, trouble, settings, output),
        secret=secret,
        new_run_id=new_run_id,
        open_rendering=settings.open_rendering,
        run_log=lambda run: run_log(settings.log_dir, run.id, run.created),
        report=lambda run: _write_run_report(settings, ledger, output, run, lock.holder() or ""),
        lag=_max_poll_age(settings),
    )


def _max_poll_age(settings: Settings) -> timedelta:
    """Maximum age of a poll's answer; 0 on this machine."""
    if settings.provider == LOCAL:
        return timedelta(0)
    return min(LONGEST_LAG, LAG_POLLS * timedelta(seconds=settings.poll_seconds or Waits().poll))


def _build_world_of_run(settings: Settings, world: World, run: Run) -> World:
    """Builds the world of a run; unusable stores fail only when used."""
    then = settings_of_run(settings, run)
    source, output = open_store_if_possible(then, run.source), open_store_if_possible(then, run.output)
    output = with_control(then, source if run.output == run.source else output)
    return replace(
        world,
        source=source,
        output=output,
        home=output,
        capacity=(open_lane_capacity if run.lane else open_capacity)(then, world.clock),
        launcher=(open_lane_launcher if run.lane else open_launcher)(then, output),
        guard=open_guard(then),
        lag=_max_poll_age(then),
        scanner=lambda manual: new_scanner(
            then, source, output, world.clock, manual=manual, keep_alive=world.keep_alive
        ),
    )


def _build_config(settings: Settings, choice: EngineChoice, identity: str, *, manual: bool) -> RunConfig:
    local = settings.provider == LOCAL
    waits = LOCAL_WAITS if local else Waits()
    return RunConfig(
        scheduler=identity,
        # The next pass may be on another machine.
        host=settings.state_url or socket.gethostname(),
        release=__version__,
        provider=settings.provider,
        instances=list_instances(settings),
        max_machines=settings.max_machines,
        image=settings.host_record if settings.creates_machines else "",
        launch=settings.launch,
        region=settings.region,
        further_regions=settings.further_regions if settings.provider == FLEET else (),
        endpoint=settings.endpoint_url,
        guard=settings.cloud_guard,
        access=access_hash(settings),
        shared_machine=local,
        policy=make_policy(settings, manual=manual),
        choose_engine=choice.choose,
        find_limits=find_engine_problem,
        audio_options=AudioOptions(
            overlap_ms=settings.chunk_overlap_ms, split_channels=settings.channels == "split"
        ),
        limits=Limits(
            max_audio_seconds=settings.max_audio_hours * 3600,
            max_object_bytes=settings.max_object_mb * 1024 * 1024,
        ),
        max_attempts=settings.max_attempts,
        priors=LOCAL_PRIORS if local else Priors(),
        waits=replace(waits, poll=settings.poll_seconds) if settings.poll_seconds else waits,
    )


def make_policy(settings: Settings, *, manual: bool = False) -> Policy:
    return Policy(
        name=settings.policy,
        threshold=settings.threshold,
        max_wait=settings.max_wait,
        max_runtime=settings.max_runtime,
        check_interval=settings.check_interval,
        if_running=settings.if_running,
        limit=settings.limit,
        choice=settings.instance_choice,
        hours=settings.hours,
        daily_budget=settings.max_dollars_per_day,
        manual=manual,
    )


def new_run_id(now: datetime) -> str:
    """A run ID that sorts by time and is unique across machines."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _write_run_report(settings: Settings, ledger: Ledger, output: Store, run: Run, lock: str) -> None:
    earlier = [other.created for other in ledger.runs(run.created - timedelta(days=30)) if other.id != run.id]
    since = max((at for at in earlier if at < run.created), default=run.created - timedelta(days=30))
    samples = [sample for sample in ledger.samples(since) if sample.at <= run.created]
    seen = ledger.get(f"scan/{run.id}")
    backlog = msgspec.json.decode(seen, type=Backlog) if seen else None
    copy_parked_parts(ledger, output, settings)
    costs = read_cost_basis(settings, ledger, run.settled or run.created, settling=run)
    report = build(
        run, events=ledger.events(run.id), samples=samples, backlog=backlog, lock=lock, costs=costs
    )
    log.info(BLOCK_TITLE, **dict(cost_block(report)))
    timeline = format_timeline(report.performance.timeline)
    for line in [*format_engine_time(report.work), *([f"Timeline: {timeline}"] if timeline else [])]:
        log.info("run.reported", run=run.id, note=line)
    write_report(settings.reports_dir, report)
