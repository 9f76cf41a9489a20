"""A spot instance that EC2 takes back: the real agent, a real worker, a metadata service of the test."""

from __future__ import annotations

import io
import os
import sys
import threading
import wave
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.host import GpuHost
from batchscribe.core import keys
from batchscribe.core.run.host import ClaimLaunch, HostClaim, HostEnd, HostPlace, InstanceRecord
from batchscribe.core.run.instances import MACHINE_TAG, MANIFEST_TAG
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Manifest,
    Progress,
    WorkerEnd,
    decode,
    digest,
    encode,
)
from batchscribe.protocols import Store
from batchscribe.reading import read_if_valid
from batchscribe.wiring import host_boot
from batchscribe.wiring.stores import open_store
from support.cli import spoken, wait_for
from support.forked import ENGINES
from support.metadata import metadata_service
from support.stores import list_recordings

pytestmark = pytest.mark.e2e
RUN = "20261130-020000-abc123"
MACHINE = f"{RUN}-2"
CHUNKS = 40


def given(store: Store, worker: int, deadline: datetime, *, chunks: int = CHUNKS) -> Manifest:
    """A manifest of single recordings; each takes the engine a moment."""
    with wave.open(io.BytesIO(spoken())) as once:
        frames, params = once.readframes(once.getnframes()), once.getparams()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as made:
        made.setparams(params)
        made.writeframes(frames * 5)
    for number in range(chunks):
        store.create(f"{worker}/talk-{number:03}.wav", buffer.getvalue())
    manifest = Manifest(
        run=RUN,
        worker=worker,
        release=__version__,
        source=store.url,
        output=store.url,
        deadline=deadline,
        engine=EngineSpec(engine="scripted", device="cpu"),
        settings_hash="h",
        chunks=list_recordings(store, f"{worker}/"),
    )
    store.create(keys.manifest(RUN, worker), encode(manifest))
    return manifest


def test_an_interrupted_machine_publishes_what_is_in_its_engine_and_powers_itself_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers, home, bucket = tmp_path / "markers", tmp_path / "home", tmp_path / "bucket"
    for folder in (markers, home / ".batchscribe", bucket):
        folder.mkdir(parents=True)
    store, clock, deadline = (
        open_store(bucket.as_uri()),
        SystemClock(),
        datetime.now(UTC) + timedelta(hours=1),
    )
    environment = home / ".batchscribe" / "env"
    environment.write_text(f"PYTHONPATH={os.pathsep.join([ENGINES, *filter(None, sys.path)])}\n")
    environment.chmod(0o600)
    host = GpuHost(home, clock)
    place = HostPlace(instance="i-0builder0", home=bucket.as_uri(), created=True)
    host.keep_place(place)
    claim = HostClaim(
        run=RUN,
        created=clock.booted() - timedelta(minutes=1),
        deadline=deadline,
        output=store.url,
        launch=ClaimLaunch.BOOT,
        machine=MACHINE,
    )
    record = InstanceRecord(instance=MACHINE, release=__version__, at=claim.created, boots=True, claim=claim)
    store.create(keys.instance(MACHINE), msgspec.json.encode(record))
    store.create(keys.intent(RUN), b"{}")
    given(store, 0, deadline, chunks=1)  # another machine's
    manifest = given(store, 1, deadline)
    monkeypatch.setattr(host_boot, "STATE_FOLDER", markers)
    with metadata_service({MACHINE_TAG: MACHINE, MANIFEST_TAG: digest(manifest)}) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        metadata.shown = {"instance-life-cycle": "spot"}
        agent = threading.Thread(target=host_boot._run_agent, args=(place, host, clock))
        agent.start()
        try:
            wait_for(_count_done(store) >= 1 for _ in range(9999))
        finally:
            notice = '{"action": "terminate", "time": "2026-11-30T03:00:00Z"}'
            metadata.shown = metadata.shown | {"spot/instance-action": notice}
            agent.join(timeout=120)
    assert not agent.is_alive()
    ended = decode(store.get(keys.exit_record(RUN, 1)).data, ExitRecord)
    assert ended.end is WorkerEnd.STOPPED
    assert 1 <= ended.tally.done < CHUNKS
    published = [info for info in store.list("1/") if "transcription" in info.key]
    assert len(published) == ended.tally.done, "the rest is pending"
    end = decode(store.get(keys.host_end(RUN, MACHINE)).data, HostEnd)
    assert (end.worker, "2026-11-30T03:00:00Z" in end.why) == (None, True)
    assert (markers / "off").exists()
    assert not [*store.list(keys.exit_record(RUN, 0))]


def _count_done(store: Store) -> int:
    progress = read_if_valid(store, keys.progress(RUN, 1), Progress)
    return progress.tally.done if progress else 0
