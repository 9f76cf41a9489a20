"""What the commands of `batchscribe gpu` work with, and what they say of the instance."""

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
    """What these commands work with."""

    provider: str
    instance: str
    compute: HandCompute
    guard: Guard
    clock: Clock
    shield: Shield
    lock: Lock
    open_run: Callable[[str], Run | None]
    """The open run of ours that uses an instance."""
    new_session: Callable[[], str]
    """A name for the order that guards a session by hand."""
    output: Callable[[], Store]
    setup: BoxSetup
    unfit: str = ""
    """Why no machine could do what is asked of the engine, with the mend; empty where one could."""
    ssh: Ssh | None = None
    """None where the GPU is in this machine."""
    patience: Patience = field(default_factory=Patience)

    @property
    def hand(self) -> Hand:
        return Hand(self.compute, self.clock, self.instance, self.patience)

    @property
    def orders(self) -> HandOrders:
        return HandOrders(self.guard, self.clock, self.instance)


def status_of(at: GpuTools) -> dict[str, object]:
    """What the instance is doing, and for whom."""
    seen = at.hand.look()
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
        "worker": _recorded(at, seen.state),
        "scheduler": __version__,
    }


def _recorded(at: GpuTools, state: InstanceState) -> str | None:
    """The version of the worker that was set up there, as far as the store knows."""
    key = keys.instance(at.instance)
    try:
        return read_record(at.output(), key, InstanceRecord).release
    except ObjectNotFoundError:
        return None
    except MisconfiguredError as error:
        why = f"{at.instance} is {state}, and its record {key} is {error}"
        raise MisconfiguredError(f"{why}: `batchscribe gpu setup` writes it anew") from error
