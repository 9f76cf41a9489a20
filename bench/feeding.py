"""What it takes to decode a browser's chunks: ours, ffmpeg for each file, and one ffmpeg for an hour at once.

Chunks of 10 s of bundled speech, WebM with Opus, to 16 kHz mono float32; in turn, three times over. CPU
seconds (user and system, starts included) for each hour of audio, medians, and the ratio to ours.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchscribe.audio.audio_decoder import AudioDecoder
from support.audio import write_audio

RATE = 16_000
CHUNK_SECONDS = 10
CHUNKS = 180
TURNS = 3
SPEECH = Path(__file__).parents[1] / "src" / "batchscribe" / "demo" / "audio"

Samples = npt.NDArray[np.float32]


def main() -> None:
    chunks = [encode(part) for part in np.array_split(speech(), CHUNKS)]
    whole = encode(speech())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"chunk-{number:03}.webm" for number in range(CHUNKS)]
        for file, data in zip(files, chunks, strict=True):
            file.write_bytes(data)
        (long := Path(folder) / "whole.webm").write_bytes(whole)
        ways: dict[str, Callable[[], int]] = {"ours, chunk by chunk": lambda: ours(chunks)}
        if shutil.which("ffmpeg"):
            ways["ffmpeg for each chunk"] = lambda: sum(map(ffmpeg, files))
            ways["one ffmpeg, one file"] = lambda: ffmpeg(long)
        else:
            print("ffmpeg is not installed: nothing to compare with")
        show(ways)


def show(ways: dict[str, Callable[[], int]]) -> None:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            spent[name].append(timed(way))
    hours = CHUNKS * CHUNK_SECONDS / 3600
    first, *_ = (median(turns, 0) for turns in spent.values())
    for name, turns in spent.items():
        cpu, wall = median(turns, 0), median(turns, 1)
        print(f"{name:<24} CPU {cpu / hours:6.1f} s   wall {wall / hours:6.1f} s   ratio {cpu / first:5.2f}x")


def median(turns: list[tuple[float, float]], index: int) -> float:
    return statistics.median(turn[index] for turn in turns)


def timed(way: Callable[[], int]) -> tuple[float, float]:
    """CPU seconds of this process and its children, and seconds on the wall."""
    cpu, begin = used(), time.perf_counter()
    samples = way()
    assert abs(samples / RATE - CHUNKS * CHUNK_SECONDS) < CHUNKS * 0.1, samples
    return used() - cpu, time.perf_counter() - begin


def used() -> float:
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, whose))


def ours(chunks: list[bytes]) -> int:
    with AudioDecoder() as decoder:
        return sum(len(piece) for chunk in chunks for piece in decoder.decode(chunk, max_seconds=3600))


def ffmpeg(file: Path) -> int:
    """How many samples come out of it."""
    words = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(file)]
    words += ["-ac", "1", "-ar", str(RATE), "-f", "f32le", "-"]
    raw = subprocess.run(words, capture_output=True, check=True)
    return len(raw.stdout) // 4


def speech() -> Samples:
    """The bundled recordings over and over, as long as all chunks are."""
    with AudioDecoder() as decoder:
        files = [file.read_bytes() for file in sorted(SPEECH.rglob("*")) if file.is_file()]
        parts = [decoder.decode_all(data, max_seconds=60).samples for data in files]
    return np.resize(np.concatenate(parts), CHUNKS * CHUNK_SECONDS * RATE)


def encode(samples: Samples) -> bytes:
    """As a browser's recorder does: no index, clusters of a second."""
    options = {"live": "1", "cluster_time_limit": "1000"}
    return write_audio(samples, "webm", "libopus", options=options)


if __name__ == "__main__":
    main()
