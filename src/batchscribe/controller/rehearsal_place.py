"""A rehearsal's separate prefix for audio, transcripts and records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

from msgspec import structs

from batchscribe.control_place import build_url, find_control_url
from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.messages import Message
from batchscribe.core.objects import Blob, ObjectInfo
from batchscribe.core.run.runs import Run
from batchscribe.protocols import Store

FOLDER = keys.REHEARSALS


class Below:
    """A protocols.Store: another store's objects below a prefix that ends in `/`."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.url = build_url(store, prefix.rstrip("/"))
        self._store = store
        self._prefix = prefix

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        start = f"{self._prefix}{after}" if after else ""
        for info in self._store.list(f"{self._prefix}{prefix}", after=start):
            yield structs.replace(info, key=info.key.removeprefix(self._prefix))

    def get(self, key: str, *, limit: int | None = None) -> Blob:
        return self._store.get(f"{self._prefix}{key}", limit=limit)

    def get_range(self, key: str, start: int, length: int) -> Blob:
        return self._store.get_range(f"{self._prefix}{key}", start, length)

    def create(self, key: str, data: bytes) -> bool:
        return self._store.create(f"{self._prefix}{key}", data)

    def replace(self, key: str, data: bytes) -> None:
        self._store.replace(f"{self._prefix}{key}", data)

    def delete(self, key: str) -> None:
        self._store.delete(f"{self._prefix}{key}")


class _Silence:
    """A protocols.Notifier that sends nothing: a rehearsal alerts no user."""

    def send(self, message: Message) -> None:
        """Does nothing."""

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        """Does nothing."""


def make_rehearsal_world(world: World, name: str) -> World:
    """World of a rehearsal, with the real instance, guard and ledger."""
    store = Below(world.home, f"{FOLDER}{name}/")

    def scanner(_manual: bool) -> Scanner:
        return Scanner(store, store, clock=world.clock, min_age=timedelta(0))

    return replace(world, source=store, output=store, notifier=_Silence(), scanner=scanner)


def find_run_world(world: World, config: RunConfig, run: Run) -> World:
    """World that a run was opened in, or a rehearsal's.

    A run is stopped and finished where it was opened, even if the settings changed since.
    """
    root = build_url(world.home, FOLDER)
    if run.output.startswith(root):
        return make_rehearsal_world(world, run.output.removeprefix(root))
    stores = (world.source.url, world.output.url, find_control_url(world.home))
    regions = (config.region, config.further_regions)
    place = (config.provider, *regions, config.instances, config.guard, *stores)
    guard, existing = run.guard or config.guard, () if run.creates_machines else run.instances
    regions = (run.region, run.further_regions)
    opened = (run.provider, *regions, existing, guard, run.source, run.output, run.control)
    if not run.source or (place == opened and not run.lane):
        return world
    return world.elsewhere(world, run)


def is_rehearsal(run: Run) -> bool:
    """True if the run is a rehearsal's, below the control objects."""
    root = f"{run.control}/{FOLDER.removeprefix(keys.CONTROL)}" if run.control else f"/{FOLDER}"
    return root in run.output
