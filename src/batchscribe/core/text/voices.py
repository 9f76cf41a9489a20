"""The voices of one chunk: embeddings and times, beside its transcript.

Embeddings are voice data: only these objects have them, which lie with the session and are deleted with it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from batchscribe.core.bounds import Seconds
from batchscribe.core.text.transcripts import AudioRef
from batchscribe.core.text.voice_groups import VoiceGroup, make_piece
from batchscribe.core.unreadable import UNREADABLE
from batchscribe.errors import PermanentError

FORMAT = "batchscribe.voices"
VERSION = 1
MOST_VOICES = 64
"""Voices of one chunk; more are merged."""
DIMENSIONS = 512
"""Most numbers of an embedding, as published models have: the time to group voices grows with it."""
PLACES = 2
"""Decimal places of times."""


class VoiceSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which a voice speaks, in seconds of the chunk."""

    start: Seconds
    end: Seconds


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """One voice of a chunk."""

    vector: Annotated[bytes, Meta(max_length=2 * DIMENSIONS)]
    """Its mean embedding, of length 1, as little-endian 16-bit floats; base64 in JSON."""
    spans: Annotated[tuple[VoiceSpan, ...], Meta(min_length=1)]
    """In order."""


class ChunkVoices(msgspec.Struct, frozen=True, kw_only=True):
    """The voices of one chunk, found in exactly this `audio`."""

    format: str = FORMAT
    version: int = VERSION
    audio: AudioRef
    model: str
    alike: Annotated[float, Meta(ge=-1, le=1)]
    """Cosine similarity of the model's embeddings from which on two voices count as one speaker."""
    voices: Annotated[tuple[Voice, ...], Meta(max_length=MOST_VOICES)]

    @property
    def kind(self) -> tuple[str, int]:
        """Embeddings of different kinds cannot be compared."""
        return self.model, max((len(voice.vector) for voice in self.voices), default=0)

    def list_groups(self) -> list[VoiceGroup]:
        """A group for each voice, by number as member; raises PermanentError."""
        groups = [
            make_piece(_unpack_vector(voice.vector), _measure_spans(voice.spans), number)
            for number, voice in enumerate(self.voices)
        ]
        if None in groups or len({len(voice.vector) for voice in self.voices}) > 1:
            raise PermanentError("not the voices of a chunk: embeddings that cannot be compared")
        return [group for group in groups if group]


def make_voices(audio: AudioRef, model: str, alike: float, groups: Iterable[VoiceGroup]) -> ChunkVoices:
    """The voices from groups, whose members are (begin, end) in seconds."""
    voices = tuple(
        Voice(
            vector=struct.pack(
                f"<{len(group.total)}e", *(value / (group.norm or 1.0) for value in group.total)
            ),
            spans=tuple(_join_spans(group.members)),
        )
        for group in groups
    )
    return ChunkVoices(audio=audio, model=model, alike=alike, voices=voices)


def encode_voices(voices: ChunkVoices) -> bytes:
    return msgspec.json.encode(voices)


def decode_voices(data: bytes) -> ChunkVoices:
    """Decodes a chunk's voices; raises PermanentError for any that are unusable."""
    try:
        found = msgspec.json.decode(data, type=ChunkVoices)
    except UNREADABLE as error:
        raise PermanentError(f"not the voices of a chunk: {error}") from error
    if (found.format, found.version) != (FORMAT, VERSION):
        raise PermanentError(f"not the voices of a chunk: {found.format} {found.version}")
    found.list_groups()
    return found


def _unpack_vector(vector: bytes) -> Sequence[float]:
    count = len(vector) // 2
    return struct.unpack(f"<{count}e", vector[: 2 * count])


def _measure_spans(spans: Iterable[VoiceSpan]) -> float:
    """Seconds of the spans, at least a little for crafted ones."""
    return max(math.fsum(span.end - span.start for span in spans), 0.01)


def _join_spans(spans: Iterable[tuple[float, float]]) -> Iterator[VoiceSpan]:
    """Yields the spans in order, touching ones joined."""
    begin, end = -1.0, -1.0
    for first, last in sorted((round(first, PLACES), round(last, PLACES)) for first, last in spans):
        if first > end:
            if end >= 0:
                yield VoiceSpan(start=begin, end=end)
            begin = first
        end = max(end, last)
    yield VoiceSpan(start=begin, end=end)
