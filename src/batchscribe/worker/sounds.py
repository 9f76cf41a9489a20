"""Pipes of chunks between threads that fetch, decode and assemble.

Every stage takes the chunks in the same order, and waits for room before it takes the next one. So the
chunk that a stage waits for always has room, and no deadlock can occur.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchscribe.audio.audio_decoder import Beginning, Samples
from batchscribe.audio.bounded_queue import POLL_SECONDS
from batchscribe.core.run.manifest import FailureKind
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import InterruptedRunError

HELD_SAMPLES = 60 * SAMPLE_RATE
"""Most decoded samples held per chunk, over all its channels."""
MISSING = 0.3
"""Seconds between two chunks of one recording, by its clock, that count as a gap."""
EXACT = 0.05
"""Seconds by which time stamps and decoded samples differ when nothing is missing."""


MOST_TWICE = 1.0
"""Seconds. Time stamps that overlap by more belong to two recordings."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Format and position of a chunk's audio."""

    position: float | None
    """Seconds from the beginning of its recording; None if its time stamps do not show it."""
    shape: tuple[int, int, str]
    """Rate, channels and codec; a change ends the timeline."""
    sent: int = 1
    """Channels of the decoded audio; a change ends the timeline."""
    lead: float = 0.0
    """Seconds from the beginning of the file to its audio."""
    apart: bool = False
    """Its channels are different languages."""

    @classmethod
    def from_beginning(cls, beginning: Beginning | None, delay: float) -> Sound:
        if beginning is None:
            return cls(None, (0, 0, ""))
        at = None if beginning.position is None else max(0.0, beginning.position - delay)
        shape = (beginning.rate, beginning.channels, beginning.codec)
        return cls(at, shape, sent=beginning.sent, lead=beginning.lead, apart=beginning.apart)

    def has_format_of(self, other: Sound) -> bool:
        """True if both have the same format."""
        return (self.shape, self.sent, self.apart) == (other.shape, other.sent, other.apart)

    def measure_gap(self, before: Sound, seconds: float) -> float | None:
        """Seconds missing since `before`, which is `seconds` long; negative for an overlap.

        None if the time stamps do not show it: a chunk that is a separate recording begins near 0.
        """
        if before.position is None or not self.position or self.position < before.position:
            return None
        missing = self.position - before.position - seconds
        if missing < -min(MOST_TWICE, seconds / 2):
            return None
        return 0.0 if abs(missing) < EXACT else missing

    def follows(self, before: Sound, seconds: float) -> bool:
        """True if it continues `before`: same format, nothing missing."""
        gap = self.measure_gap(before, seconds)
        return self.has_format_of(before) and (gap is None or gap < MISSING)


@dataclass(frozen=True, slots=True)
class Whole:
    """End of a chunk that was decoded completely."""

    seconds: float
    partial: bool
    repaired: bool
    span: float | None = None
    """Seconds of the whole file, if its video is longer than its audio."""
    flags: frozenset[str] = frozenset()
    """Further flags for its transcript."""


@dataclass(frozen=True, slots=True)
class Broken:
    """End of a chunk that could not be decoded, or not completely."""

    message: str
    kind: FailureKind = FailureKind.CHUNK


@dataclass(frozen=True, slots=True)
class Absent:
    """End of a chunk without audio: done already, or recorded as failed."""


End = Whole | Broken | Absent


class Pipe:
    """Hand-over of one chunk: its bytes, then audio, then end."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until = until
        self._changed = threading.Condition()
        self._data: bytes | None = None
        self._pieces: deque[Samples] = deque()
        self._held = 0
        self._sound: Sound | None = None
        self.end: End | None = None

    def put_bytes(self, data: bytes) -> None:
        with self._changed:
            self._data = data
            self._changed.notify_all()

    def wait_for_bytes(self) -> bool:
        """Waits for the bytes; False if there are none."""
        with self._changed:
            self._wait_until(lambda: self._data is not None or self.end is not None)
            return self._data is not None

    def take_bytes(self) -> bytes:
        """Removes and returns the bytes, so that gigabytes are not held here."""
        with self._changed:
            data, self._data = self._data or b"", None
            return data

    def begin_audio(self, sound: Sound) -> None:
        with self._changed:
            self._sound = sound
            self._changed.notify_all()

    def put_audio(self, piece: Samples) -> None:
        """Waits for room. Raises InterruptedRunError when the worker should end."""
        with self._changed:
            self._wait_until(lambda: self._held < HELD_SAMPLES)
            self._pieces.append(piece)
            self._held += piece.size
            self._changed.notify_all()

    def close(self, end: End) -> None:
        with self._changed:
            self.end = self.end or end
            self._changed.notify_all()

    def wait_for_sound(self) -> Sound | None:
        """Waits for the audio's format; None if the chunk ended without audio."""
        with self._changed:
            self._wait_until(lambda: self._sound is not None or self.end is not None)
            return self._sound

    def __iter__(self) -> Iterator[Samples]:
        """Yields the pieces as they arrive. Raises InterruptedRunError."""
        while True:
            with self._changed:
                self._wait_until(lambda: bool(self._pieces) or self.end is not None)
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._held -= piece.size
                self._changed.notify_all()
            yield piece

    def _wait_until(self, come: Callable[[], bool]) -> None:
        while not come():
            if self._until():
                raise InterruptedRunError("the worker is ending")
            self._changed.wait(POLL_SECONDS)


class Pipes:
    """Thread-safe pipes of the chunks in progress, by manifest index."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until = until
        self._lock = threading.Lock()
        self._open: dict[int, Pipe] = {}
        self._left: set[int] = set()

    def get(self, place: int) -> Pipe:
        with self._lock:
            return self._open.setdefault(place, Pipe(self._until))

    def leave(self, place: int) -> None:
        """Removes a pipe on the second call.

        Decoder and timeline thread leave it once each, in any order.
        """
        with self._lock:
            if place in self._left:
                self._left.remove(place)
                del self._open[place]
            else:
                self._left.add(place)
