"""Tools of the `batchscribe gpu` commands, and the instance's status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from batchscribe import __version__
from batchscribe.adapters.host_access.setup import BoxSetup
from batchscribe.adapters.host_access.ssh import Ssh
from batchscribe.controller.commands.manual_control import Hand, HandCompute, HandOrders, Patience
from batchscribe.controller.context import Shield
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import InstanceState
from batchscribe.core.run.runs import Run
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError
from batchscribe.protocols import Clock, Guard, Lock, Store
from batchscribe.reading import read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTools:
    """Tools of the `batchscribe gpu` commands."""

    provider: str
    instance: str
    compute: HandCompute
    guard: Guard
    clock: Clock
    shield: Shield
    lock: Lock
    open_run: Callable[[str], Run | None]
    """Returns our open run on an instance."""
    new_session: Callable[[], str]
    """Returns a name for the stop order of a manual session."""
    output: Callable[[], Store]
    setup: BoxSetup
    absence: str
    """Message for an instance that does not exist."""
    preflight: Callable[[], None] = lambda: None
    """Raises MisconfiguredError if a start is bound to be useless."""
    unfit: str = ""
    """Unsupported engine configuration, with its fix; empty if it is supported."""
    ssh: Ssh | None = None
    """None if the GPU is in this machine."""
    patience: Patience = field(default_factory=Patience)

    @property
    def hand(self) -> Hand:
        return Hand(self.compute, self.clock, self.instance, self.patience)

    @property
    def orders(self) -> HandOrders:
        return HandOrders(self.guard, self.clock, self.instance)


def status_of(at: GpuTools) -> dict[str, object]:
    """Returns the rows of `gpu status`: state, claim, lock and worker version."""
    seen = at.hand.look()
    if seen.state is InstanceState.MISSING:
        raise MisconfiguredError(at.absence)
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


def _read_worker_version(at: GpuTools, state: InstanceState) -> str | None:
    """Returns the worker's version from the instance record; None without a record."""
    key = keys.instance(at.instance)
    try:
        return read_record(at.output(), key, InstanceRecord).release
    except ObjectNotFoundError:
        return None
    except MisconfiguredError as error:
        problem = f"{at.instance} is {state}, and its record {key} is {error}"
        raise MisconfiguredError(f"{problem}: `batchscribe gpu setup` rewrites it") from error
