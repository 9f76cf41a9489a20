# ruff: noqa: INP001 - a script beside the package, not a part of it
"""Makes the bundled speech: plain sentences, a speech synthesiser, every container that is read.

Run by a maintainer on Debian with flite installed: `.venv/bin/python scripts/make_speech.py`. What it
writes is committed; nothing of this is needed to use the package.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

AUDIO = Path(__file__).parents[1] / "src/batchscribe/demo/audio"
CORPUS = AUDIO.parent / "corpus.json"
RATE = 16_000


@dataclass(frozen=True)
class Take:
    """One file to make: where, who speaks, what."""

    key: str
    voice: str
    text: str


TAKES = (
    Take(
        "morning-walk/chunk-001.webm",
        "rms",
        "we left the house early in the morning and walked along the river",
    ),
    Take(
        "morning-walk/chunk-002.ogg",
        "rms",
        "the water was low and we could see the old stones under the bridge",
    ),
    Take("morning-walk/chunk-003.opus", "rms", "a man was fishing there and he told us about the weather"),
    Take("morning-walk/chunk-004.mp3", "rms", "he said that there would be rain in the afternoon"),
    Take("morning-walk/chunk-005.m4a", "rms", "so we turned around and went back to the town before dinner"),
    Take("team-meeting/chunk-001.webm", "slt", "good morning everybody and thank you for coming"),
    Take("team-meeting/chunk-002.aac", "slt", "the first point for today is the new office in the city"),
    Take("team-meeting/chunk-003.mp4", "slt", "we have found a good place near the station"),
    Take("team-meeting/chunk-004.m4v", "slt", "please send your questions to me before the end of the week"),
    Take("notes/shopping list.wav", "rms", "we need bread and milk and eggs"),
    Take("notes/the idea.flac", "rms", "a small machine that works only when there is work to do"),
    Take("notes/call back.mov", "rms", "please call my brother back on monday"),
    Take("notes/the book.avi", "rms", "the second book was better than the first one"),
    Take("notes/one more.webm", "rms", "this is the last recording for today"),
)

CUT = AUDIO.parent / "cut"
STORY = (
    "when the train stopped between two stations nobody knew the reason, an old woman opened her basket and "
    "shared her bread with everyone around her, after an hour the lights came back and we began to move "
    "again, later we learned that a tree had fallen across the track in the storm"
)
EVERY, OVERLAP = 5.0, 0.5
"""Seconds of a chunk, and what each has of the one before it: as the original recorder writes them."""

CODECS: dict[str, tuple[str, str, int]] = {
    "webm": ("webm", "libopus", 24_000),
    "ogg": ("ogg", "libopus", 24_000),
    "opus": ("ogg", "libopus", 24_000),
    "mp3": ("mp3", "libmp3lame", 48_000),
    "avi": ("avi", "libmp3lame", 48_000),
    "m4a": ("mp4", "aac", 48_000),
    "mp4": ("mp4", "aac", 48_000),
    "m4v": ("mp4", "aac", 48_000),
    "mov": ("mov", "aac", 48_000),
    "aac": ("adts", "aac", 48_000),
    "flac": ("flac", "flac", 0),
    "wav": ("wav", "pcm_s16le", 0),
}
"""Container, codec and bits per second for each file extension."""


def speak(take: Take, wav: Path) -> None:
    subprocess.run(["flite", "-voice", take.voice, "-t", take.text, "-o", str(wav)], check=True)


def encode(wav: Path, target: Path) -> float:
    """Writes the recording in the container that the target's extension names; returns its seconds."""
    container, codec, bits = CODECS[target.suffix[1:]]
    with av.open(str(wav)) as source, av.open(str(target), "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=RATE, layout="mono")
        if bits:
            stream.bit_rate = bits
        for frame in source.decode(audio=0):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        return float(source.duration or 0) / av.time_base


def make(take: Take, scratch: Path) -> dict[str, object]:
    wav = scratch / "take.wav"
    speak(take, wav)
    target = AUDIO / take.key
    target.parent.mkdir(parents=True, exist_ok=True)
    seconds = encode(wav, target)
    return {"key": take.key, "text": take.text, "seconds": round(seconds, 2), "voice": take.voice}


def make_session(scratch: Path) -> dict[str, object]:
    """One recording, cut into chunks wherever a cut falls, each with a header of its own."""
    whole = scratch / "story.wav"
    speak(Take("", "rms", STORY), whole)
    with wave.open(str(whole)) as sound:
        rate, pcm = sound.getframerate(), sound.readframes(sound.getnframes())
    keys: list[str] = []
    for number, begin in enumerate(range(0, len(pcm), int(EVERY * rate) * 2), start=1):
        piece = scratch / "piece.wav"
        with wave.open(str(piece), "wb") as out:
            out.setparams((1, 2, rate, 0, "NONE", ""))
            out.writeframes(pcm[max(0, begin - int(OVERLAP * rate) * 2) : begin + int(EVERY * rate) * 2])
        keys.append(f"one-recording/chunk-{number:03}.webm")
        (CUT / keys[-1]).parent.mkdir(parents=True, exist_ok=True)
        encode(piece, CUT / keys[-1])
    return {"folder": "one-recording", "text": STORY.replace(",", ""), "keys": keys, "voice": "rms"}


def main() -> None:
    for folder in (AUDIO, CUT):
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        chunks = [make(take, Path(scratch)) for take in TAKES]
        session = make_session(Path(scratch))
    corpus = {"speech": "flite", "chunks": chunks, "session": session}
    CORPUS.write_text(json.dumps(corpus, indent=2) + "\n")


if __name__ == "__main__":
    main()
