"""A launcher in memory: boxes that take a few looks to answer, and workers that somebody plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from batchscribe import __version__
from batchscribe.core.run.instances import Instance, InstanceState
from batchscribe.core.run.manifest import Manifest, WorkerRef
from batchscribe.errors import BatchscribeError, LaunchError

WorkerName = tuple[str, int]


class FakeLauncher:
    """A protocols.Launcher that starts nothing by itself.

    `on_launch` and `on_cancel` play the worker: they are called once for each worker that is started
    or asked to end, with its manifest and the URL that it was started on.
    """

    def __init__(
        self,
        *,
        version: str = __version__,
        silent_probes: int = 0,
        on_launch: Callable[[Instance, Manifest, str], None] | None = None,
        on_cancel: Callable[[WorkerRef], None] | None = None,
        on_kill: Callable[[WorkerRef], None] | None = None,
    ) -> None:
        self.version = version
        self.silent_probes = silent_probes
        """So many probes are answered by nobody yet."""
        self.launched: dict[WorkerName, str] = {}
        """The URL of the manifest of each worker that was started."""
        self.cancelled: list[WorkerName] = []
        self.is_alive: Callable[[WorkerRef], bool] = lambda _manifest: True
        """Whether a worker that was launched still runs; whoever plays it sets this."""
        self._on_launch = on_launch
        self.killed: list[WorkerName] = []
        self._on_cancel = on_cancel
        self._on_kill = on_kill
        self._faults: dict[str, deque[BatchscribeError | None]] = {}

    def fail(self, call: str, *errors: BatchscribeError | None) -> None:
        """The next calls of `probe`, `launch`, `alive` or `cancel` raise these; None is no fault."""
        self._faults.setdefault(call, deque()).extend(errors)

    def probe(self, instance: Instance) -> str | None:
        self._meet("probe")
        if instance.state is not InstanceState.RUNNING:
            return None
        if self.silent_probes > 0:
            self.silent_probes -= 1
            return None
        return self.version

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._meet("launch")
        if instance.state is not InstanceState.RUNNING:
            raise LaunchError(f"{instance.id} is {instance.state}: no worker was started")
        name = (manifest.run, manifest.worker)
        if name in self.launched:
            return
        self.launched[name] = url
        if self._on_launch:
            self._on_launch(instance, manifest, url)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """What `is_alive` says of a worker that was launched; False for any other.

        None where an error was planned for it.
        """
        try:
            self._meet("alive")
        except BatchscribeError:
            return None
        if instance.state is not InstanceState.RUNNING:
            return None
        return (worker.run, worker.worker) in self.launched and self.is_alive(worker)

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        self._meet("cancel")
        name = (worker.run, worker.worker)
        if force and name in self.launched:
            self.killed.append(name)
            if self._on_kill:
                self._on_kill(worker)
        elif name in self.launched and name not in self.cancelled:
            self.cancelled.append(name)
            if self._on_cancel:
                self._on_cancel(worker)

    def _meet(self, call: str) -> None:
        faults = self._faults.get(call)
        fault = faults.popleft() if faults else None
        if fault:
            raise fault
