"""Any chunks, overlaps and gaps over a text with known times: each word once, where it was said."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from support.spoken import Spoken, speech
from support.spoken_sessions import Recorded, recorded, said, same


@st.composite
def texts(draw: st.DrawFn, *, least: float = 5, most: float = 240) -> tuple[list[Spoken], float]:
    """Words of 0.1 to 0.6 s, mostly with short pauses between them, now and then with a long one."""
    seconds = draw(st.floats(least, most))
    random = draw(st.randoms(use_true_random=False))
    at, words = random.uniform(0, 2), list[Spoken]()
    while at < seconds - 1:
        length = random.uniform(0.1, 0.6)
        words.append(Spoken(random.randrange(100), round(at, 2), round(at + length, 2)))
        pause = random.choice([0.05, 0.1, 0.2, 0.3, 0.3, 0.4, 1.0, 3.0])
        at += length + pause + (random.uniform(5, 70) if random.random() < 0.02 else 0)
    return words, seconds


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Recorded, float]:
    words, seconds = draw(texts())
    overlap = draw(st.sampled_from([0.0, 0.0, 0.3, 0.5, 1.0]))
    # A chunk is longer than what it shares with its neighbours.
    lengths = draw(st.lists(st.floats(0.5 + 2 * overlap, 60), min_size=1, max_size=40))
    cuts = list(itertools.takewhile(lambda cut: cut < seconds - 1, itertools.accumulate(lengths)))
    return recorded(words, speech(words, seconds), cuts, overlap), overlap


@settings(max_examples=25, deadline=None)
@given(sessions(), st.sampled_from([1, 3, 16]))
def test_each_word_is_heard_once_where_it_was_said(case: tuple[Recorded, float], hold: int) -> None:
    record, overlap = case
    record.engine.batch_size = hold
    end = record.transcribe(record.keys, overlap_ms=round(overlap * 1000))
    assert end.tally.done == len(record.keys), end
    same(said(record.session()), record.words)
    for key in record.keys:
        transcript = record.transcript(key)
        times = [
            at for segment in transcript.segments for word in segment.words for at in (word.start, word.end)
        ]
        assert times == sorted(times)
        assert all(0 <= at <= transcript.duration for at in times)


@settings(max_examples=25, deadline=None)
@given(texts(least=20, most=120), st.data())
def test_chunks_that_come_later_say_what_is_left(
    text: tuple[list[Spoken], float], data: st.DataObject
) -> None:
    words, seconds = text
    # Cuts in pauses: half a word that was published cannot be taken back.
    pauses = [
        (one.end + two.start) / 2 for one, two in itertools.pairwise(words) if two.start - one.end > 0.15
    ]
    cuts = sorted(data.draw(st.sets(st.sampled_from(pauses), max_size=12))) if pauses else []
    record = recorded(words, speech(words, seconds), cuts, 0.0)
    first = data.draw(st.lists(st.sampled_from(record.keys), unique=True))
    record.transcribe(sorted(first))
    published = {key: record.store.get(record.spoken(key)).data for key in first}
    record.transcribe(record.keys)
    assert all(record.store.get(record.spoken(key)).data == data for key, data in published.items())
    same(said(record.session()), words)


def test_three_chunks_of_ten_seconds_cost_one_window() -> None:
    words = [Spoken(at % 50, at * 0.5 + 0.05, at * 0.5 + 0.4) for at in range(600)]
    record = recorded(words, speech(words, 300), [10.0 * at for at in range(1, 30)], 0.0)
    record.transcribe(record.keys)
    assert record.engine.windows <= 11
    same(said(record.session()), words)


def test_a_cut_word_is_heard_whole_where_the_other_half_is_not_wanted_yet() -> None:
    words = [Spoken(1, 1.0, 1.5), Spoken(2, 9.8, 10.4), Spoken(3, 12.0, 12.5)]
    record = recorded(words, speech(words, 20), [10.0], 0.0)
    record.transcribe(record.keys[:1])
    assert record.transcript(record.keys[0]).text == "w1 w2"
    record.transcribe(record.keys[1:])
    assert record.transcript(record.keys[1]).text == "w3"
    same(said(record.session()), words)


def test_two_parties_are_heard_one_by_one() -> None:
    left = [Spoken(at, at * 2.0 + 0.1, at * 2.0 + 1.5) for at in range(12)]
    right = [Spoken(50 + at, at * 2.0 + 1.0, at * 2.0 + 1.8) for at in range(12)]
    audio = np.stack([speech(left, 25), speech(right, 25)], axis=1)
    record = recorded([], audio, [7.0, 15.0], 0.0)
    record.transcribe(record.keys, split_channels=True)
    heard = {1: list[tuple[str, float, float]](), 2: list[tuple[str, float, float]]()}
    for segment in record.session().segments:
        assert isinstance(segment.channel, int)
        heard[segment.channel] += [(word.word, word.start, word.end) for word in segment.words]
    same(heard[1], left)
    same(heard[2], right)


def test_one_voice_on_both_channels_is_heard_once() -> None:
    words = [Spoken(at, at * 2.0 + 0.1, at * 2.0 + 1.5) for at in range(12)]
    audio = np.repeat(speech(words, 25)[:, None], 2, axis=1)
    record = recorded(words, audio, [7.0, 15.0], 0.0)
    record.transcribe(record.keys, split_channels=True)
    same(said(record.session()), words)


def test_a_party_that_comes_later_is_not_taken_for_the_other() -> None:
    left = [Spoken(1, 1.0, 1.5), Spoken(2, 9.0, 9.9), Spoken(3, 14.0, 14.5)]
    right = [Spoken(51, 2.0, 2.5), Spoken(52, 9.7, 10.2), Spoken(53, 13.0, 13.5)]
    audio = np.stack([speech(left, 20), speech(right, 20)], axis=1)
    record = recorded([], audio, [10.0], 0.0)
    record.transcribe(record.keys[1:], split_channels=True)
    record.transcribe(record.keys, split_channels=True)
    words = sorted(said(record.session()))
    assert [word for word, _, _ in words] == sorted(f"w{spoken.word}" for spoken in (*left, *right))
