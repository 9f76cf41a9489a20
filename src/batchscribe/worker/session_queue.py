"""What turns the chunks of a session, as they are decoded, into stretches: one thread for each session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from batchscribe.audio.audio_decoder import Samples
from batchscribe.audio.bounded_queue import Channel
from batchscribe.audio.overlaps import Overlaps
from batchscribe.audio.windows import SpeechFinder
from batchscribe.core.run.manifest import FailureKind
from batchscribe.core.scan.chunks import audio_name
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import BatchscribeError, InterruptedRunError
from batchscribe.worker.context_audio import Neighbours
from batchscribe.worker.feeding import Line, Turn, Way
from batchscribe.worker.progress import Board
from batchscribe.worker.sounds import Absent, Broken, Pipe, Sound, Whole
from batchscribe.worker.timeline import Ended, Ready, Stretch, differ

UNDECIDED = 60 * SAMPLE_RATE
"""Samples after which two channels that are alike are taken for one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A chunk that could not be decoded: windows that hold words of it are in vain for it."""

    chunk: int
    message: str
    kind: FailureKind


Prepared = Ready | Ended | Failed


class Weaver:
    """Takes session after session from the manifest; several threads run it, each one with its own."""

    def __init__(
        self,
        way: Way,
        lines: Turn,
        *,
        neighbours: Callable[[], Neighbours],
        find_speech: SpeechFinder,
        board: Board,
        out: Channel[Prepared],
    ) -> None:
        self._way = way
        self._lines = lines
        self._neighbours = neighbours
        self._find_speech = find_speech
        self._board = board
        self._out = out

    def run(self) -> None:
        neighbours = self._neighbours()
        try:
            while not self._way.ending.due() and (line := self._lines.next()) is not None:
                _Session(
                    self._way,
                    line,
                    neighbours=neighbours,
                    find_speech=self._find_speech,
                    board=self._board,
                    emit=self._emit,
                ).run()
        except InterruptedRunError:
            return
        except BatchscribeError as error:
            # No voice detector on this machine: no chunk can be blamed for that.
            self._way.ending.fail(error)
        finally:
            neighbours.close()

    def _emit(self, item: Prepared) -> None:
        if not self._out.put(item):
            raise InterruptedRunError("the worker is to end")


class _Session:
    """One session of the manifest."""

    def __init__(
        self,
        way: Way,
        line: Line,
        *,
        neighbours: Neighbours,
        find_speech: SpeechFinder,
        board: Board,
        emit: Callable[[Prepared], None],
    ) -> None:
        self._way = way
        self._line = line
        self._neighbours = neighbours
        self._find_speech = find_speech
        self._board = board
        self._emit = emit
        self._split = way.manifest.hearing.split_channels
        self._overlaps = Overlaps(way.manifest.hearing.overlap_ms)
        self._stretch: Stretch | None = None
        self._last: int | None = None
        """The place of the chunk that the stretch ends with."""

    def run(self) -> None:
        for place in self._line.places:
            self._chunk(place)
        self._close(missing=True)

    def _chunk(self, place: int) -> None:
        pipe = self._way.pipes.of(place)
        try:
            with self._board.waiting_for("decode"):
                sound = pipe.sound()
            if sound is not None:
                self._hear(place, sound, pipe)
            elif isinstance(pipe.end, Whole):
                self._emit(Ended(chunk=place, whole=pipe.end))
                self._last = place
            else:
                self._close(missing=isinstance(pipe.end, Absent))
            if isinstance(pipe.end, Broken):
                self._emit(Failed(place, pipe.end.message, pipe.end.kind))
        finally:
            self._way.heard(place)

    def _hear(self, place: int, sound: Sound, pipe: Pipe) -> None:
        pieces = iter(pipe)
        head = self._head(pieces)
        stretch = self._place(place, sound, head)
        for piece in pieces:
            stretch.feed(piece)
        if isinstance(pipe.end, Whole):
            stretch.end(pipe.end)
            self._last = place
        else:
            stretch.give_up()
            self._close(missing=False)

    def _head(self, pieces: Iterator[Samples]) -> Samples:
        """As much as overlaps may reach; of two channels that begin alike more, for they may part later."""
        head: list[Samples] = []
        while self._wants_more(head) and (piece := next(pieces, None)) is not None:
            head.append(piece)
        return np.concatenate(head)

    def _wants_more(self, head: list[Samples]) -> bool:
        length = sum(map(len, head))
        if length < self._overlaps.reach:
            return True
        undecided = self._stretch is None and head[0].ndim > 1 and not any(map(differ, head))
        return undecided and length < UNDECIDED

    def _speech(self, audio: Samples) -> Sequence[tuple[int, int]]:
        with self._board.waiting_for("cut"):
            return self._find_speech(audio)

    def _place(self, place: int, sound: Sound, head: Samples) -> Stretch:
        """The stretch that the chunk goes on with, or that begins with it; the chunk is laid there."""
        follows = self._follows(place)
        if self._stretch is not None and not (follows and self._stretch.fits(sound)):
            if follows:
                self._stretch.note_gap(sound)
            self._close(missing=not follows)
        if self._stretch is None:
            self._stretch = self._begun(place, sound, head, after_gap=follows)
        self._stretch.lay(place, sound, head)
        return self._stretch

    def _begun(self, place: int, sound: Sound, head: Samples, *, after_gap: bool) -> Stretch:
        stretch = Stretch(
            head,
            find_speech=self._speech,
            overlaps=self._overlaps,
            emit=self._emit,
            alone=self._line.alone,
            apart=sound.apart,
        )
        if not (after_gap or self._line.alone):
            before = self._neighbours.find(self._way.chunk(place), -1, split=self._split)
            if before is not None and sound.follows(before.sound, before.samples / SAMPLE_RATE):
                stretch.lead(before)
        return stretch

    def _follows(self, place: int) -> bool:
        """Whether it is the chunk right behind the one before it in the manifest."""
        return (
            self._last is not None and _number(self._way, place) == (_number(self._way, self._last) or 0) + 1
        )

    def _close(self, *, missing: bool) -> None:
        """Ends the stretch; `missing`: the chunk that comes next is not in the manifest."""
        stretch, self._stretch = self._stretch, None
        if stretch is None:
            return
        after = None
        if missing and not self._line.alone and self._last is not None:
            after = self._neighbours.find(self._way.chunk(self._last), 1, split=self._split)
        stretch.close(after)


def _number(way: Way, place: int) -> int | None:
    name = audio_name(way.chunk(place).key)
    return name.number if name else None
