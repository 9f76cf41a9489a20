"""A real Whisper, tiny.en, on the bundled speech: a cut costs no word, and noise has none."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import jiwer
import numpy as np
import pytest
from msgspec import structs

from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.cli.compare import split_words
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.flags import NO_SPEECH, RERUN
from batchscribe.engine import Engine
from bench.bucket import Bucket, Remembering
from bench.speech import files
from support.audio import RATE, Samples, bundled, corpus, sine, wav

SPEC = EngineSpec(engine="faster-whisper", model="tiny.en", device="cpu", language="en")
WHOLE = 3600.0
"""Seconds of a piece: longer than the recording."""


@pytest.fixture(scope="module")
def whisper() -> Engine:
    """Found by its name in the package that holds it."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_args: object, **_more: object) -> None:
            raise AssertionError("reached for the network")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return Remembering(FACTORY.load(SPEC))


def recording(names: Iterable[str]) -> Samples:
    """Bundled recordings, 0.8 s apart."""
    pause = np.zeros(int(0.8 * RATE), np.float32)
    with AudioDecoder() as decoder:
        parts = [decoder.decode_all(bundled(name), max_seconds=60).samples for name in names]
    return np.concatenate([piece for part in parts for piece in (part, pause)])


@pytest.mark.parametrize("session", ["morning-walk/", pytest.param("", marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    ("seconds", "overlap"), [(WHOLE, 0.0), pytest.param(5.0, 0.0, marks=pytest.mark.deep), (5.0, 0.5)]
)
def test_the_words_are_right_whole_and_cut(
    whisper: Engine, tmp_path: Path, session: str, seconds: float, overlap: float
) -> None:
    texts = {name: text for name, text in corpus().items() if name.startswith(session)}
    bucket = Bucket(tmp_path)
    bucket.put_session("s", files(recording(texts), "wav", seconds, overlap), "wav")
    record = bucket.transcribe(bucket.manifest(SPEC), whisper)
    (heard,) = bucket.sessions()
    assert jiwer.wer(" ".join(texts.values()), " ".join(split_words(heard.text))) <= 0.03
    assert set(record.flags) <= {RERUN}


SYLLABLES = ("Bra", "Clo", "Dri", "Fen", "Gar", "Hul", "Jor", "Kel", "Lom", "Nad")


def quiet() -> dict[str, Samples]:
    random = np.random.default_rng(5)
    hiss = random.standard_normal(20 * RATE)
    return {
        "silence": np.zeros(20 * RATE, np.float32),
        "hiss": (0.003 * hiss).astype(np.float32),
        "loud noise": (0.1 * hiss).astype(np.float32),
        "hum": 0.2 * sine(20, hertz=50),
    }


NAMES = tuple(f"{first}{last}" for first in SYLLABLES for last in SYLLABLES)
"""A vocabulary of 100 names."""


@pytest.mark.parametrize("vocabulary", [(), NAMES], ids=["plain", "100 names"])
def test_silence_and_noise_have_no_word(tmp_path: Path, vocabulary: tuple[str, ...]) -> None:
    whisper = FACTORY.load(structs.replace(SPEC, vocabulary=vocabulary))
    bucket = Bucket(tmp_path)
    for name, sound in quiet().items():
        bucket.put(f"{name}.wav", wav(sound))
    record = bucket.transcribe(bucket.manifest(SPEC), whisper)
    assert [session.text for session in bucket.sessions()] == [""] * len(quiet())
    assert record.flags == {NO_SPEECH: len(quiet())}
