"""Sessions of a manually started instance: lock, stop order, start and stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta

import click

from batchscribe.controller.commands.manual_control import ManualControl
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.errors import (
    BatchscribeError,
    InterruptedRunError,
    MisconfiguredError,
    NotOursError,
    RefusedError,
)
from batchscribe.wiring.gpu import GpuTools

_POLL_SECONDS = 60.0
_SESSION = timedelta(hours=1)
"""Time for a check or a set-up; after it the stop order outside this machine takes effect."""


@contextmanager
def running_instance(
    at: GpuTools, seen: Instance, *, start_it: bool, alone: bool = False
) -> Iterator[Instance | None]:
    """Yields the running instance, and stops it if it was started here.

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
def running_alone(at: GpuTools, command: str, *, start_it: bool) -> Iterator[Instance]:
    """Yields the running instance while no run can use it. Raises MisconfiguredError."""
    at.preflight()
    with running_instance(at, poll_existing(at), start_it=start_it, alone=True) as running:
        if running is None:
            raise MisconfiguredError(
                f"{at.instance} is not running: `batchscribe gpu {command} --start` starts it, and stops it "
                "again"
            )
        yield running


def poll_existing(at: GpuTools) -> Instance:
    """Polls the instance. Raises MisconfiguredError if there is none in the region."""
    seen = at.control.poll()
    if seen.state is InstanceState.MISSING:
        raise MisconfiguredError(at.absence)
    return seen


@contextmanager
def _exclude_runs(at: GpuTools) -> Iterator[None]:
    with at.lock.held():
        refuse_open_run(at)
        yield


@contextmanager
def _start_temporarily(at: GpuTools) -> Iterator[Instance]:
    control = at.control
    clear_orders(at, control.check_free())
    session = _arm_order(at, at.clock.now() + _SESSION)
    try:
        control.start()
        yield control.await_reachable(at.setup.reach)
    finally:
        with at.shield.shielded():
            if control.asked:
                stopped = control.stop()
                click.echo(f"{stopped.id} is {stopped.state} again.")
            at.orders.revoke(session)


def prepare_session(at: GpuTools, control: ManualControl, deadline: datetime | None) -> str:
    """Clears stale orders; returns a guarded session, empty without a deadline."""
    seen = control.check_free()
    clear_orders(at, seen)
    if deadline is None:
        return ""
    refuse_foreign_claim(at, seen)
    return _arm_order(at, deadline)


def _arm_order(at: GpuTools, deadline: datetime) -> str:
    """Arms the stop order of a new session; returns its name."""
    session = at.new_session()
    try:
        at.orders.arm(session, deadline)
    except BatchscribeError:
        # The order may exist in spite of the error; its session does not begin.
        with suppress(BatchscribeError):
            at.orders.revoke(session)
        raise
    return session


def clear_orders(at: GpuTools, seen: Instance) -> None:
    run = at.open_run(at.instance)
    if stale := at.orders.revoke_stale(seen, keep=run.id if run else None):
        click.echo(f"Removed stale stop orders of {', '.join(stale)}.")


def start_instance(at: GpuTools, control: ManualControl, session: str) -> Instance:
    """Starts the instance; an interrupt stops it again.

    If the result of the start is unknown, the order stays: it stops an instance that comes up late.
    """
    try:
        return control.start()
    except InterruptedRunError:
        with at.shield.shielded():
            if control.asked:
                control.stop()
            _revoke_order(at, session)
        raise
    except (RefusedError, MisconfiguredError):
        _revoke_order(at, session)
        raise


def _revoke_order(at: GpuTools, session: str) -> None:
    if session:
        at.orders.revoke(session)


def stop_after(at: GpuTools, control: ManualControl, started: Instance, seconds: float, session: str) -> None:
    """Waits, then stops the instance; a signal ends the wait."""
    click.echo(f"Stopping it in {seconds / 60:.0f} min, or on Ctrl-C: keep this command running until then.")
    end = at.clock.monotonic() + seconds
    try:
        while (left := end - at.clock.monotonic()) > 0:
            at.clock.sleep(min(left, _POLL_SECONDS))
    finally:
        with at.shield.shielded():
            _stop_own(at, control, started)
            at.orders.revoke(session)


def _stop_own(at: GpuTools, control: ManualControl, started: Instance) -> None:
    """Stops the instance, unless another owner restarted or claimed it since."""

    def still_ours(seen: Instance) -> None:
        if seen.run or at.open_run(at.instance) or seen.launched_at != started.launched_at:
            raise NotOursError(f"{seen.id} has another owner now ({seen.state}): not stopped.")

    try:
        seen = control.stop(allowed=still_ours)
    except NotOursError as error:
        click.echo(str(error))
        return
    click.echo(f"{seen.id} is {seen.state}.")


def refuse_open_run(at: GpuTools, alternative: str = "or stop its tick with SIGTERM") -> None:
    run = at.open_run(at.instance)
    if run:
        raise RefusedError(
            f"run {run.id} is {run.state} on {at.instance}; nothing was done: wait until it is settled, "
            f"{alternative}"
        )


def is_claimed(at: GpuTools, seen: Instance) -> bool:
    return bool(seen.run) and (seen.deadline is None or seen.deadline > at.clock.now())


def refuse_foreign_claim(at: GpuTools, seen: Instance) -> None:
    if is_claimed(at, seen):
        raise NotOursError(
            f"{seen.id} is claimed by run {seen.run}, which is not in this ledger; nothing was done: "
            "to stop it anyway, `batchscribe gpu stop --force`"
        )
