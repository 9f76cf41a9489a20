"""Cuts a window's speech into short pieces, and computes their embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from batchscribe.audio.windows import Cut, Samples, Span
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.voice_groups import VoiceGroup, make_piece
from batchscribe.protocols import SpeakerModel

PIECE = SAMPLE_RATE * 3 // 2
"""Samples of a piece: long enough to distinguish voices, short enough to have one. As in NeMo's diarizer."""
STEP = PIECE // 2
"""Most samples from the begin of one piece to the next."""


def find_voices(cut: Cut, model: SpeakerModel) -> Iterator[tuple[Span, VoiceGroup]]:
    """Yields a group for each piece of speech with an embedding.

    Each group comes with its span: samples of the timeline. Pieces overlap; their spans do not, and cover the
    speech. Raises EngineError.
    """
    for (begin, end), audio in _list_pieces(cut):
        vector = model.embed(audio)
        group = make_piece(vector, (end - begin) / SAMPLE_RATE, None) if vector is not None else None
        if group is not None:
            yield (begin, end), group


def _list_pieces(cut: Cut) -> Iterator[tuple[Span, Samples]]:
    for begin, end in cut.spans:
        length = min(PIECE, end - begin)
        steps = math.ceil((end - begin - length) / STEP)
        starts = [begin + (end - begin - length) * number // max(1, steps) for number in range(steps + 1)]
        # Each piece has the speech around its middle, the outer ones also that to the edges.
        inner = [(one + two + length) // 2 for one, two in pairwise(starts)]
        for start, span in zip(starts, pairwise([begin, *inner, end]), strict=True):
            piece = cut.clip(start, start + length)
            if piece is not None:
                yield span, piece.audio
