"""Recordings in every container, made in memory, and the bundled speech."""

from __future__ import annotations

import io
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

import batchscribe

RATE = 16_000
DEMO = Path(batchscribe.__file__).parent / "demo"
CONTAINERS: dict[str, tuple[str, str]] = {
    "webm": ("webm", "libopus"),
    "ogg": ("ogg", "libopus"),
    "opus": ("ogg", "libopus"),
    "mp3": ("mp3", "libmp3lame"),
    "avi": ("avi", "libmp3lame"),
    "m4a": ("mp4", "aac"),
    "mp4": ("mp4", "aac"),
    "m4v": ("mp4", "aac"),
    "mov": ("mov", "aac"),
    "aac": ("adts", "aac"),
    "flac": ("flac", "flac"),
    "wav": ("wav", "pcm_s16le"),
    "w64": ("w64", "pcm_s16le"),
    "wv": ("wv", "wavpack"),
    "au": ("au", "pcm_s16be"),
    "caf": ("caf", "alac"),
    "amr": ("amr", "libopencore_amrnb"),
    "mp2": ("mp2", "mp2"),
    "ac3": ("ac3", "ac3"),
    "3gp": ("3gp", "aac"),
    **dict.fromkeys(("aif", "aifc", "aiff"), ("aiff", "pcm_s16be")),
    **dict.fromkeys(("asf", "wma", "wmv"), ("asf", "wmav2")),
    **dict.fromkeys(("mka", "mkv"), ("matroska", "libopus")),
    **dict.fromkeys(("oga", "ogv", "spx"), ("ogg", "libopus")),
    "weba": ("webm", "libopus"),
    "m4b": ("mp4", "aac"),
    "mpga": ("mp3", "libmp3lame"),
    "qt": ("mov", "aac"),
}
RATES = {"libopencore_amrnb": 8000, "ac3": 48_000, "wmav2": 44_100}
"""Rates in Hz of encoders that do not take 16 kHz."""

Samples = npt.NDArray[np.float32]


def sine(seconds: float, *, hertz: float = 440.0) -> Samples:
    at = np.arange(int(seconds * RATE)) / RATE
    wave: Samples = (0.5 * np.sin(2 * np.pi * hertz * at)).astype(np.float32)
    return wave


def encode(
    samples: Samples, extension: str, *, picture: bool = False, options: dict[str, str] | None = None
) -> bytes:
    """The samples as a file of that extension; `picture` puts a video stream beside them."""
    container, codec = CONTAINERS[extension]
    rate = RATES.get(codec, RATE)
    return write_audio(samples, container, codec, rate=rate, picture=picture, options=options)


def write_audio(
    samples: Samples,
    container: str,
    codec: str,
    *,
    rate: int = RATE,
    picture: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options or {}) as out:
        video = _video(out) if picture else None
        stream: Any = out.add_stream(codec, rate=rate, layout="mono")
        if codec == "wmav2":
            stream.bit_rate = 48_000
        if video is not None:
            _film(out, video)
        at = np.arange(int(len(samples) * rate / RATE)) * RATE / rate
        pcm = (np.interp(at, np.arange(len(samples)), samples).clip(-1, 1) * 32767).astype(np.int16)
        for begin in range(0, len(pcm), rate):
            frame = av.AudioFrame.from_ndarray(pcm[None, begin : begin + rate], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def adts(samples: Samples, channels: int) -> bytes:
    """Raw AAC with the same sound in every channel: files of it can be put one after the other."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(file, "w", format="adts") as out:
        stream: Any = out.add_stream("aac", rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.tile(samples, (channels, 1)), format="fltp", layout=layout)
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def _video(out: Any) -> Any:
    stream = out.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    return stream


def _film(out: Any, stream: Any) -> None:
    for number in range(10):
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number * 20, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 10)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def silent_film() -> bytes:
    """An MP4 with a picture and no sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        _film(out, _video(out))
    return file.getvalue()


def faststart(samples: Samples) -> bytes:
    """An M4A whose index comes first, with room for more of it than it needs."""
    return encode(samples, "m4a", options={"moov_size": "8000"})


def lengthless(flac: bytes) -> bytes:
    """A FLAC whose header does not say how long it is."""
    head = int.from_bytes(flac[18:26]) >> 36 << 36
    return flac[:18] + head.to_bytes(8) + flac[26:]


def silent_flac(hours: float, *, stated: bool = True) -> bytes:
    """Hours of digital silence in some kilobytes: one second is encoded, its frames are repeated.

    The header says the length only if `stated`.
    """
    one = encode(np.zeros(RATE * 60, np.float32), "flac")
    head = bytearray(one[:42])
    at = 42
    last = bool(one[4] & 0x80)
    while not last:
        last = bool(one[at] & 0x80)
        at += 4 + int.from_bytes(one[at + 1 : at + 4])
    head[4] |= 0x80
    total = int(hours * 3600) * RATE if stated else 0
    packed = (int.from_bytes(head[18:26]) >> 36 << 36) | total
    head[18:26] = packed.to_bytes(8)
    return bytes(head) + one[at:] * int(hours * 60)


def wav(samples: Samples, *, rate: int = RATE, channels: int = 1, claimed: int | None = None) -> bytes:
    """A PCM WAV by hand: a header may say what it likes."""
    pcm = (samples * 32767).astype("<i2").tobytes()
    size = len(pcm) if claimed is None else claimed
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2 & 0xFFFF, 16)
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", size) + pcm
    )  # fmt: skip


def aiff(samples: Samples, *, channels: int) -> bytes:
    """An AIFF by FFmpeg, with the layout that it writes for so many channels."""
    file = io.BytesIO()
    layout = av.AudioLayout({8: "7.1"}[channels])
    with av.open(file, "w", format="aiff") as out:
        stream: Any = out.add_stream("pcm_s16be", rate=RATE, layout=layout)
        pcm = (samples * 32767).astype("<i2")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout=layout)
        frame.sample_rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def float_wav(samples: Samples, *, channels: int = 1) -> bytes:
    """A WAV whose samples are what they are given as: also what is no number."""
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, channels, RATE, RATE * 4 * channels, 4 * channels, 32)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data


def corpus() -> dict[str, str]:
    """What is said in each bundled file, by its key."""
    found = json.loads((DEMO / "corpus.json").read_text())
    return {chunk["key"]: chunk["text"] for chunk in found["chunks"]}


def bundled(key: str) -> bytes:
    return (DEMO / "audio" / key).read_bytes()
