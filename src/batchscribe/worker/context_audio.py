"""Neighbours that are not in the manifest: heard along at the edge of a stretch, and not written by us.

A word at a cut is understood from both sides. What a neighbour that was transcribed before has said already
is known from its transcript, so that nothing is said twice; one that is transcribed later will know it
from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import structlog

from batchscribe.audio.audio_decoder import AudioDecoder, Samples
from batchscribe.audio.decoding.recordings import Recordings, named
from batchscribe.audio.overlaps import reach
from batchscribe.core.objects import TRANSCRIPT_BYTES
from batchscribe.core.run.manifest import ManifestChunk
from batchscribe.core.scan.chunks import audio_name, transcript_keys
from batchscribe.core.text import transcripts
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import Segment
from batchscribe.errors import BatchscribeError, InterruptedRunError, ObjectNotFoundError
from batchscribe.protocols import Store
from batchscribe.worker.sounds import Sound

LOG = structlog.get_logger()

HEARD = 2 * SAMPLE_RATE
"""Samples of a neighbour that are heard along besides an overlap: a word, and what leads to it."""
FAR = 60 * SAMPLE_RATE
"""The rest of a longer one is not decoded: that costs the decoder's process a new start."""
MAX_BYTES = 64 * 1024 * 1024
"""A larger neighbour is not decoded for one word."""
MAX_SECONDS = 2 * 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """A chunk beside a stretch. `audio` is the part of it that touches the stretch."""

    audio: Samples
    samples: int
    """Of all of it, or of what was decoded of one that follows."""
    sound: Sound
    said: tuple[Segment, ...]
    """What was published of it, on its own clock; empty where nothing was."""

    def edges(self, channel: int | None) -> tuple[float | None, float | None]:
        """When its first published word of a channel begins and the last one ends, what lies beyond a cut
        included; None where there is none. Where channels were not told apart, all of them count.
        """
        said = [part for part in self.said if channel in {None, part.channel or channel}]
        words = [word for segment in said for word in segment.words]
        begins = [word.true_start for word in words] + [part.start for part in said if not part.words]
        ends = [word.true_end for word in words] + [part.end for part in said if not part.words]
        return (min(begins), max(ends)) if begins else (None, None)


class Neighbours:
    """Looks for them in the store. For one thread: its decoder is opened when it is first needed."""

    def __init__(
        self,
        source: Store,
        output: Store,
        recordings: Recordings,
        new_decoder: Callable[[], AudioDecoder],
        until: Callable[[], bool],
        *,
        overlap_ms: int | None = None,
        apart: Collection[str] = (),
    ) -> None:
        """`apart` are the keys of chunks that are heard alone, or not at all: they failed before."""
        self._source = source
        self._output = output
        self._recordings = recordings
        self._new_decoder = new_decoder
        self._decoder: AudioDecoder | None = None
        self._until = until
        self._apart = frozenset(apart)
        self._length = HEARD + reach(overlap_ms)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def find(self, chunk: ManifestChunk, step: int, *, split: bool) -> Neighbour | None:
        """The neighbour before (`step` -1) or behind (1) a chunk; None where there is none.

        It only helps: where it cannot be had or understood, there is none. Raises InterruptedRunError.
        """
        name = audio_name(chunk.key)
        if name is None or name.number is None or name.number + step < 0:
            return None
        try:
            for key in named(chunk.key, name.number + step):
                if key not in self._apart and self._is_there(key):
                    return self._heard(key, step, split=split)
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            LOG.warning("neighbour.not_heard", key=chunk.key, step=step, reason=str(error))
        return None

    def _is_there(self, key: str) -> bool:
        info = next(iter(self._source.list(key)), None)
        return info is not None and info.key == key and 0 < info.size <= MAX_BYTES

    def _said(self, key: str) -> tuple[Segment, ...]:
        name = audio_name(key)
        assert name is not None
        for store in {store.url: store for store in (self._output, self._source)}.values():
            for known in transcript_keys(name):
                with suppress(ObjectNotFoundError):
                    if data := store.get(known, limit=TRANSCRIPT_BYTES).data:
                        return transcripts.decode(data).segments
        return ()

    def _heard(self, key: str, step: int, *, split: bool) -> Neighbour | None:
        said = self._said(key)
        data = self._source.get(key, limit=MAX_BYTES).data
        self._decoder = self._decoder or self._new_decoder()
        mended = self._recordings.repaired(key, data)
        if mended.empty:
            return None
        decoding = self._decoder.decode(
            mended.data, max_seconds=MAX_SECONDS, until=self._until, split=split, skip=mended.preroll
        )
        kept: list[Samples] = []
        total = 0
        for piece in decoding:
            total += len(piece)
            kept.append(piece)
            if step > 0 and total >= FAR:
                break
            # Of the one before only the end is wanted, however long it is.
            while step < 0 and sum(map(len, kept[1:])) >= self._length:
                kept.pop(0)
        if not kept:
            return None
        audio = np.concatenate(kept)
        sound = Sound.of(decoding.beginning, mended.delay)
        return Neighbour(audio[-self._length :] if step < 0 else audio[: self._length], total, sound, said)
