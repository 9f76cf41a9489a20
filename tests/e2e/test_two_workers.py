"""Two workers with one manifest at the same time: each key is published once, and both end well.

Real processes; a folder is their store, or S3 as moto plays it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batchscribe import __version__
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    FailureKind,
    Manifest,
    ManifestChunk,
    WorkerEnd,
)
from batchscribe.core.text.transcripts import Transcript, decode
from batchscribe.protocols import Store
from batchscribe.wiring.stores import open_store
from support.cli import PATIENCE, spoken
from support.faults import fault_proxy
from support.forked import nursery
from support.s3 import CREDENTIALS, REGION, aws_environment, create_bucket, moto_server

pytestmark = pytest.mark.e2e
RUN = "20261123-120000-abcdef"
GOOD = 10
BAD = 5
_SUMMARY = re.compile(r"worker finished: (\d+) transcribed, (\d+) were done already, (\d+) failed")


@dataclass
class Place:
    """A store for both workers."""

    store: Store
    environment: dict[str, str]
    written: Callable[[str], int] | None = None
    """How often an object was put there, where somebody counts."""


@contextmanager
def folder(path: Path) -> Iterator[Place]:
    yield Place(open_store((path / "bucket").as_uri(), expected=False), {})


@contextmanager
def s3(path: Path) -> Iterator[Place]:
    with moto_server() as endpoint, fault_proxy() as proxy, aws_environment(proxy.endpoint):
        bucket = f"two-{os.urandom(4).hex()}"
        store = open_store(create_bucket(endpoint, bucket), region=REGION, endpoint=endpoint)
        environment = CREDENTIALS | {"AWS_ENDPOINT_URL": proxy.endpoint, "HOME": str(path)}
        yield Place(store, environment, lambda key: proxy.written[f"/{bucket}/{key}"])


@pytest.fixture(params=[folder, s3], ids=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with request.param(tmp_path) as made:
        yield made


def given(store: Store) -> tuple[Manifest, str]:
    """A manifest of short recordings with one that is none in the middle, and its URL."""
    names = [f"s/chunk-{number:03}.wav" for number in range(GOOD + 1)]
    for name in names:
        store.create(name, b"RIFF, but no audio" if name == names[BAD] else spoken(0.5))
    listed = {info.key: info for info in store.list("s/")}
    manifest = Manifest(
        run=RUN,
        worker=0,
        release=__version__,
        source=store.url,
        output=store.url,
        deadline=datetime.now(UTC) + timedelta(hours=1),
        engine=EngineSpec(engine="scripted"),
        settings_hash="two",
        region=REGION,
        chunks=tuple(
            ManifestChunk(
                key=name,
                etag=listed[name].etag,
                size=listed[name].size,
                session="s/",
                transcript=name.replace("chunk", "transcription-chunk").replace(".wav", ".json"),
            )
            for name in names
        ),
    )
    store.create(keys.manifest(RUN, 0), wire.encode(manifest))
    return manifest, f"{store.url.rstrip('/')}/{keys.manifest(RUN, 0)}"


def both(url: str, environment: dict[str, str]) -> list[tuple[int, str]]:
    """(exit code, output) of two workers, each at its first window before the other one goes on.

    A worker that starts after the other one's exit record does nothing, and prints that record.
    """
    base = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    workers = [nursery().start(Path.cwd(), "worker", url, environment=base | environment) for _ in range(2)]
    try:
        told = ["".join(worker.communicate(timeout=PATIENCE)) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.wait(), text) for worker, text in zip(workers, told, strict=True)]


def test_two_workers_with_one_manifest_publish_each_key_once(place: Place, tmp_path: Path) -> None:
    manifest, url = given(place.store)
    gate = tmp_path / "gate"
    gate.mkdir()
    ended = both(url, place.environment | {"SCRIPTED_GATE": str(gate)})
    assert [code for code, _ in ended] == [0, 0], ended
    tallies = [tuple(map(int, found.groups())) for _, text in ended if (found := _SUMMARY.search(text))]
    assert len(tallies) == 2, ended
    assert sum(done for done, _, _ in tallies) == GOOD, "what one published, the other did not"
    assert all(sum(tally) == GOOD + 1 for tally in tallies), tallies
    good = [chunk for chunk in manifest.chunks if chunk != manifest.chunks[BAD]]
    for chunk in good:
        transcript = decode(place.store.get(chunk.transcript).data)
        assert isinstance(transcript, Transcript)
        assert transcript.audio.key == chunk.key
        assert place.written is None or place.written(chunk.transcript) == 1
    record = wire.decode(place.store.get(keys.exit_record(RUN, 0)).data, ExitRecord)
    assert record.end is WorkerEnd.FINISHED
    (attempt,) = [info.key for info in place.store.list(keys.ATTEMPTS)]
    failed = manifest.chunks[BAD]
    assert attempt == keys.attempt(failed.key, failed.etag, RUN), "both failed at it, and it counts once"
    assert wire.decode(place.store.get(attempt).data, wire.Failure).kind is FailureKind.CHUNK
