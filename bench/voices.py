"""Speakers of a long session: memory, time, and error rate, of the worker and then of the scheduler.

`python -m bench.voices [--hours 10] [--voices 4] [--speakers 4] [--chunk 10]`: a made-up conversation of five
minutes, repeated, as FLAC; `--chunk 0` is one file. The model of voices is the tests' own: what WeSpeaker's
costs, or gets right, is not measured.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import decode_session
from batchscribe.testing.speakers import SpectralSpeakers
from batchscribe.worker.pipeline import run_worker
from bench.bucket import Bucket
from support.audio import encode
from support.spoken import find_speech
from support.voices import Conversation, Said, SyllableEngine, converse, measure_error

PART = 300.0
"""Seconds of conversation that are really made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--voices", type=int, default=4)
    parser.add_argument("--speakers", default="4", help="BATCH_SPEAKERS")
    parser.add_argument("--chunk", type=float, default=10.0, help="seconds of a file; 0: one file")
    wanted = parser.parse_args()
    part = converse(wanted.voices, PART)
    with tempfile.TemporaryDirectory() as folder:
        bucket = fill(Path(folder), part, wanted.hours * 3600, wanted.chunk)
        transcribe(bucket)
        label(bucket, wanted.speakers, part)


def fill(folder: Path, part: Conversation, seconds: float, chunk: float) -> Bucket:
    bucket = Bucket(folder)
    if chunk:
        audio = part.audio[: len(part.audio) // SAMPLE_RATE * SAMPLE_RATE]
        step = round(chunk * SAMPLE_RATE)
        files = [encode(audio[at : at + step], "flac") for at in range(0, len(audio), step)]
        bucket.put_session("talk", list(islice(cycle(files), round(seconds / chunk))), "flac")
    else:
        copies = round(seconds * SAMPLE_RATE / len(part.audio))
        bucket.put_session("talk", [encode(np.tile(part.audio, copies), "flac")], "flac")
    return bucket


def transcribe(bucket: Bucket) -> None:
    begin, manifest = time.monotonic(), bucket.manifest(EngineSpec(engine="syllables", speakers=True))
    record = run_worker(
        manifest,
        source=bucket.store,
        output=bucket.store,
        load=SyllableEngine,
        find_speech=find_speech,
        speakers=SpectralSpeakers(bands=512),
        clock=SystemClock(),
        should_stop=lambda: False,
    )
    assert record.tally.done == len(manifest.chunks), record
    hours = record.tally.audio_seconds / 3600
    print(
        f"worker: {hours:.1f} h in {len(manifest.chunks)} files, {time.monotonic() - begin:.0f} s, {peak()}"
    )
    voices = list(bucket.folder.rglob("speakers-*.json"))
    print(f"voices: {sum(path.stat().st_size for path in voices) / 1e6:.1f} MB in {len(voices)} objects")


def label(bucket: Bucket, speakers: str, part: Conversation) -> None:
    scanner = Scanner(bucket.store, bucket.store, clock=SystemClock())
    for what in ("labelled", "labelled again"):
        begin = time.monotonic()
        publish_session(scanner, "talk/", Rendering(speakers=speakers))
        print(f"scheduler, {what}: {time.monotonic() - begin:.1f} s, {peak()}")
        (bucket.folder / "talk" / "transcript.speakers.json").write_text('{"speakers": {"Speaker 1": "Ada"}}')
    found = decode_session((bucket.folder / "talk" / "transcript.json").read_bytes())
    words = [word for segment in found.segments for word in segment.words]
    print(
        f"{len(words)} words, {len({word.speaker for word in words})} speakers, {found.duration / 3600:.1f} h"
    )
    guess = [Said(str(word.speaker), word.start, word.end) for word in words if word.end < PART]
    spoken = [
        Said(turn.speaker, word.start, word.end)
        for word in guess
        for turn in part.turns
        if turn.start <= word.start < turn.end
    ]
    error = measure_error(spoken, guess, collar=0.0)
    print(f"wrong speaker in the first {PART:.0f} s: {error:.2%} of the words' time")


def peak() -> str:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return f"peak {own / 1024:.0f} MB, of one child process {children / 1024:.0f} MB"


if __name__ == "__main__":
    main()
