"""Starts workers on this machine as processes that outlive the tick."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.machine.logs import KEPT, delete_old_files
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, WorkerName, WorkerRef, digest
from batchscribe.detached import ask_to_end, is_running, start_once
from batchscribe.protocols import Clock

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker")


class LocalLauncher:
    """A protocols.Launcher for this machine.

    A worker's output goes to `log_dir`, its process record to `state_dir/workers`, for 30 days. Its
    environment is exactly `environment`. `control` is the URL of the control objects; empty if they are below
    the output.
    """

    def __init__(
        self,
        state_dir: Path,
        log_dir: Path,
        *,
        environment: Mapping[str, str],
        command: Sequence[str] = WORKER_COMMAND,
        clock: Clock | None = None,
        control: str = "",
    ) -> None:
        self._records = state_dir / "workers"
        self._logs = log_dir
        self._environment = environment
        self._command = [*command, "--control", control] if control else command
        self._clock = clock or SystemClock()

    def probe(self, instance: Instance) -> str:  # noqa: ARG002  it is this machine, and it is here
        return __version__

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:  # noqa: ARG002
        self.start(worker_name(manifest), url, digest(manifest))

    def start(self, name: str, url: str, sha256: str) -> None:
        """Starts the worker of this name, once. Raises LaunchError."""
        self._forget_old_workers()
        start_once(
            self._record_path(name),
            [*self._command, url, "--sha256", sha256],
            environment=self._environment,
            log=self._logs / f"worker-{name}.log",
        )

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:  # noqa: ARG002
        return is_running(self._record_path(worker_name(worker)))

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        ask_to_end(self._record_path(worker_name(worker)), force=force)

    def _forget_old_workers(self) -> None:
        """Deletes records and locks of old workers."""
        limit = (self._clock.now() - KEPT).timestamp()
        delete_old_files(self._records, "*.json*", lambda path: path.stat().st_mtime < limit)

    def _record_path(self, name: str) -> Path:
        return self._records / f"{name}.json"


def worker_name(which: WorkerRef) -> str:
    """Name of a worker's files. Raises MisconfiguredError for one with folders."""
    worker = WorkerName(run=which.run, worker=which.worker).checked()
    return f"{worker.run}-{worker.worker}"
