"""Context audio: neighbours outside the manifest, transcribed but never written.

They share the edge of a timeline. A word at a cut needs context from both sides. The transcript of a
neighbour that was transcribed before shows which words are published already, so that no word appears twice;
a neighbour that is transcribed later uses our transcript in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import structlog

from batchscribe.audio.audio_decoder import AudioDecoder, Samples
from batchscribe.audio.decoding.recordings import Recordings, list_chunk_keys
from batchscribe.audio.overlaps import compute_reach
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

CONTEXT_SAMPLES = 2 * SAMPLE_RATE
"""Samples of context audio beyond an overlap: a word and its lead-in."""
FAR = 60 * SAMPLE_RATE
"""Samples after which decoding of a following neighbour stops, at the cost of a new decoder process."""
MAX_BYTES = 64 * 1024 * 1024
"""Larger neighbours are not decoded for context."""
MAX_SECONDS = 2 * 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """A chunk next to a timeline; `audio` is the adjacent part."""

    audio: Samples
    samples: int
    """Length of the whole chunk, or of the decoded part if it follows the timeline."""
    sound: Sound
    segments: tuple[Segment, ...]
    """Its published segments, on its own clock; empty if it has no transcript."""

    def find_edges(self, channel: int | None) -> tuple[float | None, float | None]:
        """Begin of a channel's first and end of its final published word.

        Includes parts beyond a cut; None without words. Segments without a channel count for every channel.
        """
        published = [part for part in self.segments if channel in {None, part.channel or channel}]
        words = [word for segment in published for word in segment.words]
        begins = [word.true_start for word in words] + [part.start for part in published if not part.words]
        ends = [word.true_end for word in words] + [part.end for part in published if not part.words]
        return (min(begins), max(ends)) if begins else (None, None)


class Neighbours:
    """Finds neighbours in the store; opens its decoder on first use."""

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
        """`apart`: keys of chunks that failed before; they are never context."""
        self._source = source
        self._output = output
        self._recordings = recordings
        self._new_decoder = new_decoder
        self._decoder: AudioDecoder | None = None
        self._until = until
        self._apart = frozenset(apart)
        self._length = CONTEXT_SAMPLES + compute_reach(overlap_ms)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def find(self, chunk: ManifestChunk, step: int, *, split: bool) -> Neighbour | None:
        """Returns the neighbour before (`step` -1) or after (1) a chunk.

        Context is optional: errors are logged, and the result is None. Raises InterruptedRunError.
        """
        name = audio_name(chunk.key)
        if name is None or name.number is None or name.number + step < 0:
            return None
        try:
            for key in list_chunk_keys(chunk.key, name.number + step):
                if key not in self._apart and self._is_stored(key):
                    return self._decode_neighbour(key, step, split=split)
        except InterruptedRunError:
            raise
        except BatchscribeError as error:
            LOG.warning("neighbour.not_transcribed", key=chunk.key, step=step, reason=str(error))
        return None

    def _is_stored(self, key: str) -> bool:
        info = next(iter(self._source.list(key)), None)
        return info is not None and info.key == key and 0 < info.size <= MAX_BYTES

    def _read_segments(self, key: str) -> tuple[Segment, ...]:
        name = audio_name(key)
        assert name is not None
        for store in {store.url: store for store in (self._output, self._source)}.values():
            for known in transcript_keys(name):
                with suppress(ObjectNotFoundError):
                    if data := store.get(known, limit=TRANSCRIPT_BYTES).data:
                        return transcripts.decode(data).segments
        return ()

    def _decode_neighbour(self, key: str, step: int, *, split: bool) -> Neighbour | None:
        published = self._read_segments(key)
        data = self._source.get(key, limit=MAX_BYTES).data
        self._decoder = self._decoder or self._new_decoder()
        repaired = self._recordings.repair(key, data)
        if repaired.empty:
            return None
        decoding = self._decoder.decode(
            repaired.data, max_seconds=MAX_SECONDS, until=self._until, split=split, skip=repaired.preroll
        )
        kept: list[Samples] = []
        total = 0
        for piece in decoding:
            total += len(piece)
            kept.append(piece)
            if step > 0 and total >= FAR:
                break
            # Of the chunk before, only the end is kept.
            while step < 0 and sum(map(len, kept[1:])) >= self._length:
                kept.pop(0)
        if not kept:
            return None
        audio = np.concatenate(kept)
        sound = Sound.from_beginning(decoding.beginning, repaired.delay)
        return Neighbour(
            audio[-self._length :] if step < 0 else audio[: self._length], total, sound, published
        )
