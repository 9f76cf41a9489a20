"""Finds speech with the copy of Silero's voice detector in faster-whisper."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from faster_whisper.vad import VadOptions, get_speech_timestamps

from batchscribe.errors import EngineError

OPTIONS = VadOptions(
    threshold=0.5, min_speech_duration_ms=100, min_silence_duration_ms=500, speech_pad_ms=250
)
"""Half a second of quiet ends a span; a quarter of a second on both sides keeps soft consonants."""


def find_speech(audio: npt.NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """Spans of speech as (first, past the last) sample, in order, apart.

    `audio` has shape (samples,), float32 in [-1, 1], 16 kHz, mono. Raises EngineError.
    """
    if not len(audio):
        return ()
    try:
        spans = get_speech_timestamps(audio, OPTIONS)
    except Exception as error:
        # onnxruntime raises its own types, and RuntimeError if it is not installed.
        raise EngineError(f"the voice detector does not run: {type(error).__name__}: {error}") from error
    return tuple((span["start"], min(span["end"], len(audio))) for span in spans)
