from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from batchscribe.audio.windows import MAX_WINDOW, Cut, Cutter, Samples, SpeechFinder, find_quiet_place
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.transcripts import Segment, Word


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def noise(seconds: float, level: float = 0.05) -> Samples:
    made: Samples = np.random.default_rng(1).normal(0, level, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return made


def everything(audio: Samples) -> list[tuple[int, int]]:
    return [(0, len(audio))]


def cut(audio: Samples, find_speech: SpeechFinder, pieces: int = 1, **blocks: int) -> list[Cut]:
    cutter = Cutter(find_speech, **blocks)
    found = [window for piece in np.array_split(audio, pieces) for window in cutter.push(piece)]
    found += cutter.finish()
    assert cutter.done == len(audio)
    return found


def loud(audio: Samples) -> list[tuple[int, int]]:
    """Whatever is not silent, to 20 ms."""
    frames = [bool(np.abs(audio[at : at + 320]).max() > 0) for at in range(0, len(audio), 320)]
    edges = [int(edge) * 320 for edge in np.flatnonzero(np.diff([False, *frames, False]))]
    return [(begin, min(end, len(audio))) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def sound(*lengths: float) -> Samples:
    """Silence and noise in turns, so many seconds of each."""
    return np.concatenate([(noise if at % 2 else silence)(length) for at, length in enumerate(lengths)])


def test_windows_know_their_place_on_the_clock_of_the_stream() -> None:
    windows = cut(sound(2, 3, 70, 1, 1), loud)
    assert [(window.seconds_in, len(window.audio) / SAMPLE_RATE) for window in windows] == [(2, 3), (75, 1)]


def test_close_spans_share_a_window_while_they_fit() -> None:
    windows = cut(sound(0, 10, 1, 9, 2, 11, 1), loud)
    assert [(window.start // SAMPLE_RATE, len(window.audio) // SAMPLE_RATE) for window in windows] == [
        (0, 20),
        (22, 11),
    ]


def test_of_a_long_silence_a_second_is_left_and_times_know_it() -> None:
    (window,) = cut(sound(1, 4, 20, 3, 1), loud)
    assert window.parts == ((16_000, 88_000), (392_000, 448_000))
    assert len(window.audio) == 8 * SAMPLE_RATE
    assert window.speech == 7 * SAMPLE_RATE
    words = (Word(word="one", start=0.5, end=1.0), Word(word="two", start=5.5, end=8.0))
    (placed,) = window.place_on_stream([Segment(text="one two", start=0.5, end=8.0, words=words)])
    assert [(word.start, word.end) for word in placed.words] == [(1.5, 2.0), (25.5, 28.0)]
    assert (placed.start, placed.end) == (1.5, 28.0)


def test_a_word_keeps_to_the_part_that_holds_its_middle() -> None:
    (window,) = cut(sound(1, 4, 20, 3, 1), loud)
    word = Word(word="early", start=4.0, end=5.0)
    (placed,) = window.place_on_stream([Segment(text="early", start=4.0, end=5.0, words=(word,))])
    assert (placed.words[0].start, placed.words[0].end) == (24.5, 25.0)


def test_a_window_can_be_taken_apart() -> None:
    (window,) = cut(sound(1, 4, 20, 3, 1), loud)
    part = window.clip(3 * SAMPLE_RATE, 26 * SAMPLE_RATE)
    assert part is not None
    assert part.parts == ((48_000, 88_000), (392_000, 416_000))
    assert np.array_equal(part.audio, window.audio[32_000:96_000])
    assert window.clip(6 * SAMPLE_RATE, 20 * SAMPLE_RATE) is None


def test_a_long_span_is_cut_where_it_is_quiet() -> None:
    audio = noise(70)
    audio[25 * SAMPLE_RATE : 25 * SAMPLE_RATE + 4000] = 0
    windows = cut(audio, everything, first=80 * SAMPLE_RATE)
    assert max(len(window.audio) for window in windows) <= MAX_WINDOW
    assert sum(len(window.audio) for window in windows) == len(audio)
    assert windows[1].start == pytest.approx(25.1 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)


@pytest.mark.parametrize("pieces", [1, 7, 50, 400])
def test_a_stream_in_pieces_of_any_size_loses_nothing(pieces: int) -> None:
    lengths = [length for at in range(30) for length in (0.3 + at % 5, 2 + (7 * at) % 13)]
    audio = sound(*lengths)
    windows = cut(audio, loud, pieces)
    whole = np.concatenate([window.audio for window in windows])
    assert np.count_nonzero(whole) == np.count_nonzero(audio)
    assert all(len(window.audio) <= MAX_WINDOW for window in windows)
    assert all(one.end <= two.start for one, two in pairwise(windows))


def spoken(spans: int, phrases: int) -> Samples:
    """Spans of phrases of two seconds with short pauses between them, 0.6 s between the spans."""
    phrase, short, long = noise(2.0), silence(0.25), silence(0.6)
    span = np.concatenate([piece for _ in range(phrases) for piece in (phrase, short)][:-1])
    return np.concatenate([piece for _ in range(spans) for piece in (span, long)])


def apart(audio: Samples) -> list[tuple[int, int]]:
    """As a voice detector does it: half a second of silence ends a span."""
    spans: list[tuple[int, int]] = []
    for begin, end in loud(audio):
        if spans and begin - spans[-1][1] < SAMPLE_RATE // 2:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return spans


def test_a_span_that_does_not_fit_fills_its_window_up_to_a_pause() -> None:
    audio = spoken(spans=20, phrases=8)
    windows = cut(audio, apart)
    assert len(windows) <= len(audio) / MAX_WINDOW + 3
    for one, two in pairwise(windows):
        assert not np.any(audio[one.end : two.start])
        cut_through = np.any(audio[one.end - 800 : one.end]) and np.any(audio[one.end : one.end + 800])
        assert not cut_through


def test_nobody_is_cut_off_to_fill_a_window() -> None:
    audio = np.concatenate([noise(16), silence(0.6), noise(16), silence(1)])
    assert [window.parts for window in cut(audio, apart)] == [
        ((0, 16 * SAMPLE_RATE),),
        ((265_600, 521_600),),
    ]


def test_speech_without_a_pause_goes_through_blocks_whole() -> None:
    audio = noise(400)
    windows = cut(audio, everything, 40)
    assert np.array_equal(np.concatenate([window.audio for window in windows]), audio)


def test_what_ends_with_its_block_waits_for_more() -> None:
    cutter = Cutter(loud, first=30 * SAMPLE_RATE)
    assert list(cutter.push(sound(5, 20, 5))) == []
    assert cutter.done <= 5 * SAMPLE_RATE
    (window,) = [*cutter.push(sound(0, 3, 1)), *cutter.finish()]
    assert window.parts == (
        (5 * SAMPLE_RATE, 25 * SAMPLE_RATE + 8_000),
        (29 * SAMPLE_RATE + 8_000, 33 * SAMPLE_RATE),
    )


def test_hours_of_silence_are_not_held() -> None:
    cutter = Cutter(loud)
    held = [list(cutter.push(silence(5))) for _ in range(200)]
    assert not any(held)
    assert cutter.done > 800 * SAMPLE_RATE


def test_a_window_does_not_keep_its_block_in_memory() -> None:
    windows = cut(sound(1, 1, 80, 1, 1), loud)
    assert len(windows) == 2
    assert all(window.audio.base is None for window in windows)


def test_quiet_is_looked_for_between_the_bounds_only() -> None:
    audio = noise(10)
    audio[: 2 * SAMPLE_RATE] = 0
    assert find_quiet_place(audio, 4 * SAMPLE_RATE, 8 * SAMPLE_RATE) in range(
        4 * SAMPLE_RATE, 8 * SAMPLE_RATE
    )
    assert find_quiet_place(audio, 100, 200) == 150
