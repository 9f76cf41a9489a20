"""The scheduler's composition root: settings in, a world and its terms out.

Here and nowhere else it is decided which adapter stands behind which seam.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from batchscribe import __version__
from batchscribe.adapters.aws.prices import PriceTable
from batchscribe.adapters.machine.clock import Interrupts, SystemClock, TimeLimit
from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.adapters.machine.logs import run_log
from batchscribe.adapters.no_guard import NOT_NEEDED, NoGuard
from batchscribe.adapters.notify.apprise_notifier import AppriseNotifier
from batchscribe.adapters.output.reports import write_report
from batchscribe.adapters.output.subtitles import render
from batchscribe.adapters.stores.unusable import UnusableStore
from batchscribe.control_place import control_of, split
from batchscribe.controller.alerts import alert
from batchscribe.controller.commands.manual_control import HandCompute
from batchscribe.controller.context import Shield, Terms, View, Waits, World, log
from batchscribe.controller.rehearsal_place import rehearsed
from batchscribe.controller.scan import NONE_KNOWN, Scanner, read_live_lock
from batchscribe.core import keys
from batchscribe.core.decide.money import FREE, Rate
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Policy
from batchscribe.core.run.engine_time import work_lines
from batchscribe.core.run.host import ClaimLaunch, InstanceRecord
from batchscribe.core.run.manifest import EngineSpec, Hearing, Limits
from batchscribe.core.run.meter import LONGEST_LAG
from batchscribe.core.run.report import build, cost_block
from batchscribe.core.run.runs import Run
from batchscribe.core.scan.backlog import Backlog, LiveLock
from batchscribe.detached import write_atomically
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, UnreadableError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.protocols import Clock, Guard, Launcher, Lock, Store
from batchscribe.reading import read_record
from batchscribe.settings import Settings
from batchscribe.wiring.engines import engine_factory, model_name, resolve, unable
from batchscribe.wiring.fallback import Trouble, usable_ledger
from batchscribe.wiring.stores import open_store

LOCAL, BOOT = "local", "boot"
LAG_POLLS = 6
CPU_ENGINES = {"pocketsphinx"}
"""Engines without a GPU and without a choice of model, wherever they run."""
SETUP = timedelta(seconds=Priors().setup_seconds)
LOCAL_WAITS = Waits(poll=0.25, describe=2.0, reach=60.0)
HANG_SECONDS = 900.0
"""A process whose step takes longer is killed: no call that is answered at all takes a quarter of an hour."""
LOCAL_PRIORS = Priors(speed=4.0, setup_seconds=5.0, release_seconds=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """Everything that a command of the scheduler needs."""

    settings: Settings
    world: World
    terms: Terms
    lock: Lock
    trouble: Trouble

    def locked(self, patience: float) -> AbstractContextManager[None]:
        """Holds the lock of this state directory."""
        return self.trouble.locked(self.lock, patience)


@contextmanager
def scheduler(
    settings: Settings,
    view: View,
    interrupts: Interrupts,
    limit: TimeLimit,
    *,
    by_hand: bool = False,
    remember: bool = True,
    lenient: bool = False,
) -> Iterator[Scheduler]:
    """The scheduler of these settings. With `remember=False` it leaves no trace on disk.

    What is wrong with ledger, lock or settings does not stop what the command has to stop: it is raised at
    the end, and nothing is started.
    """
    if lenient:
        settings = _collect_missing(settings)
    else:
        settings.required("BATCH_SOURCE")
    clock = SystemClock(interrupts)
    lock = tick_lock(settings, clock)
    trouble = Trouble([MisconfiguredError(problem) for problem in settings.problems])
    with _ledger(settings, clock, trouble, remember=remember) as ledger:
        world = _world(
            settings, clock, ledger, view=view, shield=interrupts, limit=limit, lock=lock, remember=remember
        )
        world = replace(world, preflight=lambda: _checked_start(trouble, settings, world))
        if found := (*trouble.notices, *map(str, trouble.errors)):
            alert(world, "ledger", "batchscribe: its own files need attention", "; ".join(found))
        terms = _terms(settings, by_hand=by_hand, remember=remember)
        yield Scheduler(settings=settings, world=world, terms=terms, lock=lock, trouble=trouble)
        trouble.refuse_start()


def _collect_missing(settings: Settings) -> Settings:
    """The settings, with required ones that are missing among their problems."""
    names = ("BATCH_SOURCE",) if settings.provider == LOCAL else ("BATCH_SOURCE", "GPU_INSTANCE_ID")
    problems = list(settings.problems)
    for name in names:
        try:
            settings.required(name)
        except MisconfiguredError as error:
            problems.append(str(error))
    return replace(settings, problems=tuple(problems))


def _ledger(settings: Settings, clock: Clock, trouble: Trouble, *, remember: bool) -> Ledger:
    if not remember:
        return open_ledger(settings, remember=False)
    return usable_ledger(settings.state_dir / FILE_NAME, clock.now(), trouble)


def _checked_start(trouble: Trouble, settings: Settings, world: World) -> None:
    trouble.refuse_start()
    preflight(settings, world.output)


def open_ledger(settings: Settings, *, remember: bool = True) -> Ledger:
    """The ledger in the state directory; where there is none and none shall be made, an empty one."""
    path = settings.state_dir / "ledger.sqlite"
    return Ledger(path if remember or path.exists() else Path(":memory:"))


def tick_lock(settings: Settings, clock: Clock) -> FileTickLock:
    return FileTickLock(settings.state_dir / "tick.lock", clock)


def open_stores(settings: Settings) -> tuple[Store, Store]:
    """(source, output); the same store if results are written beside the audio."""
    if settings.problems and not settings.source:
        unusable = UnusableStore("", MisconfiguredError(settings.problems[0]))
        return unusable, unusable
    source = _store(settings, settings.required("BATCH_SOURCE"))
    same = settings.output in {"", settings.source}
    output = source if same else _store(settings, settings.output, expected=False)
    return source, _with_control(settings, output)


def _with_control(settings: Settings, output: Store) -> Store:
    """The output, with its control objects at BATCH_CONTROL if that is set."""
    if not settings.control:
        return output
    return split(output, _store_if_possible(settings, settings.control, expected=False))


def new_scanner(
    settings: Settings,
    source: Store,
    output: Store,
    clock: Clock,
    *,
    by_hand: bool,
    keep_alive: Callable[[], None] = lambda: None,
    unreadable: Mapping[str, str] = NONE_KNOWN,
) -> Scanner:
    """A scanner. On a user's request neither age nor a live lock holds a chunk back."""
    return Scanner(
        source,
        output,
        clock=clock,
        min_age=timedelta(0) if by_hand else settings.min_age,
        live_lock=_no_live_lock if by_hand else _live_lock(settings, clock),
        longest_lock=max(timedelta(0), settings.max_wait - settings.check_interval - SETUP),
        decoder=_decoder(settings),
        max_attempts=settings.max_attempts,
        keep_alive=keep_alive,
        unreadable=unreadable,
    )


def open_compute(settings: Settings, clock: Clock) -> HandCompute:
    if settings.provider == LOCAL:
        from batchscribe.adapters.local.compute import LocalCompute

        return LocalCompute(settings.state_dir, clock, instance_type=settings.instance_type)
    try:
        from batchscribe.adapters.aws.ec2 import Ec2Compute
    except ImportError as error:
        raise MisconfiguredError("EC2 needs its extra: pip install 'batchscribe[aws]'") from error
    return Ec2Compute(region=settings.region or None, endpoint=settings.endpoint_url or None)


def open_guard(settings: Settings) -> Guard:
    if settings.provider == LOCAL:
        return NoGuard(NOT_NEEDED)
    if settings.cloud_guard == "off":
        return NoGuard()
    from batchscribe.adapters.aws.eventbridge import EventBridgeGuard

    return EventBridgeGuard(
        role=settings.guard_role_arn,
        region=settings.region or None,
        endpoint=settings.endpoint_url or None,
    )


def open_launcher(settings: Settings, output: Store) -> Launcher:
    if settings.provider == LOCAL:
        from batchscribe.adapters.local.launcher import LocalLauncher

        return LocalLauncher(
            settings.state_dir,
            settings.log_dir,
            environment=settings.child_environment(),
            control=control_of(output),
        )
    from batchscribe.wiring.host_access import box_launcher

    return box_launcher(settings, output)


def engine_spec(settings: Settings) -> EngineSpec:
    engine = resolve(settings.engine)
    # A GPU that is paid for does the work, or the run fails: it never falls to the box's processor.
    paid_gpu = settings.provider != LOCAL and engine not in CPU_ENGINES
    return EngineSpec(
        engine=engine,
        model="" if engine in CPU_ENGINES else model_name(engine, settings.model),
        compute_type=settings.compute_type,
        device="cuda" if paid_gpu else "auto",
        language=settings.language,
        task=settings.task,
    )


def unfit(spec: EngineSpec) -> str:
    """Why no machine could run this, as the engine itself says without its model; empty where one could."""
    return "; ".join(unable(spec))


def hearing(settings: Settings) -> Hearing:
    return Hearing(overlap_ms=settings.chunk_overlap_ms, split_channels=settings.channels == "split")


def settings_hash(spec: EngineSpec, heard: Hearing) -> str:
    """Two transcripts with the same one were made in the same way."""
    return hashlib.sha256(msgspec.json.encode((spec, heard))).hexdigest()[:16]


def rate_of(settings: Settings) -> Callable[[str], Rate]:
    """What an hour of a type costs: the setting, or the dated table. Raises MisconfiguredError."""
    table = PriceTable()

    def rate(instance_type: str) -> Rate:
        # It is the price of the instance as it is; what it may become instead has a price of its own.
        if settings.hourly_cost is not None and instance_type not in settings.instance_types:
            return Rate(per_hour=settings.hourly_cost, source="GPU_HOURLY_COST")
        if found := table.rate(instance_type, settings.region):
            return found
        if settings.provider == LOCAL and not instance_type:
            return FREE
        raise MisconfiguredError(
            f"no price is known for {instance_type or 'this instance'}: set GPU_HOURLY_COST=…"
        )

    return rate


def instances(settings: Settings) -> tuple[str, ...]:
    if settings.provider == LOCAL:
        return (LOCAL,)
    return (settings.instance_id if settings.problems else settings.required("GPU_INSTANCE_ID"),)


def scheduler_identity(settings: Settings, *, remember: bool = True) -> tuple[str, str]:
    """A random id, which all may know, and a secret that seals what this scheduler stores.

    Both are written once into the state directory: they survive a lost ledger.
    """
    path, words = settings.state_dir / "scheduler-id", list[str]()
    try:
        words = path.read_text().split() if path.exists() else []
        if len(words) < 2 and remember:
            fresh = [*(words or [secrets.token_hex(8)]), secrets.token_hex(32)]
            write_atomically(path, "\n".join([*fresh, ""]).encode())
            words = fresh
    except OSError as error:
        log.warning("the scheduler's id cannot be kept", file=str(path), error=error.strerror)
    scheduler, secret = [*words, "", ""][:2]
    return scheduler, secret


def _world(
    settings: Settings,
    clock: SystemClock,
    ledger: Ledger,
    *,
    view: View,
    shield: Shield,
    limit: TimeLimit,
    lock: Lock,
    remember: bool,
) -> World:
    source, output = open_stores(settings)
    return World(
        clock=clock,
        source=source,
        output=output,
        home=output,
        compute=open_compute(settings, clock),
        launcher=open_launcher(settings, output),
        guard=open_guard(settings),
        notifier=notifier(settings),
        ledger=ledger,
        shield=shield,
        keep_alive=limit.restart,
        elsewhere=lambda world, run: _elsewhere(settings, world, run),
        view=view,
        scanner=lambda by_hand: new_scanner(
            settings, source, output, clock, by_hand=by_hand, keep_alive=limit.restart
        ),
        preflight=lambda: preflight(settings, output),
        secret=scheduler_identity(settings, remember=remember)[1],
        new_run_id=new_run_id,
        render=render,
        run_log=lambda run: run_log(settings.log_dir, run.id, run.created),
        report=lambda run: _report(settings, ledger, run, lock.holder() or ""),
        lag=_lag(settings),
    )


def _lag(settings: Settings) -> timedelta:
    """How old an answer may be: some polls at the usual pace, none where the GPU is in this machine."""
    if settings.provider == LOCAL:
        return timedelta(0)
    return min(LONGEST_LAG, LAG_POLLS * timedelta(seconds=settings.poll_seconds or Waits().poll))


def _elsewhere(settings: Settings, world: World, run: Run) -> World:
    """The world with what a run was opened with. A store that cannot be opened fails only if it is used."""
    then = replace(
        settings,
        provider=run.provider,
        region=run.region,
        instance_id="" if run.provider == LOCAL else run.instance,
        source=run.source,
        output=run.output,
        cloud_guard=run.guard or settings.cloud_guard,
        # A rehearsal's own control objects are below its output.
        control="" if rehearsed(run) else run.control,
    )
    source, output = _store_if_possible(then, run.source), _store_if_possible(then, run.output)
    output = _with_control(then, source if run.output == run.source else output)
    return replace(
        world,
        source=source,
        output=output,
        home=output,
        compute=open_compute(then, world.clock),
        launcher=open_launcher(then, output),
        guard=open_guard(then),
        lag=_lag(then),
        scanner=lambda by_hand: new_scanner(
            then, source, output, world.clock, by_hand=by_hand, keep_alive=world.keep_alive
        ),
    )


def _store_if_possible(settings: Settings, url: str, *, expected: bool = True) -> Store:
    try:
        return _store(settings, url, expected=expected)
    except MisconfiguredError as error:
        return UnusableStore(url, error)


def _terms(settings: Settings, *, by_hand: bool, remember: bool) -> Terms:
    spec, heard = engine_spec(settings), hearing(settings)
    local = settings.provider == LOCAL
    waits = LOCAL_WAITS if local else Waits()
    return Terms(
        scheduler=scheduler_identity(settings, remember=remember)[0],
        host=socket.gethostname(),
        release=__version__,
        provider=settings.provider,
        instances=instances(settings),
        instance_type=settings.instance_type,
        instance_types=settings.instance_types,
        launch=settings.launch,
        region=settings.region,
        endpoint=settings.endpoint_url,
        guard=settings.cloud_guard,
        shared_machine=local,
        rate_of=rate_of(settings),
        policy=Policy(
            name=settings.policy,
            threshold=settings.threshold,
            max_wait=settings.max_wait,
            max_runtime=settings.max_runtime,
            check_interval=settings.check_interval,
            if_running=settings.if_running,
            limit=settings.limit,
            daily_budget=settings.max_dollars_per_day,
            by_hand=by_hand,
        ),
        engine=spec,
        unfit=unfit(spec),
        hearing=heard,
        settings_hash=settings_hash(spec, heard),
        limits=Limits(
            max_audio_seconds=settings.max_audio_hours * 3600,
            max_object_bytes=settings.max_object_mb * 1024 * 1024,
        ),
        max_attempts=settings.max_attempts,
        priors=LOCAL_PRIORS if local else Priors(),
        waits=replace(waits, poll=settings.poll_seconds) if settings.poll_seconds else waits,
    )


def preflight(settings: Settings, output: Store) -> None:
    """What must hold before a start is paid for. Raises MisconfiguredError with the ways out."""
    spec = engine_spec(settings)
    if settings.provider == LOCAL:
        if problems := engine_factory(spec.engine).problems(spec):
            raise MisconfiguredError(f"{spec.engine} cannot run here: {'; '.join(problems)}")
        return
    instance = settings.required("GPU_INSTANCE_ID")
    if settings.cloud_guard != "off" and not settings.guard_role_arn:
        raise MisconfiguredError(
            "nothing outside this machine could stop the GPU: BATCH_GUARD_ROLE_ARN is not set; create the "
            "stack that `batchscribe iam-policy --template` prints and name its role there, or go without "
            "with BATCH_CLOUD_GUARD=off (nothing was started)"
        )
    record = _instance_record(output, instance)
    if record.release != __version__:
        raise MisconfiguredError(
            f"{instance} has batchscribe {record.release}, this is {__version__}: run "
            "`batchscribe gpu setup` (nothing was started)"
        )
    if settings.launch == BOOT and record.launch(ClaimLaunch.BOOT) is not ClaimLaunch.BOOT:
        missing = (
            "does not show its tags in its metadata" if record.boots else "has no units that begin at boot"
        )
        raise MisconfiguredError(
            f"BATCH_LAUNCH is boot, and {instance} {missing}: run `batchscribe gpu setup`, or take "
            "BATCH_LAUNCH=auto (nothing was started)"
        )


def _instance_record(output: Store, instance: str) -> InstanceRecord:
    try:
        return read_record(output, keys.instance(instance), InstanceRecord)
    except ObjectNotFoundError as error:
        raise MisconfiguredError(
            f"{instance} was not set up yet: run `batchscribe gpu setup` (nothing was started)"
        ) from error
    except UnreadableError as error:
        raise MisconfiguredError(
            f"the record of {instance} is {error}: run `batchscribe gpu setup`, which writes it anew "
            "(nothing was started)"
        ) from error


def notifier(settings: Settings) -> AppriseNotifier:
    return AppriseNotifier(
        urls=settings.notify_urls,
        email=settings.notify_email,
        smtp_url=settings.smtp_url,
        slack_webhook=settings.slack_webhook_url,
    )


def _store(settings: Settings, url: str, *, expected: bool = True) -> Store:
    region, endpoint = settings.region or None, settings.endpoint_url or None
    return open_store(url, region=region, endpoint=endpoint, expected=expected)


def _no_live_lock() -> LiveLock | None:
    return None


def _live_lock(settings: Settings, clock: Clock) -> Callable[[], LiveLock | None]:
    place = settings.live_lock_key
    if place is None:
        return _no_live_lock
    url, key = place
    return lambda: read_live_lock(_store(settings, url), key, clock.now())


def _decoder(settings: Settings) -> str | None:
    """The decoder that would look at a chunk next; None where only the box knows."""
    if settings.provider != LOCAL:
        return None
    try:
        from batchscribe.audio.audio_decoder import decoder_version
    except ImportError:
        return None
    return decoder_version()


def new_run_id(now: datetime) -> str:
    """Sorts by time, and is no other machine's."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _report(settings: Settings, ledger: Ledger, run: Run, lock: str) -> None:
    earlier = [other.created for other in ledger.runs(run.created - timedelta(days=30)) if other.id != run.id]
    since = max((at for at in earlier if at < run.created), default=run.created - timedelta(days=30))
    samples = [sample for sample in ledger.samples(since) if sample.at <= run.created]
    seen = ledger.get(f"scan/{run.id}")
    backlog = msgspec.json.decode(seen, type=Backlog) if seen else None
    report = build(run, events=ledger.events(run.id), samples=samples, backlog=backlog, lock=lock)
    log.info("Cost Tracking", **dict(cost_block(report)))
    for line in work_lines(report.work):
        log.info(line, run=run.id)
    write_report(settings.reports_dir, report)
