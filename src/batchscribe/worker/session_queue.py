"""Assembles the timelines of sessions, in one thread for each session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchscribe.audio.audio_decoder import Samples
from batchscribe.audio.bounded_queue import BoundedQueue
from batchscribe.audio.overlaps import Overlaps
from batchscribe.audio.windows import SpeechFinder
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import BatchscribeError, InterruptedRunError
from batchscribe.protocols import SpeakerModel
from batchscribe.worker.context_audio import Neighbour, Neighbours
from batchscribe.worker.feeding import PipelineState, SessionQueue, WorkQueue
from batchscribe.worker.progress import ProgressTracker
from batchscribe.worker.sounds import Absent, Broken, Pipe, Sound, Whole
from batchscribe.worker.timeline import AudioTimeline, Ended, PendingWindow, channels_differ

UNDECIDED = 60 * SAMPLE_RATE
"""Samples after which two identical channels count as one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk that could not be decoded; its results are dropped."""

    chunk: int
    end: Broken


Prepared = PendingWindow | Ended | Failed


@dataclass(frozen=True, slots=True)
class _CountedSpeakers:
    """A SpeakerModel; an engine that starves meanwhile starves by `cut`."""

    model: SpeakerModel
    tracker: ProgressTracker

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def alike(self) -> float:
        return self.model.alike

    def embed(self, audio: Samples) -> Sequence[float] | None:
        with self.tracker.note_waiting("cut"):
            return self.model.embed(audio)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineAssembler:
    """Assembles timelines, session by session; several threads run it at once."""

    state: PipelineState
    sessions: WorkQueue[SessionQueue]
    new_neighbours: Callable[[], Neighbours]
    find_speech: SpeechFinder
    out: BoundedQueue[Prepared]
    speakers: SpeakerModel | None = None

    def run(self) -> None:
        neighbours = self.new_neighbours()
        try:
            while not self.state.ending.is_due() and (session := self.sessions.take_next()) is not None:
                _Session(self, session, neighbours).run()
        except InterruptedRunError:
            return
        except BatchscribeError as error:
            # The voice detector is missing on this machine: a failure of the worker, not of a chunk.
            self.state.ending.fail(error)
        finally:
            neighbours.close()

    def emit(self, item: Prepared) -> None:
        """Puts an item out.

        The end of a chunk passes after a stop, too: all its results may be there.
        """
        if not self.out.put(item, even_closed=not isinstance(item, PendingWindow)):
            raise InterruptedRunError("the worker is ending")
        if isinstance(item, PendingWindow):
            self.state.tracker.record_ready()

    def detect_speech(self, audio: Samples) -> Sequence[tuple[int, int]]:
        with self.state.tracker.note_waiting("cut"):
            return self.find_speech(audio)


class _Session:
    def __init__(self, assembler: TimelineAssembler, queue: SessionQueue, neighbours: Neighbours) -> None:
        self._assembler = assembler
        self._state = assembler.state
        self._manifest = assembler.state.manifest
        self._queue = queue
        self._neighbours = neighbours
        self._overlaps = Overlaps(self._manifest.audio_options.overlap_ms)
        self._timeline: AudioTimeline | None = None
        self._last: int | None = None
        """Manifest index of the last chunk on the timeline."""

    def run(self) -> None:
        for place in self._queue.places:
            self._process_chunk(place)
        self._close_timeline(missing=True)

    def _process_chunk(self, place: int) -> None:
        pipe = self._state.pipes.get(place)
        try:
            with self._state.tracker.note_waiting("decode"):
                sound = pipe.wait_for_sound()
            if sound is not None:
                self._append_chunk(place, sound, pipe)
            elif isinstance(pipe.end, Whole):
                self._assembler.emit(Ended(chunk=place, whole=pipe.end))
                self._last = place
            else:
                self._close_timeline(missing=isinstance(pipe.end, Absent))
            if isinstance(pipe.end, Broken):
                self._assembler.emit(Failed(place, pipe.end))
        finally:
            self._state.release_audio(place)

    def _append_chunk(self, place: int, sound: Sound, pipe: Pipe) -> None:
        pieces = iter(pipe)
        head = self._read_head(pieces)
        timeline = self._extend_timeline(place, sound, head)
        for piece in pieces:
            timeline.append_audio(piece)
        if isinstance(pipe.end, Whole):
            timeline.end_chunk(pipe.end)
            self._last = place
        else:
            timeline.give_up_chunk()
            self._close_timeline(missing=False)

    def _read_head(self, pieces: Iterator[Samples]) -> Samples:
        """Reads the overlaps' reach of a chunk; more while channels are alike."""
        head: list[Samples] = []
        while self._needs_more(head) and (piece := next(pieces, None)) is not None:
            head.append(piece)
        return np.concatenate(head)

    def _needs_more(self, head: list[Samples]) -> bool:
        length = sum(map(len, head))
        if length < self._overlaps.reach:
            return True
        undecided = self._timeline is None and head[0].ndim > 1 and not any(map(channels_differ, head))
        return undecided and length < UNDECIDED

    def _extend_timeline(self, place: int, sound: Sound, head: Samples) -> AudioTimeline:
        """Appends a chunk to the present or a new timeline; returns that."""
        follows = (
            self._last is not None and self._get_number(place) == (self._get_number(self._last) or 0) + 1
        )
        if self._timeline is not None and not (follows and self._timeline.fits(sound)):
            if follows:
                self._timeline.note_gap(sound)
            self._close_timeline(missing=not follows)
        if self._timeline is None:
            self._timeline = self._new_timeline(place, sound, head, after_gap=follows)
        self._timeline.begin_chunk(place, sound, head)
        return self._timeline

    def _new_timeline(self, place: int, sound: Sound, head: Samples, *, after_gap: bool) -> AudioTimeline:
        model = self._assembler.speakers
        timeline = AudioTimeline(
            head,
            find_speech=self._assembler.detect_speech,
            overlaps=self._overlaps,
            emit=self._assembler.emit,
            alone=self._queue.alone,
            apart=sound.apart,
            speakers=model and _CountedSpeakers(model, self._state.tracker),
        )
        if not (after_gap or self._queue.alone):
            before = self._find_neighbour(place, -1)
            if before is not None and sound.follows(before.sound, before.samples / SAMPLE_RATE):
                timeline.begin_with_neighbour(before)
        return timeline

    def _close_timeline(self, *, missing: bool) -> None:
        """Ends the timeline; `missing`: the next chunk is not in the manifest."""
        timeline, self._timeline = self._timeline, None
        if timeline is None:
            return
        after = None
        if missing and not self._queue.alone and self._last is not None:
            after = self._find_neighbour(self._last, 1)
        timeline.close(after)

    def _find_neighbour(self, place: int, step: int) -> Neighbour | None:
        split = self._manifest.audio_options.split_channels
        return self._neighbours.find(self._manifest.chunks[place], step, split=split)

    def _get_number(self, place: int) -> int | None:
        name = audio_name(self._manifest.chunks[place].key)
        return name.number if name else None
