"""What a worker refuses of a manifest that another program may have written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from batchscribe.core.run.host import HostPlace
from batchscribe.core.run.manifest import EngineSpec, Manifest, ManifestChunk
from batchscribe.errors import MisconfiguredError
from batchscribe.worker.trust import refuse_foreign_work

ROOT = "s3://bucket/out"
KEY = "_batchscribe/runs/r1/workers/0/manifest.json"
PLACE = HostPlace(instance="i-0123456789abcdef0", home=ROOT, source="s3://bucket/audio")


def manifest(
    key: str = "s/chunk-001.webm", transcript: str = "s/transcription-chunk-001.json", **other: Any
) -> Manifest:
    values: dict[str, Any] = {
        "run": "r1",
        "worker": 0,
        "release": "0",
        "source": "s3://bucket/audio",
        "output": ROOT,
        "deadline": datetime(2026, 11, 29, tzinfo=UTC),
        "engine": EngineSpec(engine="played"),
        "settings_hash": "",
        "chunks": (ManifestChunk(key=key, etag="e", size=1, session="s/", transcript=transcript),),
    }
    return Manifest(**(values | other))


def refused(asked: Manifest, place: HostPlace | None = PLACE, root: str = ROOT, key: str = KEY) -> str:
    with pytest.raises(MisconfiguredError) as raised:
        refuse_foreign_work(asked, root=root, key=key, place=place)
    return str(raised.value)


@pytest.mark.parametrize("place", [PLACE, None])
@pytest.mark.parametrize(
    "transcript",
    [
        "s/transcription-chunk-001.json",
        "s/transcription-chunk-001.webm.json",
        "s/layers/layer-0-raw-transcription/chunk-001.json",
    ],
)
def test_work_of_our_own_is_taken(transcript: str, place: HostPlace | None) -> None:
    refuse_foreign_work(manifest(transcript=transcript), root=f"{ROOT}/", key=KEY, place=place)


def test_a_rehearsal_inside_the_output_is_taken() -> None:
    inside = f"{ROOT}/_batchscribe/rehearsal/x"
    refuse_foreign_work(manifest(source=inside, output=inside), root=inside, key=KEY, place=PLACE)


def test_a_rehearsal_inside_the_control_store_is_taken() -> None:
    place = msgspec.structs.replace(PLACE, control="s3://control")
    inside = "s3://control/rehearsal/x"
    refuse_foreign_work(manifest(source=inside, output=inside), root=inside, key=KEY, place=place)


@pytest.mark.parametrize(
    "transcript",
    [".bash_profile", "../x.json", "s/transcription-other.json", "t/transcription-chunk-001.json"],
)
@pytest.mark.parametrize("place", [PLACE, None])
def test_a_transcript_is_named_after_its_audio(transcript: str, place: HostPlace | None) -> None:
    assert "is no name for the transcript" in refused(manifest(transcript=transcript), place)


def test_what_is_no_audio_is_not_read() -> None:
    assert "is no name" in refused(
        manifest(key=".ssh/id_ed25519", transcript=".ssh/transcription-id_ed25519.json")
    )


@pytest.mark.parametrize("place", [PLACE, None])
def test_results_go_to_the_store_that_the_manifest_is_in(place: HostPlace | None) -> None:
    assert "refused" in refused(manifest(output="file:///root"), place)


@pytest.mark.parametrize(
    "source", ["file:///home/ubuntu", "s3://another/audio", "s3://bucket/audio-private", "s3://bucket"]
)
def test_a_host_opens_only_the_stores_that_it_was_set_up_for(source: str) -> None:
    assert "was set up for" in refused(manifest(source=source))


def test_a_host_writes_only_where_it_was_set_up_for() -> None:
    assert "was set up for" in refused(manifest(output="file:///root", source=ROOT), root="file:///root")


def test_the_manifest_of_another_run_is_refused() -> None:
    assert "belongs to run r2" in refused(manifest(run="r2"))
