"""A folder store for benches: files in, a manifest for a worker, the text of each session out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, groupby
from pathlib import Path

import msgspec

from batchscribe import __version__
from batchscribe.adapters.engines.whisper.silero_vad import find_speech
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core import keys
from batchscribe.core.run.manifest import (
    AudioOptions,
    EngineSpec,
    ExitRecord,
    Manifest,
    ManifestChunk,
    WorkerEnd,
    decode,
    encode,
)
from batchscribe.core.scan.chunks import AudioName, audio_name, transcript_key
from batchscribe.core.text.speech import Recognition, Window
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.transcripts import Segment, SessionTranscript, Transcript
from batchscribe.engine import Engine
from batchscribe.protocols import SpeakerModel
from batchscribe.wiring.stores import open_store
from batchscribe.worker.pipeline import run_worker


@dataclass
class Remembering(Engine):
    """An engine that is not asked twice for the same sound: the same window has the same words.

    Two ways to cut a session that end in the same windows cost one transcription.
    """

    engine: Engine
    known: dict[bytes, Recognition] = field(default_factory=dict)
    windows: int = 0

    def transcribe(self, batch: Sequence[Window]) -> Iterator[Recognition]:
        for window in batch:
            self.windows += 1
            yield Recognition(window.id, *self._heard(window))

    def _heard(self, window: Window) -> tuple[tuple[Segment, ...], str | None, tuple[str, ...]]:
        sound = hashlib.sha256(window.audio.tobytes()).digest()
        if sound not in self.known:
            (self.known[sound],) = self.engine.transcribe([window])
        found = self.known[sound]
        return found.segments, found.language, found.flags


class Bucket:
    """Files by their keys below a folder of this machine."""

    _runs = count(1)

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.store = open_store(folder.as_uri())
        self._keys: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._keys.append(key)

    def put_session(self, session: str, files: Sequence[bytes], kind: str) -> None:
        """Numbered chunks of one folder."""
        for number, data in enumerate(files, start=1):
            self.put(f"{session}/chunk-{number:04}.{kind}", data)

    def put_strangers(self, session: str, files: Sequence[bytes], kind: str) -> None:
        """Files that know nothing of one another: each is a session of its own."""
        for number, data in enumerate(files, start=1):
            self.put(f"{session}/part-{number:04}.{kind}", data)

    def manifest(self, spec: EngineSpec, audio_options: AudioOptions = AudioOptions()) -> Manifest:  # noqa: B008 - frozen
        return Manifest(
            run=f"bench-{next(self._runs)}",
            worker=0,
            release=__version__,
            source=self.store.url,
            output=self.store.url,
            deadline=datetime.now(UTC) + timedelta(hours=12),
            engine=spec,
            settings_hash="bench",
            audio_options=audio_options,
            chunks=self._chunks(),
        )

    def write(self, manifest: Manifest) -> Path:
        """Puts the manifest where a worker's process finds it."""
        self.store.create(place := keys.manifest(manifest.run, manifest.worker), encode(manifest))
        return self.folder / place

    def transcribe(
        self, manifest: Manifest, engine: Engine, speakers: SpeakerModel | None = None
    ) -> ExitRecord:
        """The real worker in this process."""
        record = run_worker(
            manifest,
            source=self.store,
            output=self.store,
            load=lambda: engine,
            find_speech=find_speech,
            speakers=speakers,
            clock=SystemClock(),
            should_stop=lambda: False,
        )
        assert record.end is WorkerEnd.FINISHED, record
        assert not record.failures, record.failures
        return record

    def _chunks(self) -> tuple[ManifestChunk, ...]:
        found = {info.key: info for info in self.store.list("")}
        return tuple(
            ManifestChunk(
                key=key,
                etag=found[key].etag,
                size=found[key].size,
                session=_name(key).session,
                transcript=transcript_key(_name(key)),
            )
            for key in self._keys
        )

    def said(self, manifest: Manifest) -> ExitRecord:
        """The last word of a worker that was a process of its own."""
        place = keys.exit_record(manifest.run, manifest.worker)
        return decode(self.store.get(place).data, ExitRecord)

    def sessions(self) -> Iterator[SessionTranscript]:
        """What every session says, in the order of the keys."""
        for session, found in groupby(self._keys, lambda key: _name(key).session):
            yield stitch(session, [self._part(key) for key in found])

    def _part(self, key: str) -> PartInput:
        place = transcript_key(_name(key))
        content = msgspec.json.decode((self.folder / place).read_bytes(), type=Transcript)
        return PartInput(key=key, transcript=place, content=content)


def _name(key: str) -> AudioName:
    name = audio_name(key)
    assert name is not None, key
    return name
