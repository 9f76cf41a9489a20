"""Assembles consecutive chunks into a timeline, and cuts windows from it.

A timeline (class `AudioTimeline`) has its own clock: samples from its beginning. It ends at a missing or
broken chunk, at missing audio between two chunks, and at a change of format. If neighbours overlap, each half
of the overlap comes from the chunk whose own edge is further away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from batchscribe.audio.audio_decoder import Samples
from batchscribe.audio.overlaps import Overlaps
from batchscribe.audio.windows import Cut, Cutter, SpeechFinder
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.voice_groups import VoiceGroup, add_piece, be_strict
from batchscribe.core.text.voices import MOST_VOICES
from batchscribe.core.text.word_assignment import ChunkPlace
from batchscribe.protocols import SpeakerModel
from batchscribe.worker.context_audio import Neighbour
from batchscribe.worker.sounds import MISSING, Sound, Whole
from batchscribe.worker.voices import find_voices

SILENT = 1e-3
ALIKE = 0.01
"""Channels that differ by less, relative to the loudest sample, are one channel written twice."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingWindow:
    """A window that waits for the engine, and the chunks it covers.

    `chunks` are indexes in the manifest, None for audio without a pending chunk; `places` are their positions
    on the timeline. `channel` counts from 1 if channels are transcribed separately, else None.
    """

    cut: Cut
    chunks: tuple[int | None, ...]
    places: tuple[ChunkPlace, ...]
    channel: int | None
    alone: bool
    apart: bool = False
    """Its channel has its own language."""
    wordless: tuple[tuple[float, float], ...] = ()
    """Of a re-decode: speech in which the first decoding found no word, in seconds of the timeline."""

    @property
    def touched(self) -> tuple[int, ...]:
        return tuple(chunk for chunk in self.chunks if chunk is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a chunk: all its windows came before this."""

    chunk: int
    whole: Whole
    overlap: float = 0.0
    position: float | None = None
    voices: Sequence[VoiceGroup] | None = None
    """Its voices, whose members are spans in seconds of the chunk; None if they are not wanted."""


@dataclass(slots=True)
class _Laid:
    """A chunk on the timeline, in samples; infinite until it ends."""

    chunk: int | None
    sound: Sound
    begin: float
    first: float
    overlap: float = 0.0
    end: float = math.inf
    last: float = math.inf
    whole: Whole | None = None
    context: Neighbour | None = None
    """Context audio: a neighbour that is not in the manifest."""
    voices: list[VoiceGroup] | None = None

    @property
    def seconds(self) -> float:
        return (
            self.context.samples / SAMPLE_RATE if self.context else self.whole.seconds if self.whole else 0.0
        )

    def make_end(self, chunk: int, whole: Whole) -> Ended:
        """Its end, on the clock of its file."""
        at, lead = self.sound.position, self.sound.lead
        return Ended(
            chunk=chunk,
            whole=replace(whole, seconds=whole.seconds + lead),
            overlap=self.overlap,
            position=None if at is None else max(0.0, at - lead),
            voices=self.voices,
        )

    def locate(self, channel: int | None) -> ChunkPlace:
        from_, until = self.context.find_edges(channel) if self.context else (None, None)
        begin = self.begin / SAMPLE_RATE
        return ChunkPlace(
            begin=begin,
            end=self.end / SAMPLE_RATE,
            first=self.first / SAMPLE_RATE,
            last=self.last / SAMPLE_RATE,
            published=self.chunk is None,
            words_from=None if from_ is None else begin + from_,
            words_until=None if until is None else begin + until,
        )


class AudioTimeline:
    """Timeline of chunks; `emit` gets windows and ends. Not thread-safe."""

    def __init__(
        self,
        head: Samples,
        *,
        find_speech: SpeechFinder,
        overlaps: Overlaps,
        emit: Callable[[PendingWindow | Ended], None],
        alone: bool = False,
        apart: bool = False,
        speakers: SpeakerModel | None = None,
    ) -> None:
        """`apart`: the channels are different languages, even if they begin alike.

        `speakers`: distinguishes the voices of each chunk, unless its channels are transcribed separately.
        """
        self._channels = head.shape[1] if apart else count_channels(head)
        self._apart = apart
        self._speakers = speakers if self._channels == 1 else None
        self._cutters = [Cutter(find_speech) for _ in range(self._channels)]
        self._overlaps = overlaps
        self._emit = emit
        self._alone = alone
        self._laid: list[_Laid] = []
        self._tail = self._match_channels(head[:0])
        self._pushed = 0

    def fits(self, sound: Sound) -> bool:
        """True if a chunk may continue the timeline."""
        last = self._laid[-1]
        return sound.follows(last.sound, last.seconds)

    def note_gap(self, sound: Sound) -> None:
        """Marks the last chunk as partial if audio before `sound` is missing."""
        last = self._laid[-1]
        gap = sound.measure_gap(last.sound, last.seconds)
        if gap is not None and gap >= MISSING and last.whole is not None:
            last.whole = replace(last.whole, partial=True)

    def begin_chunk(self, chunk: int, sound: Sound, head: Samples) -> None:
        """Begins a chunk; `head` has the overlaps' reach or all its audio."""
        voices = None if self._speakers is None else list[VoiceGroup]()
        self._append_chunk(_Laid(chunk, sound, 0.0, 0.0, voices=voices), self._match_channels(head))

    def begin_with_neighbour(self, neighbour: Neighbour) -> None:
        """Begins the timeline with the end of a published neighbour."""
        audio = self._match_channels(neighbour.audio)
        begin = len(audio) - neighbour.samples - neighbour.sound.lead * SAMPLE_RATE
        laid = _Laid(None, neighbour.sound, begin, -math.inf, context=neighbour)
        laid.end = float(len(audio))
        self._laid.append(laid)
        self.append_audio(audio)

    def append_audio(self, audio: Samples) -> None:
        """Appends audio to the last chunk; holds back the overlaps' reach."""
        self._tail = np.concatenate([self._tail, self._match_channels(audio)])
        if len(self._tail) > self._overlaps.reach:
            self._push_audio(self._tail[: -self._overlaps.reach])
            self._tail = self._tail[-self._overlaps.reach :]

    def end_chunk(self, whole: Whole) -> None:
        """Records the end of the last chunk: all its audio was fed."""
        self._laid[-1].whole = whole
        self._laid[-1].end = float(self._pushed + len(self._tail))

    def give_up_chunk(self) -> None:
        """Drops the last chunk, which broke; its audio stays as context."""
        self._laid[-1].chunk = None
        self.end_chunk(Whole(0.0, partial=True, repaired=False))

    def close(self, neighbour: Neighbour | None = None) -> None:
        """Ends the timeline; `neighbour` is a published chunk that follows."""
        if neighbour is not None and self.fits(neighbour.sound):
            self._append_chunk(
                _Laid(None, neighbour.sound, 0.0, 0.0, context=neighbour),
                self._match_channels(neighbour.audio),
            )
            lead = neighbour.sound.lead * SAMPLE_RATE
            self._laid[-1].end = self._laid[-1].begin + lead + neighbour.samples
        self._laid[-1].last = math.inf
        self._push_audio(self._tail)
        self._tail = self._tail[:0]
        for number, cutter in enumerate(self._cutters):
            self._emit_windows(cutter.finish(), number)
        self._laid[-1].last = float(self._pushed)
        self._emit_ended_chunks()

    def _append_chunk(self, laid: _Laid, head: Samples) -> None:
        """Appends a chunk, with its border in the middle of the overlap."""
        both = self._find_overlap(laid.sound, head) if self._laid else 0
        kept = both - both // 2
        self._push_audio(self._tail[: len(self._tail) - both // 2])
        laid.begin = self._pushed - kept - laid.sound.lead * SAMPLE_RATE
        laid.first, laid.overlap = float(self._pushed), both / SAMPLE_RATE
        if self._laid:
            self._laid[-1].last = laid.first
        self._laid.append(laid)
        self._tail = head[:0]
        self.append_audio(head[kept:])
        self._emit_ended_chunks()

    def _find_overlap(self, sound: Sound, head: Samples) -> int:
        """Overlap of the last chunk with the next one, in samples."""
        known = sound.measure_gap(self._laid[-1].sound, self._laid[-1].seconds)
        seconds = max(0.0, -known) if known is not None else self._overlaps.find_overlap(
            mix_to_mono(self._tail), mix_to_mono(head)
        )  # fmt: skip
        return min(round(seconds * SAMPLE_RATE), len(self._tail), len(head))

    def _push_audio(self, audio: Samples) -> None:
        for number, cutter in enumerate(self._cutters):
            channel = audio if audio.ndim == 1 else np.ascontiguousarray(audio[:, number])
            self._emit_windows(cutter.push(channel), number)
        self._pushed += len(audio)
        self._emit_ended_chunks()

    def _emit_windows(self, cuts: Iterator[Cut], number: int) -> None:
        channel = number + 1 if self._channels > 1 else None
        for cut in cuts:
            touched = [laid for laid in self._laid if laid.first < cut.end and laid.last > cut.start]
            if any(laid.chunk is not None for laid in touched):
                chunks = tuple(laid.chunk for laid in touched)
                places = tuple(laid.locate(channel) for laid in touched)
                self._emit(PendingWindow(cut, chunks, places, channel, self._alone, self._apart))
                self._add_voices(cut, touched)

    def _add_voices(self, cut: Cut, touched: Sequence[_Laid]) -> None:
        """Adds the voices of a window to its chunks.

        Each piece of speech belongs to the chunk with its middle.
        """
        if self._speakers is None:
            return
        for (begin, end), group in find_voices(cut, self._speakers):
            middle = (begin + end) / 2
            for laid in touched:
                if laid.voices is not None and laid.first <= middle < laid.last:
                    span = tuple(max(0.0, (at - laid.begin) / SAMPLE_RATE) for at in (begin, end))
                    piece = replace(group, members=(span,))
                    add_piece(laid.voices, piece, be_strict(self._speakers.alike), MOST_VOICES)

    def _emit_ended_chunks(self) -> None:
        """Emits the end of each chunk that gets no more windows."""
        done = min(cutter.done for cutter in self._cutters)
        while self._laid and self._laid[0].last <= done and (self._laid[0].whole or self._laid[0].context):
            laid = self._laid[0]
            if len(self._laid) == 1 and laid.last == math.inf:
                return
            if laid.chunk is not None and laid.whole is not None:
                self._emit(laid.make_end(laid.chunk, laid.whole))
            if len(self._laid) == 1:
                return
            self._laid.pop(0)

    def _match_channels(self, audio: Samples) -> Samples:
        return mix_to_mono(audio) if self._channels == 1 else audio


def mix_to_mono(audio: Samples) -> Samples:
    """Mixes decoded audio down to shape (samples,)."""
    return audio if audio.ndim == 1 else audio.mean(axis=1, dtype=np.float32)


def count_channels(head: Samples) -> int:
    """Number of channels to transcribe: 1 unless they differ or are silent."""
    alike = head.ndim == 1 or (float(np.abs(head).max(initial=0.0)) > SILENT and not channels_differ(head))
    return 1 if alike else head.shape[1]


def channels_differ(head: Samples) -> bool:
    """True if the channels differ (real stereo). `head`: shape (samples, channels)."""
    loudest = float(np.abs(head).max(initial=0.0))
    return loudest > SILENT and float(np.abs(head[:, 1:] - head[:, :1]).max(initial=0.0)) >= ALIKE * loudest
