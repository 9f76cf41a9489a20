"""Films with several audio tracks, made in memory: where each track begins, its language, its channels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from support.audio import RATE, Samples

CODECS = {
    "mp4": ("mp4", "aac", "mpeg4"),
    "mov": ("mov", "aac", "mpeg4"),
    "webm": ("webm", "libopus", "libvpx"),
    "mkv": ("matroska", "libopus", "mpeg4"),
    "avi": ("avi", "libmp3lame", "mpeg4"),
}
"""Container, and codecs of sound and picture, by extension."""
TICK = Fraction(1, 1000)


@dataclass(frozen=True, kw_only=True)
class Track:
    """One audio track; `begins` in seconds on the clock of the file."""

    samples: Samples
    begins: float = 0.0
    language: str = ""
    default: bool = False
    codec: str = ""


def film(
    extension: str,
    *tracks: Track,
    picture: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A file with these tracks; `picture` is when a moving picture begins and ends, 5 pictures a second."""
    container, sound, moving = CODECS[extension]
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as out:
        video = _video(out, moving) if picture else None
        streams = [_audio(out, track, track.codec or sound) for track in tracks]
        if video is not None and picture is not None:
            _show(out, video, *picture)
        for stream, track in zip(streams, tracks, strict=True):
            _say(out, stream, track)
    return file.getvalue()


def _video(out: Any, codec: str) -> Any:
    stream = out.add_stream(codec, rate=5)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    stream.codec_context.time_base = TICK
    return stream


def _audio(out: Any, track: Track, codec: str) -> Any:
    stream = out.add_stream(codec, rate=RATE, layout="mono")
    if track.language:
        stream.metadata["language"] = track.language
    stream.disposition = Disposition.default if track.default else Disposition(0)
    return stream


def _show(out: Any, stream: Any, begins: float, ends: float) -> None:
    for number in range(round((ends - begins) * 5)):
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 12 * 20, np.uint8), format="rgb24")
        frame.pts, frame.time_base = round((begins + number / 5) * 1000), TICK
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _say(out: Any, stream: Any, track: Track) -> None:
    pcm = (track.samples.clip(-1, 1) * 32767).astype(np.int16)
    for at in range(0, len(pcm), RATE):
        frame = av.AudioFrame.from_ndarray(pcm[None, at : at + RATE], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = round(track.begins * RATE) + at
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def together(channels: Sequence[Samples]) -> Samples:
    """One file's channels; their samples take turns."""
    return np.column_stack(channels).ravel()
