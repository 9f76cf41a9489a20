"""Manual control of machines that runs created: poll and end only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchscribe.core.run.instances import Instance
from batchscribe.errors import MisconfiguredError
from batchscribe.protocols import Capacity


@dataclass(frozen=True, slots=True)
class CreatedMachines:
    """A ManualCompute over a protocols.Capacity; IDs are the runs' machine names."""

    open_capacity: Callable[[], Capacity]
    """Opened only when it is used: settings that it lacks do not prevent the stop of other machines."""

    def describe(self, instance: str) -> Instance:
        (seen,) = self.open_capacity().poll((instance,))
        return seen

    def stop(self, instance: str, *, force: bool = False) -> None:
        self.open_capacity().teardown(instance, force=force)

    def start_unclaimed(self, instance: str) -> None:
        raise MisconfiguredError(f"a run creates its own machines: {instance} is not started here")
