"""Composes the checks of `batchscribe doctor` from the settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.machine.files import (
    check_model_space,
    check_settings_file,
)
from batchscribe.adapters.machine.installed import has_lane_unit
from batchscribe.adapters.notify.receivers import build_receivers
from batchscribe.controller.commands import doctor as checks
from batchscribe.controller.commands.doctor import AccountReads, attempt, to_failure
from batchscribe.controller.commands.rehearsal import PROVED
from batchscribe.controller.recovery import find_other_scheduler
from batchscribe.core.decide.offers import FLEET, LOCAL, RAY
from batchscribe.core.figures import format_count
from batchscribe.core.messages import describe_install, require_extra
from batchscribe.core.run.cloud_account import MachineType
from batchscribe.core.run.host import Finding, InstanceRecord, failed, passed, warned
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import BatchscribeError, ComputeUnavailableError
from batchscribe.protocols import Clock, Store
from batchscribe.settings import DEFAULT, DOTENV, Settings
from batchscribe.wiring.created.machine_checks import MachineChecks
from batchscribe.wiring.engine_choice import EngineChoice
from batchscribe.wiring.install import describe_schedule
from batchscribe.wiring.lane import Lane
from batchscribe.wiring.preflight import (
    ENGINE,
    GUARD,
    HOST,
    MACHINES,
    Check,
    Group,
    StartChecks,
    needs_ssh,
    read_instance_record,
)
from batchscribe.wiring.prices import load_prices, price_region
from batchscribe.wiring.scanners import list_audio_beside
from batchscribe.wiring.seams import (
    describe_missing,
    open_ledger,
    open_ray_cluster,
    open_store_if_possible,
    open_templates,
    rate_of,
    with_control,
)

BOUNDS: dict[str, Any] = {"attempts": 1, "connect_timeout": 2.0, "read_timeout": 5.0}
"""Of calls to EC2: each check ends within some seconds."""
RECENT = timedelta(days=30)
SPEECH = ("demo", "audio", "morning-walk", "chunk-002.ogg")


@dataclass(frozen=True, kw_only=True)
class Preconditions:
    """The checks of one set of settings, in groups."""

    settings: Settings
    clock: Clock
    source: Store
    output: Store
    open_parent: Callable[[str], Store]
    """Opens the store at a URL above the source's."""
    account: AccountReads | None = None
    """None without EC2."""
    describe: Callable[[], Instance]
    shutdown: Callable[[], str] = lambda: ""
    """Effect of a power-off by the instance itself."""
    machines: MachineChecks | None = None
    """None if no run creates machines."""
    further: tuple[Preconditions, ...] = ()
    """Those of each further region."""

    def check(self) -> Iterator[tuple[str, Finding]]:
        """Yields (group, finding) as each check is done; never raises."""
        for name, findings in self.list_groups():
            for finding in findings():
                yield name, finding

    def list_groups(self) -> Iterator[Group]:
        """Yields (name, checks): a start's needs, and this command's own."""
        (name, findings), *needs = self.needs.list_groups()
        yield name, partial(_join_checks, findings, self._check_settings)
        own: dict[str, Check] = {ENGINE: self._check_engine}
        own |= {f"{MACHINES}, {there.settings.region}": there.check_region for there in self.further}
        if account := self.account:
            yield "AWS account", partial(self._check_account, account)
            own |= {GUARD: partial(self._check_guard, account), HOST: partial(self._check_port, account)}
        if account and self.machines:
            own[MACHINES] = partial(self._check_machines, account, self.machines)
        if self.settings.provider == RAY:
            yield "Ray cluster", self._check_ray
        if self.settings.source:
            yield "store", self._check_stores
        if account and self.settings.instance_id:
            yield "GPU instance", partial(self._check_instance, account)
        for name, findings in needs:
            yield name, partial(_join_checks, findings, *filter(None, [own.get(name)]))
        yield "schedule", self._check_schedule
        yield "messages", self._check_messages
        yield "last proof", self._check_history

    @cached_property
    def needs(self) -> StartChecks:
        """The checks that `preflight` makes, too."""
        further = tuple(there.needs for there in self.further)
        return StartChecks(
            settings=self.settings, read_record=self._read_record, machines=self.machines, further=further
        )

    def check_region(self) -> Iterator[Finding]:
        """Yields the findings about machines and stop orders in one region."""
        if self.account and self.machines:
            yield from self._check_machines(self.account, self.machines)
            yield from self._check_orders(self.account)

    def _check_settings(self) -> Iterator[Finding]:
        settings = self.settings
        for problem in settings.problems:
            yield failed("settings", problem, f"correct {settings.folder / DOTENV}")
        prices = attempt("prices", self._check_prices)
        if not prices.ok:
            yield prices
        if not settings.problems:
            count = sum(origin != DEFAULT for origin in settings.origins.values())
            yield passed("settings", f"{count} set; `batchscribe config` shows them")
        yield check_settings_file(settings.folder / DOTENV)

    def _check_prices(self) -> Finding:
        load_prices(self.settings)
        return passed("prices", "readable")

    def _check_account(self, account: AccountReads) -> Iterator[Finding]:
        try:
            caller = account.caller()
        except BatchscribeError as error:
            yield to_failure("identity", error)
        else:
            region = self.settings.region or f"{price_region(self.settings)} (boto3's default)"
            yield passed("identity", f"account {caller.account}, {caller.arn}, {region}")
            yield checks.check_clock(caller, self.clock.now())

    def _check_ray(self) -> Iterator[Finding]:
        settings = self.settings
        yield attempt("cluster", lambda: check_ray_cluster(settings))
        types = (settings.instance_type,)
        yield attempt("price", lambda: checks.check_price(types, rate_of(settings), self.clock.now()))

    def _check_stores(self) -> Iterator[Finding]:
        find_beside = partial(list_audio_beside, self.settings.source, self.open_parent)
        yield attempt("audio", partial(checks.check_source, self.source, find_beside))
        name = f"{self.clock.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        yield attempt("create-only", lambda: checks.check_create_only(self.output, name))

    def _check_instance(self, account: AccountReads) -> Iterator[Finding]:
        instance = self.settings.instance_id
        seen = self._seen_instance
        if not isinstance(seen, Instance):
            yield seen
            return
        yield attempt("instance", lambda: checks.check_instance(seen, describe_missing(self.settings)))
        if seen.state is InstanceState.MISSING:
            return
        yield from self._check_type(account, seen.type)
        types = tuple(dict.fromkeys((seen.type, *self.settings.instance_types)))
        yield attempt("price", lambda: checks.check_price(types, rate_of(self.settings), self.clock.now()))
        yield attempt(
            "shutdown",
            lambda: checks.check_shutdown(instance, self.shutdown(), self.settings.region),
            optional="ec2:DescribeInstanceAttribute",
        )

    def _check_type(self, account: AccountReads, name: str) -> Iterator[Finding]:
        kinds: list[MachineType] = []
        spec, _checked = self.needs.engine

        def check() -> Finding:
            kinds.append(account.machine_type(name))
            return checks.check_type(kinds[0], needs_gpu=bool(spec and spec.device == "cuda"))

        yield attempt("type", check, optional="ec2:DescribeInstanceTypes")
        if kinds and self.machines:
            yield from self.machines.check_quotas(account, kinds[0])
        elif kinds:
            yield attempt(
                "quota",
                lambda: checks.check_quota(account.quota(name), kinds[0], self.settings.region),
                optional="servicequotas:GetServiceQuota",
            )

    def _check_machines(self, account: AccountReads, machines: MachineChecks) -> Iterator[Finding]:
        """Checks types, quotas and prices of created machines."""
        for name in self.settings.instance_types:
            yield from self._check_type(account, name)
        yield attempt("price", partial(machines.check_prices, self.clock))

    def _check_guard(self, account: AccountReads) -> Iterator[Finding]:
        yield from self._check_orders(account)
        if self.settings.cloud_guard != "off":
            yield attempt("armed", self._check_last_armed)

    def _check_orders(self, account: AccountReads) -> Iterator[Finding]:
        if self.settings.cloud_guard != "off":
            yield attempt(
                "stop orders",
                lambda: checks.check_schedule_group(account.schedule_group()),
                optional="scheduler:GetScheduleGroup",
            )

    def _check_last_armed(self) -> Finding:
        with open_ledger(self.settings, remember=False) as ledger:
            return checks.check_last_armed(ledger.runs(self.clock.now() - RECENT))

    def _check_port(self, account: AccountReads) -> Iterator[Finding]:
        settings, needed = self.settings, needs_ssh(self.settings, self.needs.record)
        if settings.ssh_host in {"public", "private"}:
            access = partial(account.port_access, settings.instance_id, settings.ssh_port)
            own = checks.PUBLIC_ADDRESS if settings.ssh_host == "public" else checks.PRIVATE_ADDRESS
            yield attempt(
                "ssh port",
                lambda: checks.check_port(access(), settings.ssh_port, settings.region, own, needed=needed),
                optional="ec2:DescribeSecurityGroups",
            )

    def _check_engine(self) -> Iterator[Finding]:
        if self.settings.provider == LOCAL:
            yield attempt("decoder", check_decoder)
            yield check_model_space(Path.home() / ".cache")
        lane = Lane(self.settings, EngineChoice(self.settings, self.output), self.clock)
        if self.settings.has_lane:
            yield attempt("CPU lane", partial(self._check_lane, lane))

    def _check_lane(self, lane: Lane) -> Finding:
        if problem := lane.find_problem():
            detail, _, fix = problem.rpartition(": ")
            return warned("CPU lane", detail or fix, fix if detail else "")
        folder = self.settings.folder
        if has_lane_unit(folder) or not describe_schedule(self.settings).startswith("systemd"):
            return passed("CPU lane", lane.describe())
        detail = f"{lane.describe()}, but it has no unit, so the limits of the scheduler's hold for it"
        return warned("CPU lane", detail, "run `batchscribe install systemd` again")

    def _check_schedule(self) -> Iterator[Finding]:
        yield checks.check_schedule(describe_schedule(self.settings))

    def _check_messages(self) -> Iterator[Finding]:
        settings = self.settings
        found = build_receivers(
            urls=settings.notify_urls,
            email=settings.notify_email,
            smtp_url=settings.smtp_url,
            slack_webhook=settings.slack_webhook_url,
        )
        webhook = ("webhook",) if settings.webhook_url else ()
        yield checks.check_receivers((*(receiver.label for receiver in found), *webhook))

    def _check_history(self) -> Iterator[Finding]:
        try:
            with open_ledger(self.settings, remember=False) as ledger:
                runs, facts = ledger.open_runs(), ledger.facts(PROVED)
                other = find_other_scheduler(ledger, self.clock.now())
        except BatchscribeError as error:
            yield to_failure("ledger", error)
            return
        if self.account is not None and self.machines is None:
            yield from checks.check_proofs(facts)
        yield from checks.check_open_runs(runs, self.clock.now())
        yield checks.check_other_scheduler(other)
        if not runs:
            yield passed("open runs", "none")

    @cached_property
    def _seen_instance(self) -> Instance | Finding:
        try:
            return self.describe()
        except BatchscribeError as error:
            return to_failure("instance", error)

    def _read_record(self) -> InstanceRecord | Finding:
        try:
            if self.machines:
                return self.machines.read_record(self.output)
            return read_instance_record(self.output, self.settings.instance_id)
        except BatchscribeError as error:
            return to_failure("set-up", error)


def _join_checks(*checks: Check) -> Iterator[Finding]:
    for findings in checks:
        yield from findings()


def open_preconditions(settings: Settings) -> Preconditions:
    """Opens what the checks of these settings need. Makes no request.

    The stores attempt each request once, so that a check ends within some seconds.
    """
    opened = partial(open_store_if_possible, settings, retry=False)
    source = opened(settings.source)
    same = settings.output in {"", settings.source}
    output = source if same else opened(settings.output, expected=False)
    here = Instance(id=LOCAL, state=InstanceState.RUNNING)
    made = Preconditions(
        settings=settings,
        clock=SystemClock(),
        source=source,
        output=with_control(settings, output, retry=False),
        open_parent=opened,
        describe=lambda: here,
    )
    return made if settings.provider in {LOCAL, RAY} else _add_cloud(made, settings)


def check_ray_cluster(settings: Settings) -> Finding:
    """Connects to the cluster. Raises MisconfiguredError, ComputeUnavailableError."""
    cluster = open_ray_cluster(settings)
    from batchscribe.adapters.ray.capacity import AUTOSCALED
    from batchscribe.adapters.ray.cluster import convert_errors

    with convert_errors("the Ray cluster could not be polled", ComputeUnavailableError):
        nodes = cluster.list_live_nodes().values()
    idle = sum(AUTOSCALED in labels for labels in nodes)
    return passed("cluster", f"{format_count(len(nodes), 'node')} up, {idle} with the label {AUTOSCALED}")


def check_decoder() -> Finding:
    """Decodes some seconds of bundled speech."""
    try:
        from batchscribe.audio.audio_decoder import AudioDecoder
    except ImportError as error:
        return failed("decoder", f"{error.name} is not installed", describe_install("cpu"))
    speech = files("batchscribe").joinpath(*SPEECH).read_bytes()
    with AudioDecoder() as decoder:
        decoded = decoder.decode_all(speech, max_seconds=60)
    return passed("decoder", f"{decoded.seconds:.1f} s of bundled speech were decoded")


def _add_cloud(made: Preconditions, settings: Settings) -> Preconditions:
    with require_extra("EC2 needs its extra", "aws"):
        from batchscribe.adapters.aws.account import AwsAccount
        from batchscribe.adapters.aws.ec2 import Ec2Compute
    region, endpoint = settings.region or None, settings.endpoint_url or None
    made = replace(made, account=AwsAccount(region=region, endpoint=endpoint, **BOUNDS))
    if settings.provider == FLEET:
        machines = MachineChecks(settings, open_templates(settings, **BOUNDS))
        further = tuple(_add_cloud(replace(made, settings=each), each) for each in settings.by_region()[1:])
        return replace(made, machines=machines, further=further)
    compute = Ec2Compute(region=region, endpoint=endpoint, **BOUNDS)
    return replace(
        made,
        describe=partial(compute.describe, settings.instance_id),
        shutdown=partial(compute.shutdown_behaviour, settings.instance_id),
    )
