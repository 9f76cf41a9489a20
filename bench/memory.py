"""The memory of a worker and its children over thousands of chunks: the peak, and how it grows.

`python -m bench.memory [--chunks 2000] [--model FOLDER]`: chunks of ten seconds, WebM with Opus, in sessions
of 500. Without a model of yours, faster-whisper gets the tests' own, of random weights: as quick as nothing,
so that all the rest of the worker works as fast as it can. RSS of the worker's process and of all below it,
every half second; what they share is counted for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import msgspec
import numpy as np
import psutil

from batchscribe.core import keys
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, Progress, WorkerEnd
from batchscribe.core.text.speech import SAMPLE_RATE
from bench import speech
from bench.bucket import Bucket
from bench.syllables import syllables
from support import whisper_model

CHUNK_SECONDS = 10.0
DIFFERENT = 12
"""Chunks that are really made; the others are copies of them."""
PER_SESSION = 500
SETTLED = 500
"""Chunks after which the memory should be as large as it ever gets."""
EVERY = 0.5
MIB = 1024**2


@dataclass(frozen=True)
class Sample:
    done: int
    rss: int
    processes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--engine", default="faster-whisper")
    parser.add_argument("--model", default="", help="the folder of a model, for faster-whisper")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        bucket = filled(home / "bucket", wanted.chunks)
        model = wanted.model or str(quick(home / "model"))
        manifest = bucket.manifest(EngineSpec(engine=wanted.engine, model=model, device="cpu", language="en"))
        samples = list(watched(bucket, manifest))
        show(samples, bucket.said(manifest))


def filled(folder: Path, chunks: int) -> Bucket:
    """Numbered chunks of sessions that are as long as a working day's half."""
    audio = speech.restless(300).samples[: round(DIFFERENT * CHUNK_SECONDS * SAMPLE_RATE)]
    files = speech.files(audio, "webm", CHUNK_SECONDS, 0)
    bucket = Bucket(folder)
    every = list(islice(cycle(files), chunks))
    for number, begin in enumerate(range(0, chunks, PER_SESSION), start=1):
        bucket.put_session(f"session-{number:02}", every[begin : begin + PER_SESSION], "webm")
    return bucket


def quick(folder: Path) -> Path:
    return whisper_model.build(folder, shape=whisper_model.Shape(words=syllables(400), places=1000.0))


def watched(bucket: Bucket, manifest: Manifest) -> Iterator[Sample]:
    """The worker, from its start to its end."""
    command = [sys.executable, "-m", "batchscribe", "worker", str(bucket.write(manifest))]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        sizes = list(_sizes(process))
        yield Sample(_done(bucket, manifest), sum(sizes), len(sizes))
        time.sleep(EVERY)
    assert process.returncode == 0, process.returncode


def _sizes(process: psutil.Popen) -> Iterator[int]:
    with suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                yield each.memory_info().rss


def _done(bucket: Bucket, manifest: Manifest) -> int:
    try:
        told = (bucket.folder / keys.progress(manifest.run, manifest.worker)).read_bytes()
    except FileNotFoundError:
        return 0
    return msgspec.json.decode(told, type=Progress).tally.done


def _slope(late: list[Sample]) -> None:
    if len({sample.done for sample in late}) < 2:
        return
    slope, _ = np.polyfit([sample.done for sample in late], [sample.rss / MIB for sample in late], 1)
    print(f"after the first {SETTLED}: {1000 * slope:+.1f} MB for each 1,000 chunks")


def show(samples: list[Sample], record: ExitRecord) -> None:
    assert record.end is WorkerEnd.FINISHED, record
    timings, tally = record.timings, record.tally
    worked = timings.elapsed - (timings.loaded or 0.0)
    peak = max(samples, key=lambda sample: sample.rss)
    print(f"{tally.done} chunks, {tally.failed} failed, {tally.audio_seconds / 3600:.1f} h of audio")
    print(f"peak {peak.rss / MIB:.0f} MB in {peak.processes} processes, at {peak.done} chunks")
    for begin in range(0, tally.done, SETTLED):
        part = [sample.rss / MIB for sample in samples if begin <= sample.done < begin + SETTLED]
        if part:
            print(f"    from {begin:>5} chunks on: mean {np.mean(part):.0f} MB, most {max(part):.0f} MB")
    _slope([sample for sample in samples if SETTLED <= sample.done < tally.done])
    print(
        f"engine busy {timings.busy / worked:.1%} of {worked:.0f} s, starved {timings.starved / worked:.1%}"
    )
    waited = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in timings.starved_by.items())
    print(f"starved by: {waited or 'nothing'}; flags: {record.flags or 'none'}")


if __name__ == "__main__":
    main()
