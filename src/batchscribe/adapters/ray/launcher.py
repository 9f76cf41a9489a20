"""Starts workers on the machines of a Ray cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from batchscribe.adapters.ray.cluster import RayCluster, convert_errors
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, WorkerRef, digest
from batchscribe.errors import LaunchError


class RayLauncher:
    """A protocols.Launcher: the machine's actor processes one manifest after the other.

    A call to an actor that Ray is restarting on another node raises LaunchError; the controller repeats it.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    def probe(self, instance: Instance) -> str:
        return str(self._call(instance, "read_version"))

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._call(instance, "start", (manifest.run, manifest.worker), f"{digest(manifest)} {url}")

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        alive: bool | None = None
        with suppress(LaunchError):
            alive = self._call(instance, "is_alive", (worker.run, worker.worker))
        return alive

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._call(instance, "cancel", (worker.run, worker.worker), force=force)

    def _call(self, instance: Instance, method: str, *arguments: object, **named: object) -> Any:
        with convert_errors(f"{instance.id} did not reply to {method!r}", LaunchError):
            return self._cluster.call(instance.id, method, *arguments, **named)
