"""Workers that the box starts by itself at boot: their controller writes to the store, and looks there."""

from __future__ import annotations

import msgspec

from batchscribe.core import keys
from batchscribe.core.box import BoxEnd, ClaimLaunch, EndRequest, InstanceRecord
from batchscribe.core.instances import Instance
from batchscribe.core.manifest import Manifest, WorkerRef
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError, TransientError
from batchscribe.protocols import Launcher, Store
from batchscribe.reading import read_record


class BootLauncher:
    """A protocols.Launcher that opens no connection: the box itself finds its manifests.

    `home` holds the instances' records, `runs` what belongs to the runs.
    """

    def __init__(self, home: Store, runs: Store) -> None:
        self._home = home
        self._runs = runs

    def probe(self, instance: Instance) -> str | None:
        """By its record: a box that runs will look for its manifest, sooner or later."""
        return recorded(self._home, instance).release

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        """Nothing is left to do: the manifest lies where the box looks for it."""

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:  # noqa: ARG002
        """False where the box said that this worker died or hung; who else could know?"""
        try:
            end = read_record(self._runs, keys.box_end(worker.run), BoxEnd)
        except (ObjectNotFoundError, TransientError, MisconfiguredError):
            return None
        return False if end.worker == worker.worker else None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:  # noqa: ARG002
        request = EndRequest(run=worker.run, worker=worker.worker, force=force)
        self._runs.replace(keys.cancel(worker.run, worker.worker), msgspec.json.encode(request))


class LaunchEither:
    """A protocols.Launcher that goes by the claim in the instance's record: that says who starts workers."""

    def __init__(self, home: Store, *, boot: Launcher, other: Launcher) -> None:
        self._home = home
        self._boot = boot
        self._other = other

    def probe(self, instance: Instance) -> str | None:
        return self._for(instance).probe(instance)

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        self._for(instance).launch(instance, manifest, url)

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        try:
            return self._for(instance).alive(instance, worker)
        except (TransientError, MisconfiguredError):
            return None

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        self._for(instance).cancel(instance, worker, force=force)

    def _for(self, instance: Instance) -> Launcher:
        claim = recorded(self._home, instance).claim
        ssh = claim is None or claim.launch is ClaimLaunch.SSH
        # Where the box holds still, nobody starts anything either.
        return self._other if ssh else self._boot


def recorded(home: Store, instance: Instance) -> InstanceRecord:
    """The instance's record. Raises MisconfiguredError where it was never set up."""
    try:
        return read_record(home, keys.instance(instance.id), InstanceRecord)
    except ObjectNotFoundError as error:
        raise MisconfiguredError(f"{instance.id} was not set up yet: run `batchscribe gpu setup`") from error
