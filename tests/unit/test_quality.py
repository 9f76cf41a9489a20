from __future__ import annotations

from typing import Any

import pytest

from batchscribe.core.text.flags import LOW_CONFIDENCE
from batchscribe.core.text.quality import (
    Doubt,
    Recognized,
    Span,
    choose_better,
    find_doubts,
    find_flags,
    find_wordless_speech,
    is_looping,
    measure_compression,
)
from batchscribe.core.text.transcripts import Segment, Word


def heard(text: str, seconds: float = 10.0, **changes: Any) -> Recognized:
    """The words spread evenly over the window, in one segment."""
    said = text.split()
    step = seconds / max(len(said), 1)
    words = tuple(
        Word(word=word, start=place * step, end=(place + 1) * step) for place, word in enumerate(said)
    )
    return Recognized((Segment(text=text, start=0.0, end=seconds, words=words),), seconds, **changes)


def timed(*spans: tuple[float, float], seconds: float = 10.0) -> Recognized:
    words = tuple(Word(word=f"w{place}", start=start, end=end) for place, (start, end) in enumerate(spans))
    return Recognized((Segment(text="w", start=spans[0][0], end=spans[-1][1], words=words),), seconds)


PLAIN = "we walked down to the river this morning and fed two old swans there"


def test_plain_speech_raises_no_doubt() -> None:
    assert find_doubts(heard(PLAIN, avg_logprob=-0.3, no_speech_prob=0.9)) == frozenset()
    assert find_flags(heard(PLAIN)) == ()


@pytest.mark.parametrize(
    ("found", "doubt"),
    [
        (heard("thank you for watching. " * 20, 80.0), Doubt.REPETITIVE),
        (heard("one two three four five six seven one two one two one two one two", 12.0), Doubt.LOOPING),
        (heard(PLAIN, avg_logprob=-1.01), Doubt.GUESSED),
        (timed((0.0, 1.0), (9.0, 10.6)), Doubt.OUTSIDE),
        (timed((3.0, 4.0), (2.4, 5.0)), Doubt.DISORDERED),
        (timed((3.0, 2.9)), Doubt.DISORDERED),
        (heard("one two three four five six seven eight nine", 1.0), Doubt.HURRIED),
        (heard(PLAIN, read_until=8.9), Doubt.UNFINISHED),
    ],
    ids=lambda value: value.value if isinstance(value, Doubt) else "",
)
def test_each_doubt_has_its_sign_and_no_other(found: Recognized, doubt: Doubt) -> None:
    expected = frozenset({doubt, Doubt.LOOPING} if doubt is Doubt.REPETITIVE else {doubt})
    assert find_doubts(found) == expected
    assert find_flags(found) == (LOW_CONFIDENCE,)


@pytest.mark.parametrize(
    "found",
    [
        heard("no no no no no no no", 5.0),
        heard("left right left right left right and then straight on to the bridge", 9.0),
        heard(PLAIN, avg_logprob=-1.0),
        timed((0.0, 1.0), (9.0, 10.4)),
        timed((3.0, 4.0), (2.6, 5.0)),
        heard("one two three four five six seven eight", 1.0),
        heard("one two three four five six seven", 0.1),
        heard(PLAIN, read_until=9.1),
        Recognized((), 10.0, avg_logprob=-3.0, no_speech_prob=0.5),
    ],
)
def test_what_people_do_is_no_doubt(found: Recognized) -> None:
    assert find_doubts(found) == frozenset()


def test_scripts_without_blanks_may_have_more_words_a_second() -> None:
    text = "今天天气很好我们去公园散步"
    step = 1.2 / len(text)
    words = tuple(
        Word(word=letter, start=place * step, end=(place + 1) * step) for place, letter in enumerate(text)
    )
    assert find_doubts(Recognized((Segment(text=text, start=0.0, end=1.2, words=words),), 1.2)) == frozenset()
    faster = Recognized((Segment(text=text, start=0.0, end=0.6, words=words),), 1.2)
    assert find_doubts(faster) == {Doubt.HURRIED}


@pytest.mark.parametrize("length", range(1, 7))
def test_a_phrase_of_any_length_can_loop(length: int) -> None:
    phrase = [f"w{number}" for number in range(length)]
    often = phrase * max(4, -(-8 // length))
    assert is_looping(["so", *often, "then"])
    assert not is_looping(["so", *phrase * 3, "then"])
    assert not is_looping([*often, *(f"x{number}" for number in range(3 * len(often)))])


def test_a_loop_is_heard_through_its_marks() -> None:
    assert is_looping(["Yes,", "yes.", "yes!", "Yes", "yes...", "YES", "yes,", "yes?"])


def test_repetition_is_measured_as_whisper_does() -> None:
    assert measure_compression("abc") < 1
    assert measure_compression("la " * 100) > 10


def test_words_are_silence_only_where_the_model_says_so_and_guesses() -> None:
    assert heard("you", avg_logprob=-1.2, no_speech_prob=0.7).silent
    assert not heard("you", avg_logprob=-0.9, no_speech_prob=0.99).silent
    assert not heard("you", avg_logprob=-1.2, no_speech_prob=0.5).silent
    assert not heard("you").silent


def test_the_better_one_has_fewer_doubts_then_more_confidence() -> None:
    loop = heard("you " * 20, 20.0, avg_logprob=-0.1)
    good = heard(PLAIN, avg_logprob=-0.5)
    sure = heard(PLAIN, avg_logprob=-0.2)
    assert choose_better(loop, good) is good
    assert choose_better(good, loop) is good
    assert choose_better(good, sure) is sure
    assert choose_better(sure, good) is sure
    assert choose_better(good, heard(PLAIN, avg_logprob=-0.5)) is good


def test_words_are_given_up_for_none_only_where_silence_is_likely() -> None:
    nothing = Recognized((), 10.0)
    doubtful = heard("you " * 20, 20.0, avg_logprob=-0.4, no_speech_prob=0.3)
    unlikely = heard("you " * 20, 20.0, avg_logprob=-0.4, no_speech_prob=0.8)
    assert choose_better(doubtful, nothing) is doubtful
    assert choose_better(unlikely, nothing) is nothing
    good = heard(PLAIN, avg_logprob=-0.5)
    assert choose_better(Recognized((), 10.0, read_until=0.0), good) is good


@pytest.mark.parametrize(
    ("speech", "words", "found"),
    [
        ([(1.0, 4.0)], [], [((1.0, 4.0),)]),
        ([(1.0, 3.9)], [], []),
        ([(0.0, 9.0)], [(0.5, 2.0), (6.0, 8.0)], [((2.0, 6.0),)]),
        ([(0.0, 9.0)], [(6.0, 6.5), (0.0, 7.0)], []),
        ([(0.0, 2.0), (3.0, 5.0), (8.0, 9.0)], [(8.0, 8.5)], [((0.0, 2.0), (3.0, 5.0))]),
        ([(0.0, 2.0), (7.0, 9.0)], [(2.0, 7.0)], []),
        ([(0.0, 12.0)], [(5.0, 6.0)], [((0.0, 5.0),), ((6.0, 12.0),)]),
    ],
)
def test_speech_without_words_is_counted_between_words(
    speech: list[Span], words: list[Span], found: list[tuple[Span, ...]]
) -> None:
    segments = timed(*words).segments if words else ()
    assert find_wordless_speech(speech, segments) == found


def test_a_segment_without_word_times_counts_as_one_word() -> None:
    assert find_wordless_speech([(0.0, 9.0)], [Segment(text="all of it", start=0.0, end=9.0)]) == []
    assert find_wordless_speech([(0.0, 9.0)], [Segment(text=" ", start=0.0, end=9.0)]) == [((0.0, 9.0),)]


def test_marks_alone_are_no_words() -> None:
    words = (Word(word=".", start=0.0, end=4.0), Word(word="♪", start=4.0, end=9.0))
    segments = [Segment(text=". ♪", start=0.0, end=9.0, words=words)]
    assert find_wordless_speech([(0.0, 9.0)], segments) == [((0.0, 9.0),)]
