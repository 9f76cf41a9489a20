"""In-memory launcher with late answers and workers played by callbacks."""

from __future__ import annotations

from collections.abc import Callable

from batchscribe import __version__
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import Manifest, WorkerRef
from batchscribe.errors import BatchscribeError, HostTimeoutError, LaunchError
from batchscribe.testing.compute import FaultPlan

WorkerName = tuple[str, int]


class FakeLauncher(FaultPlan):
    """A protocols.Launcher that starts nothing by itself.

    `on_launch` and `on_cancel` play the worker: they are called once for each worker that is started
    or cancelled, with its manifest and its URL.
    """

    def __init__(
        self,
        *,
        on_launch: Callable[[Instance, Manifest, str], None] | None = None,
        on_cancel: Callable[[WorkerRef], None] | None = None,
        on_kill: Callable[[WorkerRef], None] | None = None,
    ) -> None:
        super().__init__()
        self.version = __version__
        self.silent_probes = 0
        """Number of probes without an answer."""
        self.launched: dict[WorkerName, str] = {}
        """Manifest URL of each worker that was started."""
        self.cancelled: list[WorkerName] = []
        self.is_alive: Callable[[WorkerRef], bool] = lambda _manifest: True
        """True if a launched worker still runs; set by the test that plays it."""
        self._on_launch = on_launch
        self.killed: list[WorkerName] = []
        self._on_cancel = on_cancel
        self._on_kill = on_kill

    def probe(self, instance: Instance) -> str:
        self._raise_planned_error("probe")
        if instance.state is not InstanceState.RUNNING:
            raise LaunchError(f"{instance.id} is {instance.state}")
        if self.silent_probes > 0:
            self.silent_probes -= 1
            raise HostTimeoutError(f"ssh to {instance.id}: no answer in time")
        return self.version

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._raise_planned_error("launch")
        if instance.state is not InstanceState.RUNNING:
            raise LaunchError(f"{instance.id} is {instance.state}: no worker was started")
        name = (manifest.run, manifest.worker)
        if name in self.launched:
            return
        self.launched[name] = url
        if self._on_launch:
            self._on_launch(instance, manifest, url)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """`is_alive` of a launched worker; None at a planned error."""
        try:
            self._raise_planned_error("alive")
        except BatchscribeError:
            return None
        if instance.state is not InstanceState.RUNNING:
            return None
        return (worker.run, worker.worker) in self.launched and self.is_alive(worker)

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        self._raise_planned_error("cancel")
        name = (worker.run, worker.worker)
        if force and name in self.launched:
            self.killed.append(name)
            if self._on_kill:
                self._on_kill(worker)
        elif name in self.launched and name not in self.cancelled:
            self.cancelled.append(name)
            if self._on_cancel:
                self._on_cancel(worker)

    def _raise_planned_error(self, call: str) -> None:
        if fault := self._take_fault(call):
            raise fault.error
