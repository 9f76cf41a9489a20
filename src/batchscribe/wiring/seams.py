"""Opens the adapter behind each seam of a scheduler."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.machine.lock_file import FileTickLock
from batchscribe.adapters.no_guard import NOT_NEEDED, RAY_ENDS, NoGuard
from batchscribe.adapters.notify.apprise_notifier import AppriseNotifier
from batchscribe.adapters.regional import RegionalCapacity, RegionalGuard
from batchscribe.adapters.stores.unusable import UnusableStore
from batchscribe.control_place import combine_stores, find_control_url
from batchscribe.controller.rehearsal_place import is_rehearsal
from batchscribe.core.decide.money import FREE, Rate
from batchscribe.core.decide.offers import EC2, FLEET, LOCAL, RAY, Market
from batchscribe.core.decide.prices import SPOT_DAYS
from batchscribe.core.messages import require_extra
from batchscribe.core.run.runs import Run
from batchscribe.detached import write_atomically
from batchscribe.errors import BatchscribeError, MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.ledger.kept_state import KeptState, stored_after
from batchscribe.ledger.ledger import FILE_NAME, READING
from batchscribe.protocols import Capacity, Clock, Guard, Launcher, Store
from batchscribe.settings import DEFAULT, WHERE, Settings
from batchscribe.wiring.fallback import find_temporary_folder
from batchscribe.wiring.prices import load_prices, name_price_settings, price_region
from batchscribe.wiring.process import scheduler_identity
from batchscribe.wiring.stores import open_store

if TYPE_CHECKING:
    from batchscribe.adapters.aws.ec2 import Ec2Compute
    from batchscribe.adapters.aws.fleet import FleetCapacity
    from batchscribe.adapters.aws.launch_templates import LaunchTemplates
    from batchscribe.adapters.local.compute import LocalCompute
    from batchscribe.adapters.ray.cluster import RayCluster

_REQUIRED = {
    EC2: ("GPU_INSTANCE_ID",),
    FLEET: ("GPU_LAUNCH_TEMPLATE", "GPU_INSTANCE_TYPES"),
    RAY: ("BATCH_RAY_ADDRESS",),
}


def open_ledger(settings: Settings, *, remember: bool = True) -> Ledger:
    """The ledger; a missing one is empty, and created only to `remember`."""
    path = settings.state_dir / FILE_NAME
    return Ledger(path if remember or path.exists() else Path(":memory:"))


def open_ledger_to_read(settings: Settings) -> Ledger:
    """The ledger for reading beside a tick; a missing one is empty.

    Raises TransientError sooner than a command would, if another process holds it.
    """
    path = settings.state_dir / FILE_NAME
    if not path.exists():
        return Ledger(Path(":memory:"))
    return Ledger(path, pragmas=READING, read_only=True)


@contextmanager
def open_state(settings: Settings, *, lenient: bool = False) -> Iterator[Settings]:
    """Yields the settings with `state_dir` a copy of the kept state.

    Stores what changed in it. Settings with a folder are yielded as they are. With `lenient`, a state that
    cannot be fetched is one of the `problems`: a GPU can be stopped without it, nothing is started or stored.
    """
    if not settings.state_url:
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="batchscribe-state-") as folder:
        copied = replace(settings, state_dir=Path(folder))
        try:
            state = _fetch_copy(copied)
        except BatchscribeError as error:
            if not lenient:
                raise
            # The same folder each time: the ledger in it keeps alerts from being repeated each minute.
            place = find_temporary_folder(settings.state_url) or Path(folder)
            problem = f"the state in {settings.state_url} could not be fetched ({error}); nothing was started"
            yield replace(settings, state_dir=place, problems=(*settings.problems, problem))
            return
        with stored_after(state):
            yield copied


def _fetch_copy(settings: Settings) -> KeptState:
    """Fetches the newest generation into the folder, or stores the first."""
    store = open_settings_store(settings, settings.state_url, expected=False)
    state = KeptState(store, settings.state_dir)
    state.fetch()
    for name, data in state.files.items():
        write_atomically(state.folder / name, data)
    if not state.number:
        # Before any effect: a run of a scheduler whose id was lost is not recovered.
        scheduler_identity(settings)
        state.save()
    return state


def tick_lock(settings: Settings, clock: Clock) -> FileTickLock:
    return FileTickLock(settings.state_dir / "tick.lock", clock)


def open_stores(settings: Settings) -> tuple[Store, Store]:
    """(source, output); one store for both if their URLs are the same."""
    if settings.problems and not settings.source:
        unusable = UnusableStore("", MisconfiguredError(settings.problems[0]))
        return unusable, unusable
    source = open_settings_store(settings, settings.require("BATCH_SOURCE"))
    same = settings.output in {"", settings.source}
    output = source if same else open_settings_store(settings, settings.output, expected=False)
    return source, with_control(settings, output)


def with_control(settings: Settings, output: Store, *, retry: bool = True) -> Store:
    """Returns the output store, with its control objects at BATCH_CONTROL."""
    if not settings.control:
        return output
    return combine_stores(
        output, open_store_if_possible(settings, settings.control, expected=False, retry=retry)
    )


def open_store_if_possible(
    settings: Settings, url: str, *, expected: bool = True, retry: bool = True
) -> Store:
    """Opens a store; one that cannot be opened fails when used."""
    try:
        return open_settings_store(settings, url, expected=expected, retry=retry)
    except MisconfiguredError as error:
        return UnusableStore(url, error)


def open_settings_store(settings: Settings, url: str, *, expected: bool = True, retry: bool = True) -> Store:
    region, endpoint = settings.region or None, settings.endpoint_url or None
    return open_store(url, region=region, endpoint=endpoint, expected=expected, retry=retry)


def list_instances(settings: Settings) -> tuple[str, ...]:
    """Machines of every run; none if each run creates its own."""
    if settings.creates_machines:
        return ()
    if settings.provider == LOCAL:
        return (LOCAL,)
    return (settings.instance_id if settings.problems else settings.require("GPU_INSTANCE_ID"),)


def list_required(settings: Settings) -> tuple[str, ...]:
    """Names of the settings that runs of the provider need."""
    return ("BATCH_SOURCE", *_REQUIRED.get(settings.provider, ()))


def settings_of_run(settings: Settings, run: Run) -> Settings:
    """The settings with the run's own stores, regions and provider.

    Its own region may be a further one by now, with its template there.
    """
    here = next((there for there in settings.by_region() if there.region == run.region), settings)
    return replace(
        here,
        provider=run.provider,
        region=run.region,
        further_regions=run.further_regions,
        instance_id=run.instance if run.provider == EC2 else "",
        source=run.source,
        output=run.output,
        cloud_guard=run.guard or settings.cloud_guard,
        # A rehearsal's own control objects are below its output.
        control="" if is_rehearsal(run) else run.control,
    )


def open_compute(settings: Settings, clock: Clock) -> LocalCompute | Ec2Compute:
    if settings.provider == LOCAL:
        from batchscribe.adapters.local.compute import LocalCompute

        return LocalCompute(settings.state_dir, clock, instance_type=settings.instance_type)
    with require_extra("EC2 needs its extra", "aws"):
        from batchscribe.adapters.aws.ec2 import Ec2Compute
    return Ec2Compute(region=settings.region or None, endpoint=settings.endpoint_url or None)


def open_capacity(settings: Settings, clock: Clock) -> Capacity:
    if settings.provider == FLEET:
        return _open_fleets(settings, clock)
    if settings.provider == RAY:
        return _open_ray_capacity(settings, clock)
    local = settings.provider == LOCAL
    return ExistingInstances(
        compute=open_compute(settings, clock),
        provider=settings.provider,
        rate_of=rate_of(settings),
        own_type=settings.instance_type,
        types=() if local else settings.instance_types,
        market=Market.LOCAL if local else Market.ON_DEMAND,
    )


def _open_fleets(settings: Settings, clock: Clock) -> Capacity:
    home, *further = settings.by_region()
    fleet = _open_fleet(home, clock)
    if not further:
        return fleet
    return RegionalCapacity({"": fleet} | {there.region: _open_fleet(there, clock) for there in further})


def _open_fleet(settings: Settings, clock: Clock) -> FleetCapacity:
    with require_extra("EC2 needs its extra", "aws"):
        from batchscribe.adapters.aws.fleet import FleetCapacity
    return FleetCapacity(
        provider=FLEET,
        template=settings.launch_template,
        types=settings.instance_types,
        markets=settings.markets,
        rate_of=market_rate_of(settings, clock),
        region=settings.region or None,
        subnets=settings.subnets,
        endpoint=settings.endpoint_url or None,
    )


def open_templates(settings: Settings, **bounds: Any) -> LaunchTemplates:
    """Reads of launch template and zones; `bounds` are those of a client."""
    with require_extra("EC2 needs its extra", "aws"):
        from batchscribe.adapters.aws.clients import open_client
        from batchscribe.adapters.aws.launch_templates import LaunchTemplates
    region, endpoint = settings.region or None, settings.endpoint_url or None
    return LaunchTemplates(partial(open_client, "ec2", region, endpoint, **bounds), region=region)


def market_rate_of(settings: Settings, clock: Clock) -> Callable[[str, Market, str], Rate]:
    """Hourly rate by type, market and zone. Raises MisconfiguredError.

    Without a recent spot price, the on-demand price is its upper bound, and the source says so.
    """
    table, on_demand = cache(lambda: load_prices(settings)), rate_of(settings)

    def rate(instance_type: str, market: Market, zone: str) -> Rate:
        if market is not Market.SPOT:
            return on_demand(instance_type)
        region = price_region(settings)
        if found := table().find_spot_rate(instance_type, region, zone, clock.now()):
            return found
        bound = on_demand(instance_type)
        why = f"upper bound: no spot price of the last {SPOT_DAYS} days is known"
        return replace(bound, source=f"{bound.source}; {why}")

    return rate


def _open_ray_capacity(settings: Settings, clock: Clock) -> Capacity:
    cluster = open_ray_cluster(settings)
    from batchscribe.adapters.ray.capacity import WORKER, RayCapacity

    return RayCapacity(
        cluster=cluster,
        clock=clock,
        rate_of=rate_of(settings),
        node_type=settings.instance_type,
        command=(*WORKER, *(("--control", settings.control) if settings.control else ())),
    )


def open_ray_cluster(settings: Settings) -> RayCluster:
    address = settings.require("BATCH_RAY_ADDRESS")
    with require_extra("Ray needs its extra", "ray"):
        from batchscribe.adapters.ray.cluster import RayCluster
    return RayCluster(address)


def rate_of(settings: Settings) -> Callable[[str], Rate]:
    """Hourly rate by instance type. Raises MisconfiguredError if it is unknown."""
    table = cache(lambda: load_prices(settings))  # a price file that cannot be read must not prevent a stop

    def rate(instance_type: str) -> Rate:
        # GPU_HOURLY_COST is the price of the present type, not of the types that the instance may get.
        if settings.hourly_cost is not None and instance_type not in settings.instance_types:
            return Rate(per_hour=settings.hourly_cost, source="GPU_HOURLY_COST")
        if found := table().find_rate(instance_type, price_region(settings)):
            return found
        if settings.provider == LOCAL and not instance_type:
            return FREE
        if settings.provider == RAY and not instance_type:
            raise MisconfiguredError(
                "the price of the Ray cluster's GPUs is unknown: set GPU_HOURLY_COST (a node's, divided by "
                "its GPUs) or GPU_INSTANCE_TYPE"
            )
        if not instance_type:
            raise MisconfiguredError(describe_missing(settings))
        raise MisconfiguredError(
            f"the price of {instance_type} in {price_region(settings)} is unknown: run `batchscribe prices "
            f"--refresh --region {price_region(settings)}`, or set {name_price_settings(settings)}"
        )

    return rate


def describe_missing(settings: Settings) -> str:
    """Reports a missing instance, with the region and its origin."""
    region, origin = settings.region, settings.origins.get("AWS_REGION", DEFAULT)
    place = (
        f"{region} (AWS_REGION from {WHERE[origin]})"
        if region
        else f"{price_region(settings)} (boto3's default)"
    )
    return f"{settings.instance_id} was not found in {place}: correct GPU_INSTANCE_ID or AWS_REGION"


def open_guard(settings: Settings) -> Guard:
    if settings.provider == LOCAL:
        return NoGuard(NOT_NEEDED)
    if settings.provider == RAY:
        return NoGuard(RAY_ENDS)
    if settings.cloud_guard == "off":
        return NoGuard()
    from batchscribe.adapters.aws.eventbridge import EventBridgeGuard

    guards = tuple(
        EventBridgeGuard(
            role=there.guard_role_arn,
            region=there.region or None,
            endpoint=there.endpoint_url or None,
        )
        for there in settings.by_region()
    )
    return RegionalGuard(guards) if len(guards) > 1 else guards[0]


def open_launcher(settings: Settings, output: Store) -> Launcher:
    if settings.provider == LOCAL:
        from batchscribe.adapters.local.launcher import LocalLauncher

        return LocalLauncher(
            settings.state_dir,
            settings.log_dir,
            environment=settings.child_environment(),
            control=find_control_url(output),
        )
    if settings.provider == RAY:
        cluster = open_ray_cluster(settings)
        from batchscribe.adapters.ray.launcher import RayLauncher

        return RayLauncher(cluster)
    from batchscribe.wiring.host_access import open_host_launcher

    return open_host_launcher(settings, output)


def open_notifier(settings: Settings) -> AppriseNotifier:
    return AppriseNotifier(
        urls=settings.notify_urls,
        email=settings.notify_email,
        smtp_url=settings.smtp_url,
        slack_webhook=settings.slack_webhook_url,
        webhook=settings.webhook_url,
    )
