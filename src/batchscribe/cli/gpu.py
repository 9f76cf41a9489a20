"""`batchscribe gpu`: the instance by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec

from batchscribe.adapters.host_access.installation import EXTRAS
from batchscribe.adapters.host_access.setup import BoxSetup, Wishes
from batchscribe.cli.app import App
from batchscribe.cli.gpu_kit import GpuTools, status_of
from batchscribe.controller.commands.manual_control import Hand
from batchscribe.controller.context import refuse_unfit
from batchscribe.core.run.host import Finding
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    LockHeldError,
    MisconfiguredError,
    NotOursError,
    RefusedError,
)

TOOLS = "batchscribe.gpu.tools"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([hms])")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_LOOK_SECONDS = 60.0
_BORROWED_SECONDS = 3600.0
"""Enough for a check or a set-up; then the order outside this machine stops what nobody has stopped."""


def tools(ctx: click.Context) -> GpuTools:
    """What to work with: made by the function that was put into `ctx.meta`."""
    make: Callable[[], GpuTools] = ctx.meta[TOOLS]
    return make()


def _seconds(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a time such as 2h or 45m")
    return float(match[1]) * _UNITS[match[2]]


@click.group()
def gpu() -> None:
    """The GPU instance by hand."""


@gpu.command()
@click.option("--for", "seconds", callback=_seconds, help="Stop it again after this time, e.g. 2h.")
@click.pass_context
def start(ctx: click.Context, seconds: float | None) -> None:
    """Start the instance for yourself; the scheduler leaves it alone."""
    at = tools(ctx)
    hand = at.hand
    with at.lock.held():
        _no_open_run(at)
        session = _prepared(at, hand, seconds)
        seen = _started(at, hand, session)
    click.echo(f"{seen.id} {'is running' if hand.asked else 'was running already'}{_place(seen)}.")
    click.echo("The scheduler leaves it alone, and it costs money until `batchscribe gpu stop`.")
    if seconds is not None:
        _stay(at, hand, seen, seconds, session)


@gpu.command()
@click.option("--force", is_flag=True, help="Also while a run uses it; forces a stuck stop, too.")
@click.pass_context
def stop(ctx: click.Context, force: bool) -> None:
    """Stop the instance, and wait until it is seen stopped (exit code 3 if it is not)."""
    app = ctx.ensure_object(App)
    app.lenient = True
    at = tools(ctx)
    if force:
        # The tick that holds the lock is driving the very run that is to be cut short.
        seen = at.hand.stop(force=True)
    else:
        try:
            with at.lock.held():
                _no_open_run(at, "or `batchscribe gpu stop --force`")
                seen = at.hand.stop(allowed=lambda found: _nobody_elses(at, found))
        except LockHeldError as error:
            raise RefusedError(
                f"{error}; to stop the GPU all the same: `batchscribe gpu stop --force`"
            ) from error
    click.echo(f"{seen.id} is {seen.state}: observed, not only asked for.")
    _clear_orders(at, seen)
    if app.settings.problems:
        raise MisconfiguredError("; ".join(app.settings.problems))


@gpu.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """What the instance is doing, and for whom."""
    rows = status_of(tools(ctx))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return
    for name, value in rows.items():
        click.echo(f"{name.replace('_', ' '):<16} {'-' if value is None else value}")


@gpu.command()
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, check, stop it again.")
@click.pass_context
def check(ctx: click.Context, start_it: bool) -> None:
    """Test the way to the worker, step by step, and say what mends each step."""
    at = tools(ctx)
    refuse_unfit(at.unfit)
    seen = at.hand.look()
    exists = seen.state not in {InstanceState.MISSING, InstanceState.TERMINATED}
    mend = "mend GPU_INSTANCE_ID or AWS_REGION"
    name = f"{seen.id} {seen.type}".strip()
    well = _show([Finding(what="instance", ok=exists, detail=name, mend=mend)])
    if not exists:
        ctx.exit(1)
    with _running(at, seen, start_it=start_it) as running:
        up = running is not None
        mend = "`batchscribe gpu check --start` starts it, checks the rest, and stops it again"
        state = (running or seen).state
        well &= _show([Finding(what="state", ok=up, detail=state.value, mend=mend)])
        if running is not None:
            well &= _show(_beside_runs(at, running).check(running))
    if not well:
        ctx.exit(1)


@gpu.command()
@click.option(
    "--extra", type=click.Choice(EXTRAS), help="What the box computes with; else what the engine needs."
)
@click.option("--wheel", type=click.Path(path_type=Path), help="This version's wheel, built before.")
@click.option("--env-file", type=click.Path(path_type=Path), help="Settings and credentials of the workers.")
@click.option("--repin", is_flag=True, help="Trust the host key that the box shows now.")
@click.option("--fingerprint", help="The only host key to trust, as SHA256:...")
@click.option("--start", "start_it", is_flag=True, help="Start a stopped instance, and stop it again.")
@click.pass_context
def setup(ctx: click.Context, /, start_it: bool, **wishes: Any) -> None:
    """Install the worker on the box, fetch its model, pin its host key, and check it."""
    at = tools(ctx)
    refuse_unfit(at.unfit)
    with _running(at, at.hand.look(), start_it=start_it, alone=True) as running:
        if running is None:
            raise MisconfiguredError(
                f"{at.instance} is not running: `batchscribe gpu setup --start` starts it, and stops it again"
            )
        click.echo(f"setting up {running.id}: this takes minutes where CUDA's libraries are fetched")
        well = _show(at.setup.set_up(running, Wishes(**wishes)))
    if not well:
        click.echo("not recorded as ready: mend what failed, and run `batchscribe gpu setup` again")
        ctx.exit(1)


@gpu.command()
@click.argument("command", nargs=-1)
@click.pass_context
def ssh(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Log in on the box, or run a command there: `gpu ssh -- nvidia-smi`."""
    at = tools(ctx)
    if at.ssh is None:
        raise MisconfiguredError("the GPU is in this machine: there is nothing to log in to")
    argv = at.ssh.argv(at.hand.look(), command)
    os.execvp(argv[0], argv)  # noqa: S606  the person's terminal becomes ssh's


def _show(findings: Iterable[Finding]) -> bool:
    """Prints each finding as it comes; True where all is well."""
    well = True
    for finding in findings:
        well &= finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what:<18} {finding.detail}")
        if not finding.ok and finding.mend:
            click.echo(f"{'':<6}{'':<18} -> {finding.mend}")
    return well


def _beside_runs(at: GpuTools, seen: Instance) -> BoxSetup:
    """The set-up, which loads no second model where a run is at work."""
    if at.open_run(at.instance) is None and not _claimed(at, seen):
        return at.setup
    return replace(at.setup, terms=replace(at.setup.terms, busy=True))


@contextmanager
def _running(
    at: GpuTools, seen: Instance, *, start_it: bool, alone: bool = False
) -> Iterator[Instance | None]:
    """The instance while it runs; one that had to be started is stopped again, whatever happens.

    None where it does not run and shall not be started.
    """
    if seen.state is InstanceState.RUNNING:
        with _alone(at) if alone else nullcontext():
            yield seen
    elif not start_it:
        yield None
    else:
        with _alone(at), _borrowed(at) as borrowed:
            yield borrowed


@contextmanager
def _alone(at: GpuTools) -> Iterator[None]:
    with at.lock.held():
        _no_open_run(at)
        yield


@contextmanager
def _borrowed(at: GpuTools) -> Iterator[Instance]:
    hand = at.hand
    _clear_orders(at, hand.free())
    session = _guarded(at, _BORROWED_SECONDS)
    try:
        hand.start()
        yield hand.reached(at.setup.reachable)
    finally:
        with at.shield.shielded():
            if hand.asked:
                stopped = hand.stop()
                click.echo(f"{stopped.id} is {stopped.state} again.")
            at.orders.take_back(session)


def _prepared(at: GpuTools, hand: Hand, seconds: float | None) -> str:
    """The session that may begin: no order of others stands against it, and its own is given."""
    seen = hand.free()
    _clear_orders(at, seen)
    if seconds is None:
        return ""
    _nobody_elses(at, seen)
    return _guarded(at, seconds)


def _guarded(at: GpuTools, seconds: float) -> str:
    """The name of a new session, for which the order outside this machine has been given."""
    session = at.new_session()
    try:
        at.orders.give(session, seconds)
    except BatchscribeError:
        # It may stand all the same; the session it was for will not begin.
        with suppress(BatchscribeError):
            at.orders.take_back(session)
        raise
    return session


def _clear_orders(at: GpuTools, seen: Instance) -> None:
    run = at.open_run(at.instance)
    if stale := at.orders.clear(seen, keep=run.id if run else None):
        click.echo(f"Taken back, since nothing stands behind them: the stop orders of {', '.join(stale)}.")


def _started(at: GpuTools, hand: Hand, session: str) -> Instance:
    """The instance, running. Whoever interrupts a start does not want it.

    Where it is not known what became of the start, the order stays: it stops what comes up late.
    """
    try:
        return hand.start()
    except InterruptedRunError:
        with at.shield.shielded():
            if hand.asked:
                hand.stop()
            _over(at, session)
        raise
    except (RefusedError, MisconfiguredError):
        _over(at, session)
        raise


def _over(at: GpuTools, session: str) -> None:
    if session:
        at.orders.take_back(session)


def _stay(at: GpuTools, hand: Hand, started: Instance, seconds: float, session: str) -> None:
    click.echo(f"Stopping it in {seconds / 60:.0f} min, or on Ctrl-C: keep this command running until then.")
    end = at.clock.monotonic() + seconds
    try:
        while (left := end - at.clock.monotonic()) > 0:
            at.clock.sleep(min(left, _LOOK_SECONDS))
    finally:
        with at.shield.shielded():
            _stop_own(at, hand, started)
            at.orders.take_back(session)


def _stop_own(at: GpuTools, hand: Hand, started: Instance) -> None:
    """Stops what we started, unless it has been stopped and started by somebody else since."""

    def still_ours(seen: Instance) -> None:
        if seen.run or at.open_run(at.instance) or seen.launched_at != started.launched_at:
            raise NotOursError(f"{seen.id} is in other hands now ({seen.state}): it was left alone.")

    try:
        seen = hand.stop(allowed=still_ours)
    except NotOursError as error:
        click.echo(str(error))
        return
    click.echo(f"{seen.id} is {seen.state}.")


def _no_open_run(at: GpuTools, way_out: str = "or stop its tick with SIGTERM") -> None:
    run = at.open_run(at.instance)
    if run:
        raise RefusedError(
            f"run {run.id} is {run.state} on {at.instance}; nothing was done: wait until it is settled, "
            f"{way_out}"
        )


def _claimed(at: GpuTools, seen: Instance) -> bool:
    return bool(seen.run) and (seen.deadline is None or seen.deadline > at.clock.now())


def _nobody_elses(at: GpuTools, seen: Instance) -> None:
    if _claimed(at, seen):
        raise NotOursError(
            f"{seen.id} is claimed by run {seen.run}, which is not in this ledger; nothing was done: "
            "if you know better, `batchscribe gpu stop --force`"
        )


def _place(seen: Instance) -> str:
    kind = f" ({seen.type})" if seen.type else ""
    return f"{kind} at {seen.public_address}" if seen.public_address else kind
