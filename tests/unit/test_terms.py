"""How chunks are heard: from the settings into the manifest, and the hash that transcripts bear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchscribe.controller.records import read_manifest
from batchscribe.controller.tick import tick
from batchscribe.core import keys
from batchscribe.core.decide.observation import Policy, PolicyName
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import AudioOptions, EngineSpec, Failure, FailureKind
from batchscribe.settings import load
from batchscribe.wiring.scheduler import open_scheduler
from support.world import Stage, stage

HEARING = AudioOptions(overlap_ms=500, split_channels=True)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Stage]:
    made = stage(tmp_path, policy=Policy(name=PolicyName.NOW), audio_options=HEARING)
    yield made
    made.ledger.close()


def agreed(folder: Path, **environ: str) -> tuple[EngineSpec, AudioOptions, str]:
    settings = load({"BATCH_SOURCE": str(folder / "audio")} | environ, folder=folder)
    with open_scheduler(settings, remember=False) as made:
        return made.config.engine, made.config.audio_options, made.config.hash_settings(made.config.engine)


def test_the_settings_say_how_chunks_are_heard(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    spec, heard, _ = agreed(tmp_path)
    assert (spec.task, heard) == ("transcribe", AudioOptions(overlap_ms=None, split_channels=False))
    spec, heard, _ = agreed(
        tmp_path, BATCH_TASK="translate", BATCH_CHANNELS="split", BATCH_CHUNK_OVERLAP_MS="0"
    )
    assert (spec.task, heard) == ("translate", AudioOptions(overlap_ms=0, split_channels=True))


def test_a_transcript_tells_by_its_hash_that_it_was_heard_otherwise(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    others = [
        {},
        {"BATCH_TASK": "translate"},
        {"BATCH_CHANNELS": "split"},
        {"BATCH_CHUNK_OVERLAP_MS": "0"},
        {"BATCH_CHUNK_OVERLAP_MS": "500"},
        {"WHISPER_MODEL": "small"},
        {"BATCH_LANGUAGE": "en"},
    ]
    hashes = [agreed(tmp_path, **environ)[2] for environ in others]
    assert len(set(hashes)) == len(hashes)
    assert agreed(tmp_path)[2] == hashes[0]


def test_the_manifest_says_how_to_hear_and_which_chunk_is_in_trouble(at: Stage) -> None:
    names = at.upload(2)
    (etag,) = [info.etag for info in at.store.list(names[0]) if info.key == names[0]]
    failure = Failure(key=names[0], etag=etag, run="r", kind=FailureKind.CHUNK, message="", at=at.clock.now())
    at.store.create(keys.attempt(names[0], etag, "r"), wire.encode(failure))
    at.clock.sleep(600)
    (run,) = tick(at.world, at.config).runs
    manifest = read_manifest(at.world, run, 0)
    assert manifest.audio_options == HEARING
    assert {chunk.key: chunk.previously_failed for chunk in manifest.chunks} == {
        names[0]: True,
        names[1]: False,
    }
