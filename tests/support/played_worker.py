"""A worker that works through a manifest without an engine: transcripts, progress, and its last word.

Run as a program: `played_worker.py [HOLD] URL [OPTIONS]`. What it publishes goes through the real store,
create-only. While the file HOLD is there, the last chunk is not done.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from batchscribe import aws_environment
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.manifest import ExitRecord, Manifest, Phase, Progress, Tally, Timings, WorkerEnd
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript, Word, encode
from batchscribe.protocols import Store
from batchscribe.wiring.stores import open_store

SECONDS_PER_CHUNK = 1.0


def main() -> None:
    sys.modules["obstore.auth.boto3"] = None  # type: ignore[assignment]  # beside a GPU there is none
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    hold, url = _arguments(sys.argv[1:])
    root, mark, rest = url.rpartition(keys.RUNS)
    region, endpoint = aws_environment.place()
    store = open_store(root.rstrip("/"), region=region, endpoint=endpoint)
    manifest = wire.decode(store.get(mark + rest).data, Manifest)
    _progress(store, manifest, 0)
    done = []
    for chunk in manifest.chunks:
        if hold and chunk == manifest.chunks[-1]:
            _wait_while(hold)
        done.append(store.create(chunk.transcript, encode(_transcript(manifest, chunk))))
    _progress(store, manifest, len(done))
    record = ExitRecord(
        run=manifest.run,
        worker=manifest.worker,
        end=WorkerEnd.FINISHED,
        at=datetime.now(UTC),
        tally=_tally(sum(done)),
        timings=_TIMINGS,
    )
    store.create(keys.exit_record(manifest.run, manifest.worker), wire.encode(record))


def _arguments(words: list[str]) -> tuple[Path | None, str]:
    """The file HOLD, if it is named, and the URL; options of a real worker are of no use here."""
    (number,) = (number for number, word in enumerate(words) if keys.RUNS in word)
    return Path(words[0]) if number else None, words[number]


def _wait_while(hold: Path) -> None:
    """A bound for a broken test, not a measure."""
    for _ in range(1200):
        if not hold.exists():
            return
        time.sleep(0.05)


_TIMINGS = Timings(loaded=0.1, first_window=0.1, elapsed=0.5, busy=0.2)


def _tally(done: int) -> Tally:
    return Tally(done=done, audio_seconds=done * SECONDS_PER_CHUNK)


def _progress(store: Store, manifest: Manifest, done: int) -> None:
    progress = Progress(
        run=manifest.run,
        worker=manifest.worker,
        sequence=done,
        phase=Phase.WORKING,
        at=datetime.now(UTC),
        total=len(manifest.chunks),
        tally=_tally(done),
        timings=_TIMINGS,
    )
    store.replace(keys.progress(manifest.run, manifest.worker), wire.encode(progress))


def _transcript(manifest: Manifest, chunk: wire.ManifestChunk) -> Transcript:
    word = Word(word="one", start=0.1, end=0.9)
    return Transcript(
        text="one",
        segments=(Segment(text="one", start=0.1, end=0.9, words=(word,)),),
        duration=SECONDS_PER_CHUNK,
        engine="played",
        model="",
        settings_hash=manifest.settings_hash,
        audio=AudioRef(name=chunk.key.rpartition("/")[2], key=chunk.key, etag=chunk.etag),
        run=manifest.run,
        created_at=datetime.now(UTC),
    )


if __name__ == "__main__":
    main()
