"""The clock of a file: begin of its audio, and its length.

Runs in the decoder process. Time stamps may count from any moment. So all lengths are differences, and a file
begins with the earliest audio or video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

EXACT = frozenset({"matroska", "mov", "wav", "flac", "avi", "aiff", "caf", "asf"})
"""Containers that state their length; for others FFmpeg guesses it from the bitrate."""
NEAR = 0.05
"""Seconds. Audio and video that begin within it begin together: an encoder's delay."""
LAST_PICTURE_SECONDS = 1.0
"""Most of the last picture's stated duration that counts."""
MOST_SECONDS = 3600.0
"""Longest plausible video after the audio's end, in a file without a stated length."""


@dataclass(frozen=True, slots=True)
class Stated:
    """Length of a track's audio as stated by its container, in seconds.

    If the track's clock does not start at 0, the length may count from its start or from 0: `least` and
    `most` are the two interpretations.
    """

    least: float
    most: float


def format_names(container: InputContainer) -> frozenset[str]:
    """Names of a container's format, which may have several."""
    return frozenset(container.format.name.split(","))


def stated_length(container: InputContainer, stream: AudioStream) -> Stated | None:
    """Length that the container states for one track, or None."""
    if not EXACT & format_names(container):
        return None
    if stream.duration and stream.time_base:
        return _interpret_length(float(stream.duration * stream.time_base), _start_seconds(stream) or 0.0)
    if container.duration and len(container.streams) == 1:
        return _interpret_length(container.duration / av.time_base, _start_seconds(stream) or 0.0)
    return None


def _interpret_length(length: float, start: float) -> Stated:
    # For a fragment, FFmpeg states its end on the recording's clock.
    since = length - max(0.0, start)
    return Stated(since if since > 0 else length, length)


def _start_seconds(stream: AudioStream | VideoStream) -> float | None:
    if stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


def find_pictures(container: InputContainer) -> list[VideoStream]:
    """Video tracks, without covers, which have no time."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


class FileClock:
    """Begin and length of a file by its video; times in seconds."""

    def __init__(self, container: InputContainer) -> None:
        self.pictures = find_pictures(container)
        """Their packets are for `note_picture`."""
        starts = [start for picture in self.pictures if (start := _start_seconds(picture)) is not None]
        self.begins = min(starts, default=math.inf)
        self._ends = -math.inf
        exact = EXACT & format_names(container) and container.duration
        self._stated = container.duration / av.time_base if exact and container.duration else None

    def note_picture(self, packet: Packet[Stream]) -> None:
        """Records the time of a picture."""
        at = packet.dts if packet.pts is None else packet.pts
        if at is not None and packet.time_base is not None:
            shown = min(LAST_PICTURE_SECONDS, float((packet.duration or 0) * packet.time_base))
            self._ends = max(self._ends, float(at * packet.time_base) + max(0.0, shown))

    def measure_span(self, begins: float, seconds: float) -> float | None:
        """Length of a file longer than `seconds` from `begins`, or None.

        The file ends with its last picture, but not later than the container states.
        """
        if not math.isfinite(self._ends):
            return None
        start = min(begins, self.begins)
        sound, own = begins - start + seconds, self._ends - start
        if self._stated:
            own = min(own, _interpret_length(self._stated, start).most + LAST_PICTURE_SECONDS)
        elif own > sound + MOST_SECONDS:
            return None
        return own if own > sound else None
