"""The clock of a file: when its sound begins, and how long the file is. Part of the decoder's own process.

Time stamps may count from any moment. So all lengths are differences, and what counts for the beginning is
the earliest start of any sound or picture.
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
"""Containers that state their length, rather than having it guessed from the bit rate."""
NEAR = 0.05
"""Seconds. Sound and picture that begin within this begin together: an encoder's delay."""
LAST_PICTURE_SECONDS = 1.0
"""At most so much of its stated duration is added to the time of the last picture."""
MOST_SECONDS = 3600.0
"""A picture that ends later than this behind the sound, in a file that states no length, is not trusted."""


@dataclass(frozen=True, slots=True)
class Stated:
    """The length of a track's sound as its container states it, in seconds.

    The length of a track whose clock does not start at 0 is counted from its start or from 0: `least` and
    `most` are the two readings.
    """

    least: float
    most: float


def names(container: InputContainer) -> frozenset[str]:
    """The names of its format: it may have several."""
    return frozenset(container.format.name.split(","))


def stated_length(container: InputContainer, stream: AudioStream) -> Stated | None:
    """The length that the container states for one track; None if it states none."""
    if not EXACT & names(container):
        return None
    if stream.duration and stream.time_base:
        return _read(float(stream.duration * stream.time_base), _start(stream) or 0.0)
    if container.duration and len(container.streams) == 1:
        return _read(container.duration / av.time_base, _start(stream) or 0.0)
    return None


def _read(length: float, start: float) -> Stated:
    # Of a fragment FFmpeg states where its recording stands when it ends.
    since = length - max(0.0, start)
    return Stated(since if since > 0 else length, length)


def _start(stream: AudioStream | VideoStream) -> float | None:
    if stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base)


def pictures(container: InputContainer) -> list[VideoStream]:
    """The tracks of moving pictures: a cover has no time of its own."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


class FileClock:
    """What the pictures of a file say of its beginning and of its length; times in seconds."""

    def __init__(self, container: InputContainer) -> None:
        self.pictures = pictures(container)
        """Their packets are for `note`."""
        starts = [start for picture in self.pictures if (start := _start(picture)) is not None]
        self.begins = min(starts, default=math.inf)
        self._ends = -math.inf
        exact = EXACT & names(container) and container.duration
        self._stated = container.duration / av.time_base if exact and container.duration else None

    def note(self, packet: Packet[Stream]) -> None:
        """Takes the time of a picture."""
        at = packet.dts if packet.pts is None else packet.pts
        if at is not None and packet.time_base is not None:
            shown = min(LAST_PICTURE_SECONDS, float((packet.duration or 0) * packet.time_base))
            self._ends = max(self._ends, float(at * packet.time_base) + max(0.0, shown))

    def span(self, begins: float, seconds: float) -> float | None:
        """The file's own length if it is longer than its sound, which takes `seconds` after `begins`.

        It ends with its last picture, but not later than the container states.
        """
        if not math.isfinite(self._ends):
            return None
        start = min(begins, self.begins)
        sound, own = begins - start + seconds, self._ends - start
        if self._stated:
            own = min(own, _read(self._stated, start).most + LAST_PICTURE_SECONDS)
        elif own > sound + MOST_SECONDS:
            return None
        return own if own > sound else None
