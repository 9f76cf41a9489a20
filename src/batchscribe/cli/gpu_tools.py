"""Builds the tools of `batchscribe gpu` from the settings."""

from __future__ import annotations

from functools import partial

import click

from batchscribe.adapters.machine.clock import Interrupts, SystemClock
from batchscribe.cli.app import App
from batchscribe.cli.gpu_kit import GpuTools
from batchscribe.controller.commands.manual_control import Patience
from batchscribe.core.run.orders import HAND
from batchscribe.core.run.runs import Run
from batchscribe.settings import Settings
from batchscribe.wiring.host_access import box_setup, open_ssh
from batchscribe.wiring.preflight import engine_spec, refuse_manual_start, unfit
from batchscribe.wiring.scheduler import describe_missing, instances, new_run_id
from batchscribe.wiring.seams import open_compute, open_guard, open_ledger, open_stores, tick_lock


def gpu_tools(ctx: click.Context, app: App) -> GpuTools:
    """Builds the tools of one command; signals raise errors until it ends."""
    settings = app.settings
    interrupts = ctx.with_resource(Interrupts())
    clock = SystemClock(interrupts)
    compute = open_compute(settings, clock)
    _source, output = open_stores(settings)
    poll = settings.poll_seconds or Patience().poll
    spec = engine_spec(settings)
    return GpuTools(
        provider=settings.provider,
        instance=instances(settings)[0],
        compute=compute,
        guard=open_guard(settings),
        clock=clock,
        shield=interrupts,
        lock=tick_lock(settings, clock),
        open_run=lambda instance: open_run_on(settings, instance),
        new_session=lambda: f"{HAND}{new_run_id(clock.now())}",
        output=lambda: output,
        setup=box_setup(settings, clock, compute, output, spec),
        absence=describe_missing(settings),
        preflight=partial(refuse_manual_start, settings),
        unfit=unfit(spec),
        ssh=open_ssh(settings),
        patience=Patience(poll=poll),
    )


def open_run_on(settings: Settings, instance: str) -> Run | None:
    """Returns our open run on an instance, from the ledger."""
    with open_ledger(settings, remember=False) as ledger:
        return next((run for run in ledger.open_runs() if instance in run.instances), None)
