"""Damaged files end alike with every engine: what is transcribed, what fails, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from batchscribe import __version__
from batchscribe.adapters.engines.parakeet.engine import FACTORY as PARAKEET
from batchscribe.adapters.engines.pocketsphinx_engine import FACTORY as SPHINX
from batchscribe.adapters.engines.whisper.engine import FACTORY as WHISPER
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.audio.windows import Samples
from batchscribe.core.run.manifest import EngineSpec, Manifest, ManifestChunk, WorkerEnd
from batchscribe.core.scan.chunks import audio_name, transcript_key
from batchscribe.core.text.flags import LOW_CONFIDENCE, NO_SPEECH, RERUN, UNHEARD
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import Transcript
from batchscribe.engine import Engine
from batchscribe.protocols import SpeakerModel
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.engine import ScriptedEngine
from batchscribe.testing.speakers import SpectralSpeakers
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.pipeline import run_worker
from support import fastconformer, hostile, parakeet_model, whisper_model

FILES = 32
"""Each kind of file with two damages."""
DOUBTS = {RERUN, LOW_CONFIDENCE, UNHEARD, NO_SPEECH}
"""Flags that depend on the engine's words."""
Ends = dict[str, str]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {
        f"f{number:03}.{hostile.extension(kind)}": data
        for number, (kind, _, data) in enumerate(hostile.corpus(FILES))
    }


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes]) -> Ends:
    return transcribe(ScriptedEngine(), files)


@pytest.fixture(
    params=[
        "faster-whisper",
        "faster-whisper with a vocabulary",
        "parakeet",
        "parakeet that always speaks",
        pytest.param("pocketsphinx", marks=pytest.mark.deep),
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    makers: dict[str, Callable[[], Engine]] = {
        "pocketsphinx": lambda: SPHINX.load(EngineSpec(engine="pocketsphinx")),
        "faster-whisper": lambda: WHISPER.load(spec_of(whisper_model.build(tmp_path))),
        "faster-whisper with a vocabulary": lambda: WHISPER.load(
            structs.replace(spec_of(whisper_model.build(tmp_path)), vocabulary=("Marie Curie", "Hopper"))
        ),
        "parakeet": lambda: PARAKEET.load(spec_of(parakeet_model.build_tdt(tmp_path))),
        "parakeet that always speaks": lambda: PARAKEET.load(spec_of(fastconformer.build_model(tmp_path))),
    }
    loaded = makers[request.param]()
    yield loaded
    getattr(loaded, "close", lambda: None)()


def spec_of(folder: Path) -> EngineSpec:
    return EngineSpec(engine="any", model=str(folder), device="cpu", language="en")


def test_damaged_files_end_as_with_the_double(
    engine: Engine, files: dict[str, bytes], expected: Ends
) -> None:
    """Speakers and a vocabulary change no end."""
    assert transcribe(engine, files, SpectralSpeakers()) == expected


def test_the_files_end_in_every_way(expected: Ends) -> None:
    ends = [end.partition(":")[0] for end in expected.values()]
    assert min(ends.count(kind) for kind in ("done", "partial", "chunk")) > FILES // 10


def transcribe(engine: Engine, files: dict[str, bytes], speakers: SpeakerModel | None = None) -> Ends:
    """The end of each file: seconds and flags of its transcript, or kind and message of its failure."""
    store = MemoryStore(FakeClock(datetime(2026, 5, 1, tzinfo=UTC)))
    for key, data in files.items():
        store.place(key, data)
    manifest = Manifest(
        run="run-1",
        worker=0,
        release=__version__,
        source=store.url,
        output=store.url,
        deadline=datetime.now(UTC) + timedelta(hours=1),
        engine=EngineSpec(engine="any", speakers=speakers is not None),
        settings_hash="hash",
        chunks=tuple(describe(key, data) for key, data in files.items()),
    )
    record = run_worker(
        manifest,
        source=store,
        output=store,
        load=lambda: engine,
        find_speech=find_speech,
        speakers=speakers,
        clock=SystemClock(),
        should_stop=lambda: False,
    )
    assert record.end is WorkerEnd.FINISHED
    failed = {failure.key: f"{failure.kind}: {failure.message}" for failure in record.failures}
    done = {chunk.key: read(store, chunk) for chunk in manifest.chunks if chunk.key not in failed}
    return failed | done


def describe(key: str, data: bytes) -> ManifestChunk:
    name = audio_name(key)
    assert name is not None
    return ManifestChunk(
        key=key,
        etag=hashlib.md5(data).hexdigest(),
        size=len(data),
        session=name.session,
        transcript=transcript_key(name),
    )


def read(store: MemoryStore, chunk: ManifestChunk) -> str:
    found = msgspec.json.decode(store.get(chunk.transcript).data, type=Transcript)
    flags = sorted(set(found.flags) - DOUBTS)
    return f"{'partial' if flags else 'done'}: {found.duration:.3f} s, {' '.join(flags)}"


def find_speech(audio: Samples) -> list[tuple[int, int]]:
    """Some of each file goes to the engine, although tones are no speech; pocketsphinx is slow on them."""
    return [(0, min(len(audio), SAMPLE_RATE // 4))]
