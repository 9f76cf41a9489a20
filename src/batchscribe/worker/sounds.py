"""Chunks on their way: fetched by one thread, decoded by another, heard in their order by a third.

Every stage takes the chunks in the same order, and waits for room before it takes the next one: so the
chunk that is waited for has always got its room, and nobody waits in a circle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchscribe.audio.audio_decoder import Beginning, Samples
from batchscribe.audio.bounded_queue import LOOK_SECONDS
from batchscribe.core.run.manifest import FailureKind
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import InterruptedRunError

HELD_SAMPLES = 60 * SAMPLE_RATE
"""Of one chunk and all its channels, decoded and not heard yet."""
MISSING = 0.3
"""Seconds that may lie between two pieces of one recording, by its clock, without anything being lost."""
EXACT = 0.05
"""Seconds by which time stamps and decoded samples differ where nothing is missing."""


MOST_TWICE = 1.0
"""Seconds. One recording does not have the same sound twice; time stamps that say so are of two."""


@dataclass(frozen=True, slots=True)
class Sound:
    """How a chunk begins."""

    position: float | None
    """Seconds from the beginning of its recording, where its time stamps tell."""
    shape: tuple[int, int, str]
    """Rate, channels and codec: where they change, a stretch ends."""
    sent: int = 1
    """Channels of what was decoded: the same holds for them."""
    lead: float = 0.0
    """Seconds from the beginning of the file to its sound."""
    apart: bool = False
    """Its channels are of different languages."""

    @classmethod
    def of(cls, beginning: Beginning | None, delay: float) -> Sound:
        if beginning is None:
            return cls(None, (0, 0, ""))
        at = None if beginning.position is None else max(0.0, beginning.position - delay)
        shape = (beginning.rate, beginning.channels, beginning.codec)
        return cls(at, shape, sent=beginning.sent, lead=beginning.lead, apart=beginning.apart)

    def alike(self, other: Sound) -> bool:
        """True if both are of one format."""
        return (self.shape, self.sent, self.apart) == (other.shape, other.sent, other.apart)

    def gap(self, before: Sound, seconds: float) -> float | None:
        """Seconds missing since `before`, which is `seconds` long, negative where both have them; None where
        the time stamps do not tell: a chunk that is a recording of its own begins at 0, or soon after.
        """
        if before.position is None or not self.position or self.position < before.position:
            return None
        missing = self.position - before.position - seconds
        if missing < -min(MOST_TWICE, seconds / 2):
            return None
        return 0.0 if abs(missing) < EXACT else missing

    def follows(self, before: Sound, seconds: float) -> bool:
        """Whether it may go on where `before` ended: the same format, and nothing missing in between."""
        gap = self.gap(before, seconds)
        return self.alike(before) and (gap is None or gap < MISSING)


@dataclass(frozen=True, slots=True)
class Whole:
    """A chunk was decoded to its end."""

    seconds: float
    partial: bool
    repaired: bool
    span: float | None = None
    """Seconds of the whole file, if its picture lasts longer than its sound."""
    flags: frozenset[str] = frozenset()
    """What else its transcript has to report."""


@dataclass(frozen=True, slots=True)
class Broken:
    """It could not be decoded, or not to its end."""

    message: str
    kind: FailureKind = FailureKind.CHUNK


@dataclass(frozen=True, slots=True)
class Absent:
    """There is nothing to hear: done already, or not to be had, and that is recorded."""


End = Whole | Broken | Absent


class Pipe:
    """One chunk: first its bytes, then its sound, at last how it ended."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until = until
        self._changed = threading.Condition()
        self._data: bytes | None = None
        self._pieces: deque[Samples] = deque()
        self._held = 0
        self._sound: Sound | None = None
        self.end: End | None = None

    def fetched(self, data: bytes) -> None:
        with self._changed:
            self._data = data
            self._changed.notify_all()

    def wait(self) -> bool:
        """Waits for the bytes; False where there are none."""
        with self._changed:
            self._wait(lambda: self._data is not None or self.end is not None)
            return self._data is not None

    def take(self) -> bytes:
        """The bytes, for the one who needs them last: they may be gigabytes, and lie here no longer."""
        with self._changed:
            data, self._data = self._data or b"", None
            return data

    def begin(self, sound: Sound) -> None:
        with self._changed:
            self._sound = sound
            self._changed.notify_all()

    def put(self, piece: Samples) -> None:
        """Waits for room. Raises InterruptedRunError when nobody wants the rest."""
        with self._changed:
            self._wait(lambda: self._held < HELD_SAMPLES)
            self._pieces.append(piece)
            self._held += piece.size
            self._changed.notify_all()

    def close(self, end: End) -> None:
        with self._changed:
            self.end = self.end or end
            self._changed.notify_all()

    def sound(self) -> Sound | None:
        """Waits until it begins; None where it ended before."""
        with self._changed:
            self._wait(lambda: self._sound is not None or self.end is not None)
            return self._sound

    def __iter__(self) -> Iterator[Samples]:
        """The pieces, as they come. Raises InterruptedRunError."""
        while True:
            with self._changed:
                self._wait(lambda: bool(self._pieces) or self.end is not None)
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._held -= piece.size
                self._changed.notify_all()
            yield piece

    def _wait(self, come: Callable[[], bool]) -> None:
        while not come():
            if self._until():
                raise InterruptedRunError("the worker is to end")
            self._changed.wait(LOOK_SECONDS)


class Pipes:
    """The pipes of all chunks that are under way, by their place in the manifest. For any thread."""

    def __init__(self, until: Callable[[], bool]) -> None:
        self._until = until
        self._lock = threading.Lock()
        self._open: dict[int, Pipe] = {}
        self._left: set[int] = set()

    def of(self, place: int) -> Pipe:
        with self._lock:
            return self._open.setdefault(place, Pipe(self._until))

    def leave(self, place: int) -> None:
        """One of the two that take from a pipe, its decoder and its listener, is done with it; where there is
        nothing to decode, the listener may be the first to know.
        """
        with self._lock:
            if place in self._left:
                self._left.remove(place)
                del self._open[place]
            else:
                self._left.add(place)
