"""Starts workers on the machines of a Ray cluster."""

from __future__ import annotations

from typing import Any

from batchscribe.adapters.ray.cluster import RayCluster, call, convert_errors
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, WorkerRef, digest
from batchscribe.errors import LaunchError


class RayLauncher:
    """A protocols.Launcher: the machine's actor starts a worker process, one manifest after the other.

    A call to an actor that Ray is restarting on another node raises LaunchError; the controller repeats it.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    def probe(self, instance: Instance) -> str:
        return str(self._call(instance, "read_version"))

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._call(instance, "start", (manifest.run, manifest.worker), f"{digest(manifest)} {url}")

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        try:
            return self._call(instance, "is_alive", (worker.run, worker.worker))  # type: ignore[no-any-return]
        except LaunchError:
            return None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._call(instance, "cancel", (worker.run, worker.worker), force=force)

    def _call(self, instance: Instance, method: str, *arguments: object, **named: object) -> Any:
        with convert_errors(f"{instance.id} did not reply to {method!r}", LaunchError):
            machine = self._cluster.find_machine(instance.id)
            if machine is None:
                raise LaunchError(f"{instance.id} has ended: it has no actor in the Ray cluster")
            return call(getattr(machine, method), *arguments, **named)
