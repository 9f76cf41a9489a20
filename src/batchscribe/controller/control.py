"""What controller and worker tell each other through the store, read back; and how late it is."""

from __future__ import annotations

from datetime import datetime, timedelta

from batchscribe.controller.context import Terms, World
from batchscribe.core import keys
from batchscribe.core import manifest as wire
from batchscribe.core.manifest import ExitRecord, Manifest, Progress
from batchscribe.core.runs import Run
from batchscribe.errors import MisconfiguredError, ObjectNotFoundError


def read_manifest(world: World, key: str) -> Manifest:
    return wire.decode(world.output.get(key).data, Manifest)


def read_exit(world: World, manifest: Manifest) -> ExitRecord | None:
    try:
        return wire.decode(world.output.get(keys.exit_record(manifest.run, manifest.worker)).data, ExitRecord)
    except ObjectNotFoundError:
        return None


def read_progress(world: World, manifest: Manifest) -> Progress | None:
    """The worker's progress; None where there is none yet, or where it is torn."""
    try:
        return wire.decode(world.output.get(keys.progress(manifest.run, manifest.worker)).data, Progress)
    except (ObjectNotFoundError, MisconfiguredError):
        return None


def look_due(run: Run, terms: Terms, now: datetime) -> bool:
    return late(run.running_until, now, terms.waits.describe)


def late(since: datetime | None, now: datetime, seconds: float) -> bool:
    return since is not None and now - since >= timedelta(seconds=seconds)
