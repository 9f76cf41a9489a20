"""Whisper in batches, on real models of CTranslate2's: one of English only, one of three languages."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faster_whisper
import numpy as np
import pytest

from batchscribe.adapters.engines.whisper.batches import FasterWhisper
from batchscribe.adapters.engines.whisper.decoder import WhisperDecoder
from batchscribe.adapters.engines.whisper.device import self_test
from batchscribe.adapters.engines.whisper.engine import FACTORY
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.core.run.manifest import EngineSpec
from batchscribe.core.text.speech import SAMPLE_RATE, Recognition, Window
from batchscribe.errors import EngineError, MisconfiguredError
from support.audio import bundled, corpus
from support.whisper_model import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("multilingual"), languages=("en", "de", "fr"))


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    with AudioDecoder() as decoder:
        found = [decoder.decode_all(bundled(key), max_seconds=60).samples for key in list(corpus())[:6]]
    found += [np.zeros(size, np.float32) for size in (24_000, 800)]
    return [Window(10 + number, 3.0 * number, audio) for number, audio in enumerate(found)]


def load(folder: Path, **changes: Any) -> FasterWhisper:
    spec = EngineSpec(**{"engine": "faster-whisper", "model": str(folder), "device": "cpu", **changes})
    return FACTORY.load(spec)


def told(results: Sequence[Recognition]) -> dict[int, tuple[object, ...]]:
    return {result.window: (result.segments, result.language, result.flags) for result in results}


def transcribe(engine: FasterWhisper, windows: Sequence[Window], size: int) -> list[Recognition]:
    """In batches of that size."""
    starts = range(0, len(windows), size)
    return [result for at in starts for result in engine.transcribe(windows[at : at + size])]


def test_the_size_of_the_batch_and_its_order_change_no_result(folder: Path, windows: list[Window]) -> None:
    engine = load(folder)
    alone = told(transcribe(engine, windows, 1))
    assert len(alone) == len(windows)
    for size in (3, 32):
        assert told(transcribe(engine, windows, size)) == alone
        assert told(transcribe(engine, windows[::-1], size)) == alone


def test_sessions_in_one_batch_change_no_result(folder: Path, windows: list[Window]) -> None:
    engine = load(folder)
    alone = told(transcribe(engine, windows, 4))
    mixed = [replace(window, session=f"session {window.id % 3}") for window in windows]
    assert told(transcribe(engine, mixed, 4)) == alone


def test_it_begins_as_faster_whispers_own_sequential_path(folder: Path, windows: list[Window]) -> None:
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8")
    compared = 0
    for result, window in zip(transcribe(load(folder), windows, 1), windows, strict=True):
        expected, _ = model.transcribe(window.audio, beam_size=5, temperature=0.0, word_timestamps=True)
        first = next(expected, None)
        # It drops what the wild times of random weights leave without a length.
        if first is not None and not first.seek:
            compared += 1
            assert result.segments[0].text == first.text.strip()
    assert compared >= 3


def test_a_session_has_one_language_of_its_own(multilingual: Path, windows: list[Window]) -> None:
    engine = load(multilingual)
    mixed = [replace(window, session=f"session {window.id % 2}") for window in windows]
    results = {result.window: result.language for result in transcribe(engine, mixed, 4)}
    for number in (0, 1):
        (language,) = {results[window.id] for window in mixed if window.id % 2 == number}
        assert language in {"en", "de", "fr"}
    (forced,) = {result.language for result in load(multilingual, language="fr").transcribe(windows[:2])}
    assert forced == "fr"


def test_windows_of_several_languages_are_heard_as_alone(multilingual: Path, windows: list[Window]) -> None:
    """The prompts of a batch are alike, so that the language of one window changes no other's words."""
    engine = load(multilingual)
    spoken = [
        replace(window, language=("en", "de", "fr")[window.id % 3], session="one") for window in windows
    ]
    alone = told(transcribe(engine, spoken, 1))
    assert told(transcribe(engine, spoken, 8)) == alone


def test_to_translate_is_another_prompt(multilingual: Path, windows: list[Window]) -> None:
    results = list(load(multilingual, task="translate", language="de").transcribe(windows[:2]))
    assert {result.language for result in results} == {"de"}


def test_a_folders_model_that_knows_english_only_says_so_when_it_loads(folder: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot translate"):
        load(folder, task="translate")


def test_it_works_without_the_network(
    folder: Path, windows: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(list(load(folder).transcribe(windows[:2]))) == 2


def test_what_is_heard_a_second_time_goes_through_the_model(folder: Path, windows: list[Window]) -> None:
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8")
    heard = WhisperDecoder(model).transcribe_again(windows[0].audio, "en", frozenset())
    assert heard.seconds == pytest.approx(len(windows[0].audio) / SAMPLE_RATE)
    assert heard.avg_logprob is None or heard.avg_logprob < 0


@pytest.mark.parametrize(("device", "fix"), [("cuda", "nvidia-smi"), ("cpu", "free -h")])
def test_a_library_that_is_missing_shows_in_the_self_test(
    folder: Path, device: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_whisper: object, features: object) -> None:
        raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

    model = faster_whisper.WhisperModel(str(folder), device="cpu")
    monkeypatch.setattr(faster_whisper.WhisperModel, "encode", broken)
    with pytest.raises(EngineError, match=f"self-test: Library libcublas.*{fix}"):
        self_test(WhisperDecoder(model), device)
