"""`batchscribe gpu`: manual control of the instance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from batchscribe import __version__
from batchscribe.cli.app import App, Duration, json_option, print_json
from batchscribe.controller.commands.manual_control import Hand
from batchscribe.controller.context import refuse_unfit
from batchscribe.core import keys
from batchscribe.core.run.host import Finding, Grade, InstanceRecord, passed, warned
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    LockHeldError,
    MisconfiguredError,
    NotOursError,
    RefusedError,
)
from batchscribe.reading import read_optional
from batchscribe.wiring.gpu import EXTRAS, GpuTools

TOOLS = "batchscribe.gpu.tools"
_POLL_SECONDS = 60.0
NOT_CHECKED = warned(
    "host",
    "not checked while it is not running: ssh, worker, engine and stores",
    "`batchscribe gpu check --start` starts it, checks them, and stops it again",
)
LABELS = {Grade.PASS: "ok  ", Grade.WARN: "warn", Grade.FAIL: "FAIL"}
_SESSION_SECONDS = 3600.0
"""Time for a check or a set-up; after it the stop order outside this machine takes effect."""


def tools(ctx: click.Context) -> GpuTools:
    """Builds the tools with the factory in `ctx.meta`."""
    make: Callable[[], GpuTools] = ctx.meta[TOOLS]
    return make()


@click.group()
def gpu() -> None:
    """Manual control of the GPU instance."""


@gpu.command()
@click.option(
    "--for",
    "length",
    type=Duration("hms", "{value!r} is not a time such as 2h or 45m"),
    help="Stop it again after this time, e.g. 2h.",
)
@click.pass_context
def start(ctx: click.Context, length: timedelta | None) -> None:
    """Start the instance for yourself; the scheduler leaves it alone."""
    at = tools(ctx)
    if _is_local(at, "start"):
        return
    seconds = length.total_seconds() if length is not None else None
    hand = at.hand
    at.preflight()
    with at.lock.held():
        _refuse_open_run(at)
        session = _prepare_session(at, hand, seconds)
        seen = _start_instance(at, hand, session)
    click.echo(f"{seen.id} {'is running' if hand.asked else 'was running already'}{_describe_address(seen)}.")
    click.echo("The scheduler leaves it alone, and it costs money until `batchscribe gpu stop`.")
    if seconds is not None:
        _stop_after(at, hand, seen, seconds, session)


@gpu.command()
@click.option("--force", is_flag=True, help="Stop it even if a run uses it; also forces a stuck stop.")
@click.pass_context
def stop(ctx: click.Context, force: bool) -> None:
    """Stop the instance, and wait until it is observed stopped.

    Exit code 3 if it is not observed stopped.
    """
    app = ctx.ensure_object(App)
    app.lenient = True
    at = tools(ctx)
    if _is_local(at, "stop"):
        return
    if force:
        # Without the lock: the tick that holds it drives the run that is to be stopped.
        seen = at.hand.stop(force=True)
    else:
        try:
            with at.lock.held():
                _refuse_open_run(at, "or `batchscribe gpu stop --force`")
                seen = at.hand.stop(allowed=lambda found: _refuse_foreign_claim(at, found))
        except LockHeldError as error:
            raise RefusedError(f"{error}; to stop the GPU anyway: `batchscribe gpu stop --force`") from error
    click.echo(f"{seen.id} is {seen.state} (observed).")
    _clear_orders(at, seen)
    if app.settings.problems:
        raise MisconfiguredError("; ".join(app.settings.problems))


@gpu.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """State of the instance, its claim, lock and worker version."""
    rows = _describe_status(tools(ctx))
    if as_json:
        print_json(rows)
        return
    for name, value in rows.items():
        click.echo(f"{name.replace('_', ' '):<16} {'-' if value is None else value}")


@gpu.command()
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, check, stop it again.")
@click.pass_context
def check(ctx: click.Context, start_it: bool) -> None:
    """Check the instance and its worker, step by step."""
    at = tools(ctx)
    refuse_unfit(at.unfit)
    at.preflight()
    seen = _poll_existing(at)
    exists = seen.state not in {InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN}
    fix = "correct GPU_INSTANCE_ID or AWS_REGION"
    name = f"{seen.id} {seen.type}".strip()
    fine = _print_findings([Finding(what="instance", ok=exists, detail=name, mend=fix)])
    if not exists:
        ctx.exit(1)
    with running_instance(at, seen, start_it=start_it) as running:
        if not _is_local(at, "start"):
            _print_findings([passed("state", (running or seen).state.value)])
        fine &= _print_findings(check_host(at, running) if running else [NOT_CHECKED])
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
def setup(ctx: click.Context, /, start_it: bool, **wishes: Any) -> None:
    """Install and check the worker on the GPU host.

    Fetches its model and pins its host key.
    """
    at = tools(ctx)
    refuse_unfit(at.unfit)
    if _is_local(at, "set up; `batchscribe gpu check` checks it, `engines --fetch` downloads a model"):
        return
    at.preflight()
    with running_instance(at, at.hand.look(), start_it=start_it, alone=True) as running:
        if running is None:
            raise MisconfiguredError(
                f"{at.instance} is not running: `batchscribe gpu setup --start` starts it, and stops it again"
            )
        click.echo(f"setting up {running.id}: takes some minutes if CUDA's libraries are fetched")
        fine = _print_findings(at.set_up(running, **wishes))
    if not fine:
        click.echo("not recorded as ready: fix what failed, and run `batchscribe gpu setup` again")
        ctx.exit(1)


@gpu.command()
@click.argument("command", nargs=-1)
@click.pass_context
def ssh(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Log in on the GPU host, or run a command there.

    Example: `gpu ssh -- nvidia-smi`
    """
    at = tools(ctx)
    if at.ssh is None:
        raise MisconfiguredError("the GPU is in this machine: no login is needed")
    argv = at.ssh.argv(at.hand.look(), command)
    os.execvp(argv[0], argv)  # noqa: S606  ssh takes over the user's terminal


def _is_local(at: GpuTools, action: str) -> bool:
    """True if the GPU is in this machine; prints that there is nothing to do."""
    if at.local:
        click.echo(f"the GPU is in this machine: nothing to {action}")
    return at.local


def _describe_status(at: GpuTools) -> dict[str, object]:
    """Rows of `gpu status`: state, claim, lock and worker version."""
    seen = _poll_existing(at)
    run = at.open_run(at.instance)
    return {
        "provider": at.provider,
        "instance": seen.id,
        "type": seen.type or None,
        "state": seen.state.value,
        "billable": seen.state.billable,
        "address": at.ssh.address(seen) if at.ssh else None,
        "launched_at": seen.launched_at.isoformat() if seen.launched_at else None,
        "claimed_by": seen.run,
        "deadline": seen.deadline.isoformat() if seen.deadline else None,
        "open_run": run.id if run else None,
        "lock": at.lock.holder(),
        "worker": _read_worker_version(at, seen.state),
        "scheduler": __version__,
    }


def _poll_existing(at: GpuTools) -> Instance:
    """Polls the instance. Raises MisconfiguredError if there is none in the region."""
    seen = at.hand.look()
    if seen.state is InstanceState.MISSING:
        raise MisconfiguredError(at.absence)
    return seen


def _read_worker_version(at: GpuTools, state: InstanceState) -> str | None:
    """Returns the worker's version from the instance record; None without a record."""
    key = keys.instance(at.instance)
    try:
        record = read_optional(at.output, key, InstanceRecord)
    except MisconfiguredError as error:
        problem = f"{at.instance} is {state}, and its record {key} is {error}"
        raise MisconfiguredError(f"{problem}: `batchscribe gpu setup` rewrites it") from error
    return record.release if record else None


def _print_findings(findings: Iterable[Finding]) -> bool:
    """Prints each finding when it arrives; True if all passed."""
    fine = True
    for finding in findings:
        fine &= finding.ok
        click.echo(f"{LABELS[finding.level]}  {finding.what:<18} {finding.detail}")
        if finding.level is not Grade.PASS and finding.mend:
            click.echo(f"{'':<6}{'':<18} -> {finding.mend}")
    return fine


def check_host(at: GpuTools, running: Instance) -> Iterator[Finding]:
    """Checks the host; loads no second model while a run uses its GPU."""
    return at.check(running, busy=at.open_run(at.instance) is not None or _is_claimed(at, running))


@contextmanager
def running_instance(
    at: GpuTools, seen: Instance, *, start_it: bool, alone: bool = False
) -> Iterator[Instance | None]:
    """Yields the running instance, and stops it again if it was started here. This machine runs.

    Yields None if it does not run and `start_it` is False.
    """
    if at.local or seen.state is InstanceState.RUNNING:
        with _exclude_runs(at) if alone else nullcontext():
            yield seen
    elif not start_it:
        yield None
    else:
        with _exclude_runs(at), _start_temporarily(at) as started:
            yield started


@contextmanager
def _exclude_runs(at: GpuTools) -> Iterator[None]:
    with at.lock.held():
        _refuse_open_run(at)
        yield


@contextmanager
def _start_temporarily(at: GpuTools) -> Iterator[Instance]:
    hand = at.hand
    _clear_orders(at, hand.free())
    session = _arm_order(at, _SESSION_SECONDS)
    try:
        hand.start()
        yield hand.reached(at.setup.reach)
    finally:
        with at.shield.shielded():
            if hand.asked:
                stopped = hand.stop()
                click.echo(f"{stopped.id} is {stopped.state} again.")
            at.orders.take_back(session)


def _prepare_session(at: GpuTools, hand: Hand, seconds: float | None) -> str:
    """Clears stale orders; returns a guarded session, empty without a time limit."""
    seen = hand.free()
    _clear_orders(at, seen)
    if seconds is None:
        return ""
    _refuse_foreign_claim(at, seen)
    return _arm_order(at, seconds)


def _arm_order(at: GpuTools, seconds: float) -> str:
    """Arms the stop order of a new session; returns its name."""
    session = at.new_session()
    try:
        at.orders.give(session, seconds)
    except BatchscribeError:
        # The order may exist in spite of the error; its session does not begin.
        with suppress(BatchscribeError):
            at.orders.take_back(session)
        raise
    return session


def _clear_orders(at: GpuTools, seen: Instance) -> None:
    run = at.open_run(at.instance)
    if stale := at.orders.clear(seen, keep=run.id if run else None):
        click.echo(f"Removed stale stop orders of {', '.join(stale)}.")


def _start_instance(at: GpuTools, hand: Hand, session: str) -> Instance:
    """Starts the instance; an interrupt stops it again.

    If the result of the start is unknown, the order stays: it stops an instance that comes up late.
    """
    try:
        return hand.start()
    except InterruptedRunError:
        with at.shield.shielded():
            if hand.asked:
                hand.stop()
            _revoke_order(at, session)
        raise
    except (RefusedError, MisconfiguredError):
        _revoke_order(at, session)
        raise


def _revoke_order(at: GpuTools, session: str) -> None:
    if session:
        at.orders.take_back(session)


def _stop_after(at: GpuTools, hand: Hand, started: Instance, seconds: float, session: str) -> None:
    click.echo(f"Stopping it in {seconds / 60:.0f} min, or on Ctrl-C: keep this command running until then.")
    end = at.clock.monotonic() + seconds
    try:
        while (left := end - at.clock.monotonic()) > 0:
            at.clock.sleep(min(left, _POLL_SECONDS))
    finally:
        with at.shield.shielded():
            _stop_own(at, hand, started)
            at.orders.take_back(session)


def _stop_own(at: GpuTools, hand: Hand, started: Instance) -> None:
    """Stops the instance, unless another owner restarted or claimed it since."""

    def still_ours(seen: Instance) -> None:
        if seen.run or at.open_run(at.instance) or seen.launched_at != started.launched_at:
            raise NotOursError(f"{seen.id} has another owner now ({seen.state}): not stopped.")

    try:
        seen = hand.stop(allowed=still_ours)
    except NotOursError as error:
        click.echo(str(error))
        return
    click.echo(f"{seen.id} is {seen.state}.")


def _refuse_open_run(at: GpuTools, alternative: str = "or stop its tick with SIGTERM") -> None:
    run = at.open_run(at.instance)
    if run:
        raise RefusedError(
            f"run {run.id} is {run.state} on {at.instance}; nothing was done: wait until it is settled, "
            f"{alternative}"
        )


def _is_claimed(at: GpuTools, seen: Instance) -> bool:
    return bool(seen.run) and (seen.deadline is None or seen.deadline > at.clock.now())


def _refuse_foreign_claim(at: GpuTools, seen: Instance) -> None:
    if _is_claimed(at, seen):
        raise NotOursError(
            f"{seen.id} is claimed by run {seen.run}, which is not in this ledger; nothing was done: "
            "to stop it anyway, `batchscribe gpu stop --force`"
        )


def _describe_address(seen: Instance) -> str:
    kind = f" ({seen.type})" if seen.type else ""
    return f"{kind} at {seen.public_address}" if seen.public_address else kind
