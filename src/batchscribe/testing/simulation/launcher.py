"""The way from the controller to a box over ssh. The way through the store is the production's own."""

from __future__ import annotations

from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import Manifest, WorkerRef
from batchscribe.errors import LaunchError
from batchscribe.testing.simulation.box import Box
from batchscribe.testing.simulation.gate import Gate


class OverSsh:
    """A protocols.Launcher: the controller starts the worker itself."""

    def __init__(self, box: Box, gate: Gate, release: str) -> None:
        self._box = box
        self._gate = gate
        self._release = release

    def probe(self, instance: Instance) -> str | None:
        return self._gate.call("launcher.probe", instance.id, self._version)

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:  # noqa: ARG002
        name = f"{manifest.run} {manifest.worker}"
        self._gate.call("launcher.launch", name, lambda: self._launch(manifest))

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        self._gate.point("launcher.alive", f"{worker.run} {worker.worker}")
        if instance.state is not InstanceState.RUNNING or not self._reachable():
            return None
        played = self._box.workers.get((worker.run, worker.worker))
        return played is not None and played.alive

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._gate.call("launcher.cancel", instance.id, lambda: self._cancel(worker, force=force))

    def _reachable(self) -> bool:
        return self._box.reachable and self._gate.trouble("launcher.way") is None

    def _version(self) -> str | None:
        return self._release if self._box.reachable else None

    def _launch(self, manifest: Manifest) -> None:
        if not self._box.reachable:
            raise LaunchError("the box does not answer: no worker was started")
        self._box.play(manifest)

    def _cancel(self, worker: WorkerRef, *, force: bool) -> None:
        if not self._box.reachable:
            raise LaunchError("the box does not answer")
        played = self._box.workers.get((worker.run, worker.worker))
        if played and force:
            played.die()
        elif played:
            played.ask_to_end()
