"""A session in a bucket, spoken in tones, and a worker over it: no decoder's process, no model."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from batchscribe import __version__
from batchscribe.audio.audio_decoder import Samples
from batchscribe.core.run.manifest import AudioOptions, EngineSpec, ExitRecord, Manifest, ManifestChunk
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.transcripts import SessionTranscript, Transcript
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from batchscribe.worker.pipeline import ConcurrencySettings, run_worker
from support.spoken import RawDecoder, Spoken, ToneEngine, find_speech, raw

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


@dataclass
class Recorded:
    """A session in a bucket, and what was said in it."""

    words: list[Spoken]
    store: MemoryStore
    keys: list[str]
    runs: Any
    engine: Any
    clock: FakeClock
    troubled: frozenset[str] = frozenset()
    abandon: Callable[[], None] = lambda: None

    def transcribe(self, keys: Sequence[str], **audio_options: Any) -> ExitRecord:
        run = f"run-{next(self.runs)}"
        manifest = Manifest(
            run=run,
            worker=0,
            release=__version__,
            source=self.store.url,
            output=self.store.url,
            deadline=NOW + timedelta(hours=1),
            engine=EngineSpec(engine="tones"),
            settings_hash="h",
            audio_options=AudioOptions(**audio_options),
            chunks=tuple(self.chunk(key) for key in keys),
        )
        return run_worker(
            manifest,
            source=self.store,
            output=self.store,
            load=lambda: self.engine,
            find_speech=find_speech,
            clock=self.clock,
            should_stop=lambda: False,
            new_decoder=RawDecoder,  # type: ignore[arg-type]
            concurrency=ConcurrencySettings(
                fetchers=2, decoders=2, timelines=1, publishers=1, progress_seconds=0.1
            ),
            abandon=self.abandon,
        )

    def chunk(self, key: str) -> ManifestChunk:
        data, name = self.store.get(key).data, audio_name(key)
        assert name is not None
        return ManifestChunk(
            key=key,
            etag=hashlib.md5(data).hexdigest(),
            size=len(data),
            session=name.session,
            transcript=self.spoken(key),
            previously_failed=key in self.troubled,
        )

    @staticmethod
    def spoken(key: str) -> str:
        name = audio_name(key)
        assert name is not None
        return f"{name.folder}transcription-{name.stem}.json"

    def transcript(self, key: str) -> Transcript:
        return msgspec.json.decode(self.store.get(self.spoken(key)).data, type=Transcript)

    def session(self) -> SessionTranscript:
        parts = [
            PartInput(key=key, transcript=self.spoken(key), content=self.transcript(key)) for key in self.keys
        ]
        return stitch("s/", parts)


def recorded(words: list[Spoken], audio: Samples, cuts: Sequence[float], overlap: float) -> Recorded:
    """`cuts` are the places between chunks; each chunk but the first begins `overlap` before its cut."""
    clock = FakeClock(NOW)
    store = MemoryStore(clock)
    keys: list[str] = []
    ends = [*cuts, len(audio) / SAMPLE_RATE]
    for number, (begin, end) in enumerate(itertools.pairwise([0.0, *ends]), start=1):
        first = max(0.0, begin - overlap)
        piece = audio[round(first * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
        key = f"s/chunk-{number:03}.webm"
        store.place(key, raw(piece))
        keys.append(key)
    return Recorded(words, store, keys, itertools.count(1), ToneEngine(), clock)


def said(session: SessionTranscript) -> list[tuple[str, float, float]]:
    return [(word.word, word.start, word.end) for segment in session.segments for word in segment.words]


def same(found: Sequence[tuple[str, float, float]], words: Sequence[Spoken]) -> None:
    assert [word for word, _, _ in found] == [f"w{spoken.word}" for spoken in words]
    for (_, start, end), spoken in zip(found, words, strict=True):
        assert abs(start - spoken.start) <= 0.02
        assert abs(end - spoken.end) <= 0.02
