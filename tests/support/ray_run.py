"""One machine of a run on a played Ray cluster, with real workers and a folder as the bucket."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec.structs import replace as replace_manifest

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.adapters.ray.capacity import WORKER, RayCapacity
from batchscribe.adapters.ray.cluster import RayCluster
from batchscribe.adapters.ray.launcher import RayLauncher
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.offers import Market, Offer
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, encode
from batchscribe.errors import LaunchError
from batchscribe.protocols import Store
from batchscribe.reading import read_optional
from batchscribe.testing.launcher_suite import make_manifest
from batchscribe.wiring.stores import open_store
from support.cli import spoken
from support.ray_cluster import ADDRESS, await_true
from support.stores import list_recordings

RATE = Rate(per_hour=Usd.parse("1"), source="test")
OFFER = Offer(provider="ray", instance_type="", market=Market.ON_DEMAND, rate=RATE)


def open_capacity(command: tuple[str, ...] = WORKER, *, address: str = ADDRESS) -> RayCapacity:
    return RayCapacity(
        cluster=RayCluster(address), clock=SystemClock(), rate_of=lambda _type: RATE, command=command
    )


class RealRun:
    """One machine of a run with real workers, and a folder as the bucket."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.store = open_store((folder / "bucket").as_uri(), expected=False)
        self.capacity = open_capacity()
        self.launcher = RayLauncher(RayCluster(ADDRESS))
        self.machine = machine
        claim = Claim(instance=machine, run="run-1", deadline=datetime.now(UTC) + timedelta(hours=1))
        self.capacity.acquire(claim, OFFER, self.poll())
        await_true(lambda: self.poll().state is InstanceState.RUNNING, "the machine runs")

    def poll(self) -> Instance:
        return self.capacity.poll((self.machine,))[0]

    def store_manifest(self, worker: int, chunks: int) -> Manifest:
        """Stores recordings, and the manifest of a worker."""
        manifest = make_spoken_manifest(self.store, worker, chunks)
        self.store.create(keys.manifest(manifest.run, worker), encode(manifest))
        return manifest

    def launch(self, manifest: Manifest) -> bool:
        url = f"{self.store.url.rstrip('/')}/{keys.manifest(manifest.run, manifest.worker)}"
        try:
            self.launcher.launch(self.poll(), manifest, url)
        except LaunchError:  # Ray is starting the actor again
            return False
        return True

    def read_exit(self, worker: int) -> ExitRecord | None:
        return read_optional(self.store, keys.exit_record("run-1", worker), ExitRecord)

    def has_ended(self, worker: int) -> bool:
        return self.read_exit(worker) is not None

    def list_done(self) -> list[str]:
        return [info.key for info in self.store.list("s") if info.key.endswith(".json")]


def make_spoken_manifest(store: Store, worker: int, chunks: int) -> Manifest:
    """Stores recordings, each a session of its own: the scripted engine sleeps 0.3 s for each."""
    for number in range(chunks):
        store.create(f"s{worker}/talk-{number}.wav", spoken(2.2))
    return replace_manifest(
        make_manifest(worker=worker, output=store.url),
        engine=EngineSpec(engine="scripted"),
        chunks=list_recordings(store, f"s{worker}/"),
    )
