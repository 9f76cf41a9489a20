"""`batchscribe gpu`: manual control of the instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from batchscribe import __version__
from batchscribe.cli.app import App, Duration, json_option, print_json
from batchscribe.cli.gpu_session import (
    clear_orders,
    is_claimed,
    poll_existing,
    prepare_session,
    refuse_foreign_claim,
    refuse_open_run,
    running_alone,
    running_instance,
    start_instance,
    stop_after,
)
from batchscribe.cli.terminal.layout import describe_finding, format_value
from batchscribe.cli.terminal.times import describe_holder
from batchscribe.controller.context import refuse_unsupported
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, cost
from batchscribe.core.run.host import Finding, InstanceRecord, passed, warned
from batchscribe.core.run.instances import GUARD_FIRST, Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    LockHeldError,
    MisconfiguredError,
    RefusedError,
    combine_errors,
)
from batchscribe.reading import read_optional
from batchscribe.wiring.gpu import EXTRAS, GpuTools

TOOLS = "batchscribe.gpu.tools"
NO_MACHINE = "no machine of a run exists in the regions of the settings"
NOT_CHECKED = warned(
    "host",
    "not checked while it is not running: ssh, worker, engine and stores",
    "`batchscribe gpu check --start` starts it, checks them, and stops it again",
)


def open_tools(ctx: click.Context) -> GpuTools:
    """Builds the tools with the factory in `ctx.meta`."""
    make: Callable[[], GpuTools] = ctx.meta[TOOLS]
    return make()


def one_machine(ctx: click.Context, action: str) -> GpuTools:
    """Tools of the instance. Raises MisconfiguredError if none is set."""
    at = open_tools(ctx)
    if not at.instance:
        raise MisconfiguredError(
            f"each run of GPU_PROVIDER={at.provider} creates its own machines: none to {action}; set "
            "GPU_INSTANCE_ID to the instance that images are made on"
        )
    return at


@click.group()
def gpu() -> None:
    """Manual control of the GPU instance."""


@gpu.command()
@click.option(
    "--for",
    "length",
    type=Duration("hms", "{value!r} is not a time such as 2h or 45m"),
    help="Stop it again after this time, e.g. 2h, by the guard's order.",
)
@click.option("--wait", is_flag=True, help="With --for: stay until then, and stop it here; also on Ctrl-C.")
@click.pass_context
def start(ctx: click.Context, length: timedelta | None, wait: bool) -> None:
    """Start the instance for yourself; the scheduler leaves it alone.

    Returns once it runs.
    """
    at = one_machine(ctx, "start")
    if _is_local(at, "start"):
        return
    _check_guarded(at, length, wait=wait)
    control = at.control
    at.preflight()
    poll_existing(at)
    with at.lock.held():
        refuse_open_run(at)
        end = at.clock.now() + length if length else None
        # An order takes effect GUARD_FIRST after its deadline.
        session = prepare_session(at, control, end - GUARD_FIRST if end and not wait else end)
        seen = start_instance(at, control, session)
    say = partial(ctx.ensure_object(App).console.print, markup=False)
    say(f"{seen.id} {'is running' if control.asked else 'was running already'}{_describe_address(seen)}.")
    stops = f", at the latest {end:%Y-%m-%d %H:%M} UTC: the guard stops it then" if end and not wait else ""
    rate = at.find_rate(seen)
    price = f"${rate.per_hour.text(3)}/h" if rate else "money"
    say(f"The scheduler leaves it alone, and it costs {price} until `batchscribe gpu stop`{stops}.")
    if length and wait:
        stop_after(at, control, seen, length.total_seconds(), session)


def _check_guarded(at: GpuTools, length: timedelta | None, *, wait: bool) -> None:
    """Raises MisconfiguredError if nothing would stop the instance after `length`."""
    if wait and length is None:
        raise click.UsageError("--wait needs --for")
    if length and not wait and not at.guarded:
        raise MisconfiguredError(
            f"nothing outside this machine would stop {at.instance} (BATCH_CLOUD_GUARD=off); nothing was "
            "started: set up the guard (docs/aws.md), or stay with --wait"
        )


@gpu.command()
@click.option("--force", is_flag=True, help="Stop it even if a run uses it; also forces a stuck stop.")
@click.pass_context
def stop(ctx: click.Context, force: bool) -> None:
    """Stop the instance, and wait until it is observed stopped.

    Exit code 3 if it is not observed stopped. Machines that runs created are terminated.
    """
    app = ctx.ensure_object(App)
    app.lenient = True
    _stop_each(open_tools(ctx), force=force)
    if app.settings.problems:
        raise MisconfiguredError("; ".join(app.settings.problems))


def _stop_each(at: GpuTools, *, force: bool) -> None:
    """Ends each machine that no run needs; errors are raised last."""
    errors: list[BatchscribeError] = []
    machines, machine = at.machines(), None
    with _collect_errors(errors):
        for machine in machines:
            with _collect_errors(errors):
                _stop_observed(machine, force=force)
    if not machine and not errors:
        click.echo(NO_MACHINE)
    if errors:
        raise combine_errors(errors)


@contextmanager
def _collect_errors(errors: list[BatchscribeError]) -> Iterator[None]:
    try:
        yield
    except BatchscribeError as error:
        errors.append(error)


def _stop_observed(at: GpuTools, *, force: bool) -> None:
    if _is_local(at, "stop"):
        return
    seen = _stop_instance(at, force=force)
    click.echo(f"{seen.id} is {seen.state} (observed).")
    clear_orders(at, seen)


def _stop_instance(at: GpuTools, *, force: bool) -> Instance:
    if force:
        # Without the lock: the tick that holds it drives the run that is to be stopped.
        return at.control.stop(force=True)
    try:
        with at.lock.held():
            refuse_open_run(at, "or `batchscribe gpu stop --force`")
            return at.control.stop(allowed=lambda found: refuse_foreign_claim(at, found))
    except LockHeldError as error:
        raise RefusedError(f"{error}; to stop the GPU anyway: `batchscribe gpu stop --force`") from error


@gpu.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """State of the instance, its claim, lock and worker version."""
    at = open_tools(ctx)
    machines, errors = list[dict[str, Any]](), list[BatchscribeError]()
    with _collect_errors(errors):
        for machine in at.machines():
            with _collect_errors(errors):
                machines.append(_describe_status(machine, errors))
    failure = combine_errors(errors) if errors else None
    if failure and not machines:
        raise failure
    if as_json:
        document = {"provider": at.provider, "machines": machines}
        if not at.created:
            own = next((rows for rows in machines if rows["instance"] == at.instance), {})
            others = [rows for rows in machines if rows is not own]
            document = {"provider": at.provider, "instance": at.instance} | own | {"other_machines": others}
        print_json(document | ({"error": str(failure)} if failure else {}))
        ctx.exit(failure.exit_code if failure else 0)
    if not machines:
        click.echo(NO_MACHINE)
    for name, value in (row for rows in machines for row in rows.items()):
        shown = describe_holder(at.lock.holder()) if name == "lock" else format_value(value)
        ctx.ensure_object(App).print_labelled(name.replace("_", " "), shown, indent=16)
    if failure:
        raise failure


@gpu.command()
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, check, stop it again.")
@click.pass_context
def check(ctx: click.Context, start_it: bool) -> None:
    """Check the instance and its worker, step by step."""
    at = one_machine(ctx, "check")
    refuse_unsupported(at.unsupported)
    at.preflight()
    seen = poll_existing(at)
    exists = seen.state not in {InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN}
    fix = "correct GPU_INSTANCE_ID or AWS_REGION"
    name = f"{seen.id} {seen.type}".strip()
    show = partial(_print_findings, ctx.ensure_object(App))
    fine = show([Finding(what="instance", ok=exists, detail=name, fix=fix)])
    if not exists:
        ctx.exit(1)
    with running_instance(at, seen, start_it=start_it) as running:
        if not _is_local(at, "start"):
            show([passed("state", (running or seen).state.value)])
        fine &= show(check_host(at, running) if running else [NOT_CHECKED])
    if not fine:
        ctx.exit(1)


@gpu.command()
@click.option(
    "--extra", type=click.Choice(EXTRAS), help="Extra to install on the host; default: the engine's."
)
@click.option("--wheel", type=click.Path(path_type=Path), help="An existing wheel of this version.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Settings and credentials of the workers.")
@click.option("--repin", is_flag=True, help="Trust the host key that the host presents now.")
@click.option("--fingerprint", help="The only host key to trust, as SHA256:...")
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, and stop it again.")
@click.pass_context
def setup(ctx: click.Context, /, start_it: bool, **options: Any) -> None:
    """Install and check the worker on the GPU host.

    Fetches its model and pins its host key.
    """
    at = one_machine(ctx, "set up")
    refuse_unsupported(at.unsupported)
    if _is_local(at, "set up; `batchscribe gpu check` checks it, `engines --fetch` downloads a model"):
        return
    with running_alone(at, "setup", start_it=start_it) as running:
        click.echo(f"setting up {running.id}: takes some minutes if CUDA's libraries are fetched")
        fine = _print_findings(ctx.ensure_object(App), at.set_up(running, **options))
    if not fine:
        click.echo("not recorded as ready: fix what failed, and run `batchscribe gpu setup` again")
        ctx.exit(1)


@gpu.command()
@click.option("--wheel", type=click.Path(path_type=Path), help="An existing wheel of this version.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Settings and credentials of the workers.")
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, and stop it again.")
@click.option("--print", "print_it", is_flag=True, help="Set up, then print the commands for the rest.")
@click.option("--made", metavar="IMAGE_ID", help="Only record an image that the printed commands made.")
@click.pass_context
def image(ctx: click.Context, /, start_it: bool, print_it: bool, made: str | None, **options: Any) -> None:
    """Make the image and launch template of machines that runs create.

    Sets up the instance GPU_INSTANCE_ID as `gpu setup` does, then makes an image of its disk. A running
    instance is rebooted for that, so that the file system in the image is complete.
    """
    at = one_machine(ctx, "make an image of")
    refuse_unsupported(at.unsupported)
    if _is_local(at, "make an image of"):
        return
    show = partial(_print_findings, ctx.ensure_object(App))
    if made:
        show([at.setup.record_image(made)])
        return
    with running_alone(at, "image", start_it=start_it) as running:
        click.echo(f"setting up {running.id} for an image: takes some minutes")
        fine = show(at.set_up(running, image=True, **options))
    if not fine:
        click.echo("no image was made: fix what failed, and run `batchscribe gpu image` again")
        ctx.exit(1)
    if print_it:
        click.echo("\n".join(at.describe_image(running)))
    else:
        show(at.make_image(running))
    click.echo(
        f"For runs that create machines from it: GPU_PROVIDER=fleet, GPU_LAUNCH_TEMPLATE={at.template}"
    )


@gpu.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1)
@click.pass_context
def ssh(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Log in on the GPU host, or run a command there.

    Example: `gpu ssh nvidia-smi -L`
    """
    at = one_machine(ctx, "log in to")
    if at.ssh is None:
        raise MisconfiguredError("the GPU is in this machine: no login is needed")
    argv = at.ssh.argv(at.control.poll(), command)
    os.execvp(argv[0], argv)  # noqa: S606  ssh takes over the user's terminal


def _is_local(at: GpuTools, action: str) -> bool:
    """True if the GPU is in this machine; then reports that."""
    if at.local:
        click.echo(f"the GPU is in this machine: nothing to {action}")
    return at.local


def _describe_status(at: GpuTools, errors: list[BatchscribeError]) -> dict[str, object]:
    """Rows of `gpu status`: state, claim, lock and worker version.

    Adds the errors of ledger and store to `errors`.
    """
    seen, run, worker = poll_existing(at), None, None
    with _collect_errors(errors):
        run = at.open_run(at.instance)
    with _collect_errors(errors):
        worker = _read_worker_version(at, seen.state)
    rate = at.find_rate(seen)
    return {
        "provider": at.provider,
        "instance": seen.id,
        "region": seen.region or at.region or None,
        "type": seen.type or None,
        "state": seen.state.value,
        "billable": seen.state.billable,
        "address": at.ssh.address(seen) if at.ssh else None,
        "launched_at": seen.launched_at,
        "hourly_dollars": rate.per_hour.dollars if rate else None,
        "dollars_so_far": _count_dollars(at, seen, rate),
        "claimed_by": seen.run,
        "deadline": seen.deadline,
        "open_run": run.id if run else None,
        "lock": at.lock.holder(),
        "worker": worker,
        "scheduler": __version__,
    }


def _count_dollars(at: GpuTools, seen: Instance, rate: Rate | None) -> float | None:
    """Cost of an instance in use since its launch, if known."""
    if rate is None or seen.launched_at is None or not seen.state.billable:
        return None
    return cost(rate, (at.clock.now() - seen.launched_at).total_seconds()).dollars


def _read_worker_version(at: GpuTools, state: InstanceState) -> str | None:
    """Returns the worker's version from the instance record; None without a record."""
    key = keys.instance(at.instance)
    try:
        record = read_optional(at.output, key, InstanceRecord)
    except MisconfiguredError as error:
        problem = f"{at.instance} is {state}, and its record {key} is {error}"
        raise MisconfiguredError(f"{problem}: `batchscribe gpu setup` rewrites it") from error
    return record.release if record else None


def _print_findings(app: App, findings: Iterable[Finding]) -> bool:
    """Prints each finding when it arrives; True if all passed."""
    fine = True
    for finding in findings:
        fine &= finding.ok
        app.console.print(describe_finding(finding, app.console.room), markup=False)
    return fine


def check_host(at: GpuTools, running: Instance) -> Iterator[Finding]:
    """Checks the host; loads no second model beside a run's."""
    return at.check(running, busy=at.open_run(at.instance) is not None or is_claimed(at, running))


def _describe_address(seen: Instance) -> str:
    kind = f" ({seen.type})" if seen.type else ""
    return f"{kind} at {seen.public_address}" if seen.public_address else kind
