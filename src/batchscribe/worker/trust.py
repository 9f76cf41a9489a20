"""Validates manifests: other programs may write to the bucket, too."""

from __future__ import annotations

from batchscribe.core import keys
from batchscribe.core.run.host import HostPlace
from batchscribe.core.run.manifest import Manifest, ManifestChunk
from batchscribe.core.scan.chunks import audio_name, transcript_keys
from batchscribe.errors import MisconfiguredError


def refuse_foreign_work(manifest: Manifest, *, root: str, key: str, place: HostPlace | None) -> None:
    """Raises MisconfiguredError unless the manifest belongs to its store.

    `root` and `key`: the URL of that store, and the manifest's key in it. `place`: the stores that a remote
    GPU host may open, as set by `gpu setup`; None on the scheduler's own machine.
    """
    if key != keys.manifest(manifest.run, manifest.worker):
        raise MisconfiguredError(
            f"the manifest at {key} belongs to run {manifest.run}, worker {manifest.worker}: refused"
        )
    if _add_slash(manifest.output) != _add_slash(root):
        raise MisconfiguredError(
            f"the manifest was read from {root}, but its output is {manifest.output}: refused"
        )
    if place is not None:
        _refuse_other_stores(manifest, place)
    for chunk in manifest.chunks:
        if not _is_named_by_rule(chunk):
            raise MisconfiguredError(f"{chunk.transcript!r} is no name for the transcript of {chunk.key!r}")


def _refuse_other_stores(manifest: Manifest, place: HostPlace) -> None:
    known = tuple(_add_slash(url) for url in (place.source, place.home, place.control) if url)
    for url in (manifest.source, manifest.output):
        # Local folders count only if the setup named them, as it does without a cloud.
        if not _add_slash(url).startswith(known):
            raise MisconfiguredError(
                f"{url} is not in {' or '.join(known)}, which this host was set up for: run `batchscribe gpu "
                "setup` with the settings of that source"
            )


def _is_named_by_rule(chunk: ManifestChunk) -> bool:
    name = audio_name(chunk.key)
    return name is not None and chunk.transcript in transcript_keys(name)


def _add_slash(url: str) -> str:
    return f"{url.rstrip('/')}/"
