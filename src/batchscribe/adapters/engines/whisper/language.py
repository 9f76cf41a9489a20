"""Identifies a file's spoken language, with Whisper tiny on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING

from batchscribe.adapters.engines.problems import engine_errors
from batchscribe.adapters.engines.voice_detectors import find_voice_detector
from batchscribe.adapters.engines.whisper.batches import NAME
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.windows import Cutter, SpeechFinder
from batchscribe.core.run.manifest import EngineSpec, Limits

if TYPE_CHECKING:
    from batchscribe.adapters.engines.whisper.decoder import Samples

MOST_PIECES = 120
"""Pieces of audio to search for speech: at most ten minutes."""
MOST_WINDOWS = 3
CERTAIN = 0.7
"""Mean probability below which the language counts as unknown. A guess: not measured."""


def load_identifier(spec: EngineSpec) -> Callable[[bytes], str]:
    """Loads a multilingual model. Raises EngineError, MisconfiguredError."""
    with _identification_errors():
        return partial(identify_language, FACTORY.load_decoder(spec)[0], find_voice_detector())


def identify_language(decoder: WhisperDecoder, find_speech: SpeechFinder, data: bytes) -> str:
    """Language of a file's first speech; empty if unsure or silent.

    Raises AudioError, EngineError.
    """
    with _identification_errors(), AudioDecoder() as audio:
        pieces = audio.decode(data, max_seconds=Limits().max_audio_seconds)
        windows = list(islice(_cut_windows(islice(pieces, MOST_PIECES), find_speech), MOST_WINDOWS))
        if not windows:
            return ""
        chances = decoder.languages(decoder.encode([decoder.features(window) for window in windows]))
    means = {language: fmean(each.get(language, 0.0) for each in chances) for language in chances[0]}
    best = max(means, key=lambda language: (means[language], language))
    return best if means[best] >= CERTAIN else ""


def _identification_errors() -> AbstractContextManager[None]:
    """Converts model and detector errors, which must not stop a tick."""
    return engine_errors(f"{NAME} failed while identifying a language")


def _cut_windows(pieces: Iterable[Samples], find_speech: SpeechFinder) -> Iterator[Samples]:
    cutter = Cutter(find_speech)
    for piece in pieces:
        yield from (cut.audio for cut in cutter.push(piece))
    yield from (cut.audio for cut in cutter.finish())
