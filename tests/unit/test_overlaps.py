"""Speech cut into chunks that overlap: how long is found, and nothing is where nothing tells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.audio.overlaps import Overlaps, measure_overlap
from batchscribe.audio.windows import Samples
from support.audio import RATE, bundled, corpus, encode

CUTS = (3.4, 6.1, 9.0, 12.2)
"""Seconds into the speech, where words are said."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[AudioDecoder]:
    with AudioDecoder() as opened:
        yield opened


@pytest.fixture(scope="module")
def speech(decoder: AudioDecoder) -> Samples:
    keys = [key for key in corpus() if key.startswith("morning-walk/")]
    return np.concatenate([decoder.decode_all(bundled(key), max_seconds=60).samples for key in keys])


def cut(speech: Samples, at: float, overlap: float) -> tuple[Samples, Samples]:
    """The 3 s before and behind a cut; the second begins `overlap` seconds before the first ends."""
    end = int(at * RATE)
    begin = end - round(overlap * RATE)
    return speech[max(0, end - 3 * RATE) : end], speech[begin : begin + 3 * RATE]


@cache
def sounds(name: str) -> Samples:
    """16 s of something that nobody says."""
    at = np.arange(16 * RATE) / RATE
    noise = np.random.default_rng(1).normal(0, 0.1, len(at))
    made = {
        "silence": np.zeros(len(at)),
        "noise": noise,
        "tone": 0.3 * np.sin(2 * np.pi * 440 * at),
        "hum": 0.2 * np.sin(2 * np.pi * 50 * at) + 0.1 * np.sin(2 * np.pi * 150 * at) + 0.01 * noise,
        "buzz": 0.1 * np.sign(np.sin(2 * np.pi * 100 * at)),
        "beat": np.exp(-(at % 0.7) * 8) * np.resize(noise[: int(0.7 * RATE)], len(at)),
    }
    return made[name].astype(np.float32)


@pytest.mark.parametrize("extension", ["wav", "webm", "m4a", "mp3"])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 1.1, 2.3])
def test_an_overlap_is_found_in_every_codec(
    decoder: AudioDecoder, speech: Samples, extension: str, overlap: float
) -> None:
    for at in CUTS:
        before, after = cut(speech, at, overlap)
        heard = [
            decoder.decode_all(encode(part, extension), max_seconds=60).samples
            for part in (before, 0.3 * after)
        ]
        # What a codec puts before the beginning and behind the end lies in the overlap, too.
        more = sum(len(part) for part in heard) - len(before) - len(after)
        found = measure_overlap(*heard)
        assert found is not None, (at, extension)
        assert overlap - 0.005 <= found <= overlap + max(0, more) / RATE + 0.005


def test_no_overlap_is_found_where_there_is_none(speech: Samples) -> None:
    places = np.arange(3.0, len(speech) / RATE - 3.0, 0.17)
    assert [at for at in places if measure_overlap(*cut(speech, at, 0.0)) is not None] == []


@pytest.mark.parametrize("name", ["silence", "noise", "tone", "hum", "buzz", "beat"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.4])
def test_a_sound_that_is_like_itself_everywhere_tells_nothing_wrong(name: str, overlap: float) -> None:
    """Only noise through no codec is known again: it is never the same twice."""
    for at in (5.0, 5.21, 7.33):
        found = measure_overlap(*cut(sounds(name), at, overlap))
        right = pytest.approx(overlap, abs=0.001) if overlap and name in {"noise", "hum"} else None
        assert found == right


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_a_word_said_again_and_again_is_no_overlap(speech: Samples, overlap: float) -> None:
    again = np.tile(speech[int(0.3 * RATE) : int(0.9 * RATE)], 20)
    for at in np.arange(4.0, 5.0, 0.07):
        assert measure_overlap(*cut(again, at, overlap)) is None


def test_a_word_that_was_said_before_is_no_overlap(speech: Samples) -> None:
    word, other = speech[int(0.3 * RATE) : int(0.9 * RATE)], speech[5 * RATE :]
    once, after = np.concatenate([other[:RATE], word]), np.concatenate([word, other[RATE : 3 * RATE]])
    assert measure_overlap(once, after) == pytest.approx(0.6, abs=0.002)
    assert measure_overlap(np.concatenate([word, once]), after) is None
    assert measure_overlap(once, np.concatenate([after[: 2 * RATE], word])) is None


def test_a_word_said_twice_and_not_the_same_is_no_overlap(speech: Samples) -> None:
    # The loudest of it is the very same; what is around that is not.
    once, other = speech[: int(1.2 * RATE)].copy(), speech[int(5 * RATE) : int(6.2 * RATE)]
    twice = once.copy()
    for begin in (0.0, 0.8):
        mixed = slice(int(begin * RATE), int((begin + 0.3) * RATE))
        twice[mixed] = other[mixed] * np.sqrt(np.mean(once**2) / np.mean(other**2)) * 0.8
    assert measure_overlap(once, twice) is None
    assert measure_overlap(once, once.copy()) is not None


def test_what_others_say_meanwhile_and_noise_do_no_harm(speech: Samples) -> None:
    noise = np.random.default_rng(2).normal(0, 0.004, len(speech)).astype(np.float32)
    at = np.arange(len(speech)) / RATE
    hum = (0.03 * np.sin(2 * np.pi * 50 * at)).astype(np.float32)
    found = [measure_overlap(*cut(speech + noise + hum, at, 0.5)) for at in CUTS]
    assert found == pytest.approx([0.5] * len(CUTS), abs=0.002)


@pytest.mark.parametrize("overlap", [0.04, 2.8])
def test_an_overlap_beyond_what_can_be_told_is_not_taken_for_another(speech: Samples, overlap: float) -> None:
    assert [measure_overlap(*cut(speech, at, overlap)) for at in CUTS] == [None] * len(CUTS)


def test_chunks_too_short_or_broken_tell_nothing(speech: Samples) -> None:
    before, after = cut(speech, CUTS[0], 0.5)
    empty = np.zeros(0, np.float32)
    assert [
        measure_overlap(empty, after),
        measure_overlap(before, empty),
        measure_overlap(before, after[:1000]),
    ] == [None] * 3
    assert measure_overlap(before, np.full(len(after), np.nan, np.float32)) is None
    assert measure_overlap(before, after[: int(0.8 * RATE)]) == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(("fixed", "seconds"), [(0, 0.0), (500, 0.5), (5000, 3.0), (-5, 0.0)])
def test_a_given_overlap_is_not_measured(speech: Samples, fixed: int, seconds: float) -> None:
    assert Overlaps(fixed).find_overlap(*cut(speech, CUTS[0], 1.0)) == seconds


def test_where_nobody_speaks_the_usual_overlap_of_the_session_holds(speech: Samples) -> None:
    silence = np.zeros(3 * RATE, np.float32)
    session = Overlaps(None)
    assert session.find_overlap(silence, silence) == 0
    assert session.find_overlap(*cut(speech, CUTS[0], 0.5)) == pytest.approx(0.5, abs=0.002)
    assert session.find_overlap(silence, silence) == 0
    assert session.find_overlap(*cut(speech, CUTS[1], 1.1)) == pytest.approx(1.1, abs=0.002)
    assert session.find_overlap(silence, silence) == 0
    assert session.find_overlap(*cut(speech, CUTS[2], 0.52)) == pytest.approx(0.52, abs=0.002)
    assert session.find_overlap(silence, silence) == pytest.approx(0.51, abs=0.002)
    assert session.find_overlap(silence, silence[: RATE // 4]) == 0


def test_the_usual_overlap_does_not_hold_where_different_things_are_said(speech: Samples) -> None:
    session = Overlaps(None)
    for at in CUTS[:2]:
        session.find_overlap(*cut(speech, at, 0.5))
    assert session.find_overlap(speech[: 3 * RATE], speech[5 * RATE + 4000 : 8 * RATE]) == 0


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.4])
def test_through_a_codec_noise_tells_nothing(overlap: float) -> None:
    before, after = cut(sounds("noise"), 5.0, overlap)
    other = np.random.default_rng(3).normal(0, 0.02, len(after)).astype(np.float32)
    assert measure_overlap(before, after * 0.98 + other * float(np.std(after))) is None
