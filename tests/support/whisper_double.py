"""A double of the model: it says what it was told to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.core.text.quality import Doubt, Recognized
from batchscribe.core.text.speech import SAMPLE_RATE, Window
from batchscribe.core.text.transcripts import Segment, Word


def numbered(number: int, session: str = "", *, seconds: float = 2.0, language: str | None = None) -> Window:
    """A window whose audio names it to the double."""
    audio = np.full(int(seconds * SAMPLE_RATE), number, np.float32)
    return Window(number, 0.0, audio, language=language, session=session)


def utterance(text: str, seconds: float = 2.0, **changes: Any) -> Recognized:
    """One segment with its words spread evenly; no words in an empty text."""
    said = text.split()
    words = tuple(
        Word(word=word, start=place * seconds / len(said), end=(place + 1) * seconds / len(said))
        for place, word in enumerate(said)
    )
    known = {"avg_logprob": -0.2, "no_speech_prob": 0.01} | changes
    return Recognized((Segment(text=text, start=0.0, end=seconds, words=words),), seconds, **known)


def ordinary(number: int) -> Recognized:
    return utterance(f"window {number}")


@dataclass
class ScriptedDecoder(WhisperDecoder):
    """`room` is how many windows fit into its memory; `takes` is called for each decoding."""

    says: Callable[[int], Recognized] = ordinary
    says_again: Callable[[int], Recognized] = ordinary
    chances: Callable[[int], dict[str, float]] = lambda _number: {"en": 1.0}
    multilingual: bool = True
    room: int = 1000
    takes: Callable[[str], object] = lambda _what: None
    ahead: Callable[[int], object] = lambda _number: None
    asked: list[list[int]] = field(default_factory=list)
    """The windows of each question for their language."""
    heard: list[tuple[str, list[int]]] = field(default_factory=list)
    """Each batch that was heard: its language and its windows."""
    reheard: list[tuple[int, str, frozenset[Doubt]]] = field(default_factory=list)

    def features(self, audio: Any) -> Any:
        number = int(audio[0])
        self.ahead(number)
        return number

    def encode(self, features: Sequence[Any]) -> Any:
        if len(features) > self.room:
            raise RuntimeError("CUDA failed with error out of memory")
        return list(features)

    def languages(self, encoded: Any) -> list[dict[str, float]]:
        self.asked.append(encoded)
        return [self.chances(number) for number in encoded]

    def transcribe(
        self, encoded: Any, seconds: Sequence[float], language: str, **_options: Any
    ) -> list[Recognized]:
        assert len(encoded) == len(seconds)
        self.heard.append((language, encoded))
        self.takes("transcribe")
        return [self.says(number) for number in encoded]

    def transcribe_again(self, audio: Any, language: str, why: frozenset[Doubt]) -> Recognized:
        self.reheard.append((int(audio[0]), language, why))
        self.takes("transcribe_again")
        return self.says_again(int(audio[0]))
