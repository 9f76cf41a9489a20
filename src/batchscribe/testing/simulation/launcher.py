"""The way from the controller to the box, for boxes that boot to their work and for those that do not."""

from __future__ import annotations

import msgspec

from batchscribe.core import keys
from batchscribe.core.box import BoxEnd, ClaimLaunch, EndRequest, InstanceRecord, read
from batchscribe.core.instances import Instance, InstanceState
from batchscribe.core.manifest import Manifest, WorkerRef
from batchscribe.errors import LaunchError
from batchscribe.protocols import Store
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


class AtBoot:
    """A protocols.Launcher: the box starts its worker by itself; all that is said goes through the store."""

    def __init__(self, store: Store, release: str) -> None:
        self._store = store
        self._release = release

    def probe(self, instance: Instance) -> str | None:
        return self._release if instance.state is InstanceState.RUNNING else None

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        """Nothing: the manifest is in the store, and the box looks for it."""

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:  # noqa: ARG002
        for info in self._store.list(keys.box_end(worker.run)):
            end = msgspec.json.decode(self._store.get(info.key).data, type=BoxEnd)
            return False if end.worker == worker.worker else None
        return None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        request = EndRequest(run=worker.run, worker=worker.worker, force=force)
        self._store.replace(keys.cancel(worker.run, worker.worker), msgspec.json.encode(request))


class Either:
    """A protocols.Launcher that goes the way which the claim in the instance's record says."""

    def __init__(self, store: Store, at_boot: AtBoot, over_ssh: OverSsh) -> None:
        self._store = store
        self._at_boot = at_boot
        self._over_ssh = over_ssh

    def probe(self, instance: Instance) -> str | None:
        return self._way(instance).probe(instance)

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._way(instance).launch(instance, manifest, url)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        return self._way(instance).alive(instance, worker)

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._way(instance).cancel(instance, worker, force=force)

    def _way(self, instance: Instance) -> AtBoot | OverSsh:
        claim = read(self._store.get(keys.instance(instance.id)).data, InstanceRecord).claim
        booted = claim is not None and claim.launch is ClaimLaunch.BOOT
        return self._at_boot if booted else self._over_ssh
