"""Embeddings of voices by WeSpeaker's CAM++ in sherpa-onnx.

Its runtime is its own, so it goes with the packages of every engine. The model (7 million numbers, trained on
VoxCeleb, CC BY 4.0) runs on the CPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from batchscribe.adapters.engines.hub_models import HubModel, describe_file, verify_model
from batchscribe.adapters.engines.problems import engine_errors, not_installed
from batchscribe.core.decide.published_models import SPEAKER_MODEL
from batchscribe.core.messages import describe_install
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.errors import EngineError, MisconfiguredError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PACKAGE = "sherpa_onnx"
INSTALL = describe_install("speakers")
FILE = f"{SPEAKER_MODEL}.onnx"
SOURCE = HubModel(
    SPEAKER_MODEL,
    "csukuangfj/speaker-embedding-models",
    "0743f301363dec56491a490f6d6cbc9d67f9a3bf",
    [FILE],
    INSTALL,
)
SHA256 = "c46fad10b5f81e1aa4a60c162714208577093655076c5450f8c469e522ec54ef"
ALIKE = 0.5
"""Default of sherpa-onnx's own diarisation, a cosine distance of 0.5."""


class SherpaSpeakerModel:
    """A SpeakerModel that loads its file at first use."""

    def __init__(self, path: Path, *, name: str = SPEAKER_MODEL, alike: float = ALIKE) -> None:
        self.name = name
        self.alike = alike
        self._path = path
        self._loading = Lock()

    def embed(self, audio: npt.NDArray[np.float32]) -> Sequence[float] | None:
        with engine_errors("the voices could not be compared"):
            with self._loading:
                extractor = self._extractor
            stream = extractor.create_stream()
            stream.accept_waveform(SAMPLE_RATE, audio)
            stream.input_finished()
            return list(extractor.compute(stream)) if extractor.is_ready(stream) else None

    @cached_property
    def _extractor(self) -> Any:
        sherpa: Any = importlib.import_module(PACKAGE)
        # Several threads use it; more inside each would only take the decoders' cores.
        config = sherpa.SpeakerEmbeddingExtractorConfig(model=str(self._path), num_threads=1)
        if not config.validate():
            raise EngineError(f"{self._path} is no model of voices")
        return sherpa.SpeakerEmbeddingExtractor(config)


def find_speaker_problems() -> tuple[str, ...]:
    """Reasons why speakers cannot be distinguished here; loads nothing."""
    try:
        open_speaker_model()
    except MisconfiguredError as error:
        return (str(error),)
    return ()


def open_speaker_model() -> SherpaSpeakerModel:
    """Opens the fetched model. Raises MisconfiguredError if something is missing."""
    if missing := not_installed(PACKAGE):
        raise MisconfiguredError(f"BATCH_SPEAKERS needs {missing}: {INSTALL}")
    return SherpaSpeakerModel(_find_file())


def fetch_speaker_model() -> Path:
    """Downloads the model; returns its file. Raises MisconfiguredError, EngineError."""
    path = SOURCE.fetch() / FILE
    if describe_file(path).sha256 != SHA256:
        raise EngineError(f"{path} is not the published {SPEAKER_MODEL}: remove it and fetch it again")
    return path


def _find_file() -> Path:
    folder = SOURCE.find()
    if folder is None or not (folder / FILE).is_file():
        raise MisconfiguredError(
            f"the model {SPEAKER_MODEL} for BATCH_SPEAKERS is not on this machine: fetch it with "
            f"`batchscribe engines --fetch {SPEAKER_MODEL}`"
        )
    verify_model(folder)
    return folder / FILE
