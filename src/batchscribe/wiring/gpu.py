"""Tools of the `batchscribe gpu` commands, built from the settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from msgspec import json, structs

from batchscribe.adapters.aws.images import MachineImages
from batchscribe.adapters.created_machines import CreatedMachines
from batchscribe.adapters.host_access import installation
from batchscribe.adapters.host_access.setup import HostSetup, SetupOptions
from batchscribe.adapters.host_access.ssh import Ssh
from batchscribe.adapters.machine.clock import Interrupts, SystemClock
from batchscribe.adapters.no_guard import NoGuard
from batchscribe.adapters.output.progress import ProgressView
from batchscribe.controller.commands.manual_control import (
    MANUAL_PREFIX,
    ManualCompute,
    ManualControl,
    ManualOrders,
)
from batchscribe.controller.context import Shield, View, Waits
from batchscribe.core.decide.money import Rate
from batchscribe.core.decide.offers import EC2, FLEET, LOCAL
from batchscribe.core.run.cloud_account import aws_command
from batchscribe.core.run.host import Finding, passed
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.run.runs import Run
from batchscribe.errors import BatchscribeError, MisconfiguredError, combine_errors
from batchscribe.protocols import Capacity, Clock, Guard, Lock, Store
from batchscribe.settings import Settings
from batchscribe.wiring.engine_choice import EngineChoice, engine_spec, list_session_engines
from batchscribe.wiring.host_access import check_local, open_host_setup, open_ssh
from batchscribe.wiring.preflight import describe_limits, refuse_manual_start
from batchscribe.wiring.scheduler import new_run_id
from batchscribe.wiring.seams import (
    describe_missing,
    list_instances,
    open_capacity,
    open_compute,
    open_guard,
    open_ledger,
    open_stores,
    rate_of,
    settings_of_run,
    tick_lock,
)

TEMPLATE = "batchscribe"
"""Name of the launch template that `gpu image` creates without GPU_LAUNCH_TEMPLATE."""
EXTRAS = installation.EXTRAS
"""Extras that `gpu setup` can install on a GPU host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTools:
    """Tools of the `batchscribe gpu` commands."""

    provider: str
    region: str = ""
    instance: str
    """Empty if runs create machines, and no image is made on an instance here."""
    compute: ManualCompute
    guard: Guard
    clock: Clock
    shield: Shield
    view: View
    lock: Lock
    open_run: Callable[[str], Run | None]
    """Returns our open run on an instance."""
    new_session: Callable[[], str]
    """Returns a name for the stop order of a manual session."""
    output: Store
    setup: HostSetup
    absence: str
    """Message for an instance that does not exist."""
    preflight: Callable[[], None] = lambda: None
    """Raises MisconfiguredError if a start is bound to be useless."""
    unsupported: str = ""
    """Unsupported engine configuration, with its fix; empty if it is supported."""
    find_prepared: Callable[[], EngineSpec | None] = lambda: None
    """The engine that the host was set up for; None: the one that a set-up would prepare."""
    find_rate: Callable[[Instance], Rate | None] = lambda _seen: None
    """The rate of an instance; None if it is unknown."""
    created: Capacity | None = None
    """None if no run creates machines."""
    images: MachineImages | None = None
    """None without a cloud that creates machines."""
    template: str = TEMPLATE
    """The launch template of created machines."""
    ssh: Ssh | None = None
    """None if the GPU is in this machine."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment of workers on this machine."""
    list_others: Callable[[GpuTools], Iterable[GpuTools]] = lambda _at: ()
    """Returns the tools of machines of open runs that the present settings do not name."""
    waits: Waits = field(default_factory=Waits)

    def machines(self) -> Iterator[GpuTools]:
        """The tools of each machine that exists, once.

        Machines that can be listed come first: a region or ledger without an answer prevents no stop of them.
        """
        listed = set[str]()
        for machine in self._list_machines():
            if machine.instance not in listed:
                listed.add(machine.instance)
                yield machine

    def _list_machines(self) -> Iterator[GpuTools]:
        if self.instance:
            yield self
        errors = list[BatchscribeError]()
        if created := self.created:
            by_name = replace(self, compute=CreatedMachines(lambda: created), ssh=None)
            try:
                yield from (replace(by_name, instance=seen.id) for seen in created.list_created())
            except BatchscribeError as error:
                errors.append(error)
        try:
            yield from self.list_others(self)
        except BatchscribeError as error:
            errors.append(error)
        if errors:
            raise combine_errors(errors)

    @property
    def local(self) -> bool:
        """True if the GPU is in this machine, which always runs."""
        return self.provider == LOCAL

    @property
    def guarded(self) -> bool:
        """True if a stop order outside this machine can be armed."""
        return not isinstance(self.guard, NoGuard)

    @property
    def control(self) -> ManualControl:
        return ManualControl(self.compute, self.clock, self.view, self.instance, self.waits)

    @property
    def orders(self) -> ManualOrders:
        return ManualOrders(self.guard, self.clock, self.instance)

    def check(self, instance: Instance, *, busy: bool) -> Iterator[Finding]:
        """Checks the host; loads no second model if it is `busy`."""
        request = self.setup.request
        request = structs.replace(request, busy=busy, engine=self.find_prepared() or request.engine)
        if self.local:
            return check_local(request, self.environment)
        return replace(self.setup, request=request).check(instance)

    def set_up(self, instance: Instance, **options: Any) -> Iterator[Finding]:
        """Prepares the host, with the options of `gpu setup`."""
        return self.setup.set_up(instance, SetupOptions(**options))

    def make_image(self, instance: Instance) -> Iterator[Finding]:
        """Makes an image of the instance, and the template's next version."""
        assert self.images is not None
        asked = self.images.plan_image(instance.id, self.clock.now())
        image = self.images.create_image(asked)
        yield passed("image", f"{image}, {asked['Name']}: takes minutes until it can be used")
        self.images.await_image(image, self.clock)
        planned = self.images.plan_template(self.template, instance.id, image)
        version = self.images.save_template(planned, image)
        yield passed("launch template", f"{self.template}, version {version}, now the default one")
        yield self.setup.record_image(image)

    def describe_image(self, instance: Instance) -> Iterator[str]:
        """Commands that do the same, of AWS and of ours."""
        assert self.images is not None
        asked = self.images.plan_image(instance.id, self.clock.now())
        planned = self.images.plan_template(self.template, instance.id, "IMAGE_ID")
        for command, request in (("create-image", asked), ("create-launch-template", planned)):
            words = ("ec2", command, "--cli-input-json", shlex.quote(json.encode(request).decode()))
            yield aws_command(self.setup.request.region, *words)
        yield "batchscribe gpu image --made IMAGE_ID"


@contextmanager
def open_gpu_tools(settings: Settings) -> Iterator[GpuTools]:
    """Builds the tools of one command; signals raise errors until it ends."""
    with Interrupts() as interrupts, ProgressView(SystemClock()) as view:
        clock = SystemClock(interrupts)
        provider, capacity = settings.provider, open_capacity(settings, clock)
        created = capacity if settings.creates_machines else None
        configured = settings
        if provider == FLEET:
            settings = replace(settings, provider=EC2)  # the instance that images are made on
        compute = open_compute(settings, clock)
        _source, output = open_stores(settings)
        spec, besides, unsupported = _choose_engines(settings)
        yield GpuTools(
            provider=provider,
            region=settings.region,
            instance=settings.instance_id if created else list_instances(settings)[0],
            compute=compute,
            guard=open_guard(configured),
            clock=clock,
            shield=interrupts,
            view=view,
            lock=tick_lock(settings, clock),
            open_run=partial(_read_open_run, settings),
            new_session=lambda: f"{MANUAL_PREFIX}{new_run_id(clock.now())}",
            output=output,
            setup=open_host_setup(settings, clock, compute, output, spec, besides=besides),
            absence=describe_missing(settings),
            preflight=partial(refuse_manual_start, settings),
            unsupported=unsupported,
            find_prepared=lambda: EngineChoice(settings, output).choose(""),
            find_rate=partial(_find_rate, settings, created),
            created=created,
            images=MachineImages(region=settings.region or None, endpoint=settings.endpoint_url or None),
            template=settings.launch_template or TEMPLATE,
            ssh=None if provider == LOCAL else open_ssh(settings),
            environment=settings.child_environment(),
            list_others=partial(_list_others, configured),
            waits=Waits(poll=settings.poll_seconds or Waits().poll),
        )


def _choose_engines(settings: Settings) -> tuple[EngineSpec, tuple[EngineSpec, ...], str]:
    """The host's engine, further ones, and why no machine can run it.

    A vocabulary that cannot be read prevents no stop, which needs no engine.
    """
    try:
        spec = engine_spec(settings)
        return spec, list_session_engines(settings), describe_limits(spec)
    except MisconfiguredError as error:
        return engine_spec(replace(settings, vocabulary=None)), (), str(error)


def _list_others(settings: Settings, at: GpuTools) -> Iterator[GpuTools]:
    """Tools of open runs' machines that the settings do not name."""
    here = _name_place(settings)
    with open_ledger(settings, remember=False) as ledger:
        runs = ledger.open_runs()
    for run in runs:
        then = settings_of_run(settings, run)
        if LOCAL not in run.instances and here != _name_place(then):
            of_run = _adapt_tools(at, then, run)
            yield from (replace(of_run, instance=name) for name in run.instances)


def _name_place(settings: Settings) -> tuple[object, ...]:
    """Values that distinguish the machines of these settings from those of others."""
    regions = tuple((there.region, there.launch_template) for there in settings.by_region()[1:])
    return settings.provider, settings.region, regions, list_instances(settings)


def _adapt_tools(at: GpuTools, then: Settings, run: Run) -> GpuTools:
    return replace(
        at,
        provider=run.provider,
        region=run.region,
        compute=CreatedMachines(cache(partial(open_capacity, then, at.clock))),
        guard=open_guard(then),
        absence=describe_missing(then),
        find_rate=lambda seen: run.machine(seen.id).rate or run.rate,
        ssh=None,
    )


def _read_open_run(settings: Settings, instance: str) -> Run | None:
    with open_ledger(settings, remember=False) as ledger:
        return next((run for run in ledger.open_runs() if instance in run.instances), None)


def _find_rate(settings: Settings, created: Capacity | None, seen: Instance) -> Rate | None:
    with suppress(MisconfiguredError):
        return created.offers(seen)[0].rate if created and seen.market else rate_of(settings)(seen.type)
    return None
