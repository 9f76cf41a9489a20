"""Consecutive chunks of one session become one stretch of sound, and windows are cut from that.

A stretch has a clock of its own: samples from its beginning. It ends where a chunk is missing or broken,
where sound is missing between two chunks, or where their format changes. Where neighbours overlap, each
half of what both have comes from the one that was further from its own edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from batchscribe.audio.audio_decoder import Samples
from batchscribe.audio.overlaps import Overlaps
from batchscribe.audio.windows import Cut, Cutter, SpeechFinder
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.word_assignment import Place
from batchscribe.worker.context_audio import Neighbour
from batchscribe.worker.sounds import MISSING, Sound, Whole

SILENT = 1e-3
ALIKE = 0.01
"""Channels that differ by less, measured by the loudest sample, are one channel written twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A window that waits for the engine, and the chunks that it may hold words of.

    `chunks` are places in the manifest, None for sound that is nobody's any more; `places` say where they
    lie on the clock of the stretch. `channel` counts from 1 on where channels are heard one by one.
    """

    cut: Cut
    chunks: tuple[int | None, ...]
    places: tuple[Place, ...]
    channel: int | None
    alone: bool
    apart: bool = False
    """Its channel speaks a language of its own."""
    wordless: tuple[tuple[float, float], ...] = ()
    """Of a second decoding: the speech in which the first one found no word, in seconds of the stretch."""

    @property
    def touched(self) -> tuple[int, ...]:
        return tuple(chunk for chunk in self.chunks if chunk is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """No window of this chunk will come any more: all of them came before this."""

    chunk: int
    whole: Whole
    overlap: float = 0.0
    position: float | None = None


@dataclass(slots=True)
class _Laid:
    """A chunk on the stretch's clock, in samples; endless until its end is known."""

    chunk: int | None
    sound: Sound
    begin: float
    first: float
    overlap: float = 0.0
    end: float = math.inf
    last: float = math.inf
    whole: Whole | None = None
    heard: Neighbour | None = None
    """It was published before."""

    @property
    def seconds(self) -> float:
        return self.heard.samples / SAMPLE_RATE if self.heard else self.whole.seconds if self.whole else 0.0

    def ended(self, chunk: int, whole: Whole) -> Ended:
        """On the clock of its file, which may begin before its sound does."""
        at, lead = self.sound.position, self.sound.lead
        return Ended(
            chunk=chunk,
            whole=replace(whole, seconds=whole.seconds + lead),
            overlap=self.overlap,
            position=None if at is None else max(0.0, at - lead),
        )

    def place(self, channel: int | None) -> Place:
        from_, until = self.heard.edges(channel) if self.heard else (None, None)
        begin = self.begin / SAMPLE_RATE
        return Place(
            begin=begin,
            end=self.end / SAMPLE_RATE,
            first=self.first / SAMPLE_RATE,
            last=self.last / SAMPLE_RATE,
            published=self.chunk is None,
            heard_from=None if from_ is None else begin + from_,
            heard_until=None if until is None else begin + until,
        )


class Stretch:
    """Chunks are laid one behind the other; windows and ends come out through `emit`. For one thread."""

    def __init__(
        self,
        head: Samples,
        *,
        find_speech: SpeechFinder,
        overlaps: Overlaps,
        emit: Callable[[Ready | Ended], None],
        alone: bool = False,
        apart: bool = False,
    ) -> None:
        """`apart`: the channels of `head` are of different languages, however alike they begin."""
        self._channels = head.shape[1] if apart else channels(head)
        self._apart = apart
        self._cutters = [Cutter(find_speech) for _ in range(self._channels)]
        self._overlaps = overlaps
        self._emit = emit
        self._alone = alone
        self._laid: list[_Laid] = []
        self._tail = self._shaped(head[:0])
        self._pushed = 0

    def fits(self, sound: Sound) -> bool:
        """Whether a chunk may go on where the last one ended."""
        last = self._laid[-1]
        return sound.follows(last.sound, last.seconds)

    def note_gap(self, sound: Sound) -> None:
        """`sound` begins behind the last chunk: what is missing in between, the last one lacks."""
        last = self._laid[-1]
        gap = sound.gap(last.sound, last.seconds)
        if gap is not None and gap >= MISSING and last.whole is not None:
            last.whole = replace(last.whole, partial=True)

    def lay(self, chunk: int, sound: Sound, head: Samples) -> None:
        """Begins a chunk; `head` is at least as much of it as the overlaps reach, or all of it."""
        self._join(_Laid(chunk, sound, 0.0, 0.0), self._shaped(head))

    def lead(self, neighbour: Neighbour) -> None:
        """Begins with the end of a published neighbour."""
        audio = self._shaped(neighbour.audio)
        begin = len(audio) - neighbour.samples - neighbour.sound.lead * SAMPLE_RATE
        laid = _Laid(None, neighbour.sound, begin, -math.inf, heard=neighbour)
        laid.end = float(len(audio))
        self._laid.append(laid)
        self.feed(audio)

    def feed(self, audio: Samples) -> None:
        """More of the chunk that was laid last; its end is held back until what follows is known."""
        self._tail = np.concatenate([self._tail, self._shaped(audio)])
        if len(self._tail) > self._overlaps.reach:
            self._push(self._tail[: -self._overlaps.reach])
            self._tail = self._tail[-self._overlaps.reach :]

    def end(self, whole: Whole) -> None:
        """All of the last chunk was fed."""
        self._laid[-1].whole = whole
        self._laid[-1].end = float(self._pushed + len(self._tail))

    def give_up(self) -> None:
        """The last chunk broke: its sound stays, as something that was heard and is nobody's."""
        self._laid[-1].chunk = None
        self.end(Whole(0.0, partial=True, repaired=False))

    def close(self, neighbour: Neighbour | None = None) -> None:
        """The stretch is at its end; `neighbour` is a published chunk that follows."""
        if neighbour is not None and self.fits(neighbour.sound):
            self._join(_Laid(None, neighbour.sound, 0.0, 0.0, heard=neighbour), self._shaped(neighbour.audio))
            lead = neighbour.sound.lead * SAMPLE_RATE
            self._laid[-1].end = self._laid[-1].begin + lead + neighbour.samples
        self._laid[-1].last = math.inf
        self._push(self._tail)
        self._tail = self._tail[:0]
        for number, cutter in enumerate(self._cutters):
            self._hand_out(cutter.finish(), number)
        self._laid[-1].last = float(self._pushed)
        self._settle()

    def _join(self, laid: _Laid, head: Samples) -> None:
        """Lays the next chunk: up to the middle of what both have the last one is heard, then this one."""
        both = self._overlap(laid.sound, head) if self._laid else 0
        kept = both - both // 2
        self._push(self._tail[: len(self._tail) - both // 2])
        laid.begin = self._pushed - kept - laid.sound.lead * SAMPLE_RATE
        laid.first, laid.overlap = float(self._pushed), both / SAMPLE_RATE
        if self._laid:
            self._laid[-1].last = laid.first
        self._laid.append(laid)
        self._tail = head[:0]
        self.feed(head[kept:])
        self._settle()

    def _overlap(self, sound: Sound, head: Samples) -> int:
        """Samples that the last chunk ends and the next one begins with."""
        known = sound.gap(self._laid[-1].sound, self._laid[-1].seconds)
        seconds = max(0.0, -known) if known is not None else self._overlaps.between(
            mono(self._tail), mono(head)
        )  # fmt: skip
        return min(round(seconds * SAMPLE_RATE), len(self._tail), len(head))

    def _push(self, audio: Samples) -> None:
        for number, cutter in enumerate(self._cutters):
            channel = audio if audio.ndim == 1 else np.ascontiguousarray(audio[:, number])
            self._hand_out(cutter.push(channel), number)
        self._pushed += len(audio)
        self._settle()

    def _hand_out(self, cuts: Iterator[Cut], number: int) -> None:
        channel = number + 1 if self._channels > 1 else None
        for cut in cuts:
            touched = [laid for laid in self._laid if laid.first < cut.end and laid.last > cut.start]
            if any(laid.chunk is not None for laid in touched):
                chunks = tuple(laid.chunk for laid in touched)
                places = tuple(laid.place(channel) for laid in touched)
                self._emit(Ready(cut, chunks, places, channel, self._alone, self._apart))

    def _settle(self) -> None:
        """Tells which chunks get no window any more."""
        done = min(cutter.done for cutter in self._cutters)
        while self._laid and self._laid[0].last <= done and (self._laid[0].whole or self._laid[0].heard):
            laid = self._laid[0]
            if len(self._laid) == 1 and laid.last == math.inf:
                return
            if laid.chunk is not None and laid.whole is not None:
                self._emit(laid.ended(laid.chunk, laid.whole))
            if len(self._laid) == 1:
                return
            self._laid.pop(0)

    def _shaped(self, audio: Samples) -> Samples:
        return mono(audio) if self._channels == 1 else audio


def mono(audio: Samples) -> Samples:
    """Shape (samples,) of whatever was decoded."""
    return audio if audio.ndim == 1 else audio.mean(axis=1, dtype=np.float32)


def channels(head: Samples) -> int:
    """How many channels of what was decoded differ from each other: 1, or all of them."""
    alike = head.ndim == 1 or (float(np.abs(head).max(initial=0.0)) > SILENT and not differ(head))
    return 1 if alike else head.shape[1]


def differ(head: Samples) -> bool:
    """True if the channels are not one that was written several times. `head`: shape (samples, channels)."""
    loudest = float(np.abs(head).max(initial=0.0))
    return loudest > SILENT and float(np.abs(head[:, 1:] - head[:, :1]).max(initial=0.0)) >= ALIKE * loudest
