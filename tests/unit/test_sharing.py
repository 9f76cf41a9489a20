from __future__ import annotations

import msgspec
import pytest

from batchscribe.core.text.spelling import spell_words
from batchscribe.core.text.transcripts import Segment, Word
from batchscribe.core.text.word_assignment import ChunkPlace, assign_to_chunks, split_segments_at


def segment(text: str, *words: tuple[str, float, float], channel: int = 1) -> Segment:
    timed = tuple(Word(word=word, start=start, end=end) for word, start, end in words)
    return Segment(text=text, start=words[0][1], end=words[-1][2], words=timed, channel=channel)


def place(begin: float, end: float, **known: float | None) -> ChunkPlace:
    """A place without overlaps; published where `known` is given."""
    return ChunkPlace(begin=begin, end=end, first=begin, last=end, published=bool(known), **known)


PAIR = (place(0, 10), place(10, 20))


def texts(found: list[tuple[Segment, ...]]) -> list[list[str]]:
    return [[segment.text for segment in mine] for mine in found]


def test_a_segment_over_a_seam_is_split_between_its_words() -> None:
    over = segment(
        "Well, (yes), he said.", ("Well,", 8, 9), ("yes", 9.2, 9.9), ("he", 10.1, 11), ("said.", 11, 12)
    )
    before, after = assign_to_chunks([over], PAIR)
    assert [part.text for part in (*before, *after)] == ["Well, (yes),", "he said."]
    assert (before[0].start, before[0].end, after[0].start, after[0].end) == (8, 9.9, 0.1, 2)
    assert [part.channel for part in (*before, *after)] == [1, 1]


def test_a_segment_is_divided_between_its_words() -> None:
    parts = split_segments_at(
        [segment("One, two three", ("One,", 1, 2), ("two", 6, 7), ("three", 7, 8))], [4.0]
    )
    assert [(part.text, part.start, part.end) for part in parts] == [("One,", 1, 2), ("two three", 6, 8)]
    whole = Segment(text="no times of words", start=0, end=9)
    assert list(split_segments_at([whole], [4.0])) == [whole]


def test_a_cut_through_a_word_is_kept_beside_its_time() -> None:
    ((word,),) = [part.words for part in assign_to_chunks([segment("over", ("over", 9.25, 11))], PAIR)[1]]
    assert (word.start, word.end, word.starts_before) == (0, 1, 0.75)
    assert word.ends_after is msgspec.UNSET
    assert (word.true_start, word.true_end) == (-0.75, 1)
    ((word,),) = [part.words for part in assign_to_chunks([segment("over", ("over", 9, 10.5))], PAIR)[0]]
    assert (word.start, word.end, word.ends_after) == (9, 10, 0.5)
    assert word.starts_before is msgspec.UNSET


def test_an_overlap_is_shared_in_its_middle() -> None:
    overlapping = (
        ChunkPlace(begin=0, end=10, first=0, last=9.75),
        ChunkPlace(begin=9.5, end=20, first=9.75, last=20),
    )
    one, two = ("one", 9.5, 9.7), ("two", 9.7, 9.9)
    before, after = assign_to_chunks([segment("one two", one, two)], overlapping)
    assert texts([before, after]) == [["one"], ["two"]]
    assert after[0].words[0].start == 0.2
    assert after[0].words[0].starts_before is msgspec.UNSET


@pytest.mark.parametrize(("start", "end", "at"), [(8, 11, 0), (9, 12, 1), (-3, -1, 0), (22, 25, 1)])
def test_a_segment_without_words_goes_whole_where_its_middle_is(start: float, end: float, at: int) -> None:
    found = assign_to_chunks([Segment(text="no words", start=start, end=end)], PAIR)
    assert [len(mine) for mine in found] == [1 - at, at]
    assert 0 <= found[at][0].start <= found[at][0].end <= 10


def test_what_lies_outside_goes_to_the_nearest() -> None:
    late = (ChunkPlace(begin=0, end=10, first=1, last=10), ChunkPlace(begin=10, end=20, first=10, last=19))
    found = assign_to_chunks([segment("a", ("a", 0.1, 0.5)), segment("b", ("b", 19.2, 19.9))], late)
    assert texts(found) == [["a"], ["b"]]
    assert (found[0][0].start, found[1][0].end) == (0.1, 9.9)


@pytest.mark.parametrize("text", ["", "  "])
def test_without_a_text_there_is_no_segment(text: str) -> None:
    assert texts(
        assign_to_chunks([Segment(text=text, start=1, end=2), segment(text, (text, 3, 4))], PAIR)
    ) == [[], []]
    assert texts(assign_to_chunks([segment(text, ("word", 3, 4))], PAIR)) == [["word"], []]


@pytest.mark.parametrize(
    ("start", "end", "whose"),
    [
        (8.0, 8.9, None),  # it is what the published one ends with
        (9.0, 9.9, None),  # it heard this, and wrote nothing
        (9.3, 10.5, 1),  # a cut kept it from this
        (10.1, 10.4, 1),
        (18.5, 20.4, 1),
        (19.2, 21.0, 1),
        (20.1, 20.9, None),
        (21.0, 21.9, None),
        (8.5, 9.2, None),  # heard again, some milliseconds off
    ],
)
def test_what_neighbours_published_is_not_written_again(start: float, end: float, whose: int | None) -> None:
    around = [
        place(0, 10, words_from=0.0, words_until=8.9),
        place(10, 20),
        place(20, 30, words_from=21.0, words_until=29.0),
    ]
    found = assign_to_chunks([segment("word", ("word", start, end))], around)
    assert [bool(mine) for mine in found] == [False, whose == 1, False]


def test_what_a_published_one_wrote_beyond_the_seam_is_known() -> None:
    around = [
        ChunkPlace(begin=0, end=10, first=0, last=9.75, published=True, words_from=1.0, words_until=9.95),
        ChunkPlace(begin=9.5, end=20, first=9.75, last=19.75),
        ChunkPlace(
            begin=19.5, end=30, first=19.75, last=30, published=True, words_from=19.55, words_until=29.0
        ),
    ]
    known = [("a", 9.75, 9.95), ("b", 19.55, 19.75)]
    assert texts(assign_to_chunks([segment("a new b", known[0], ("new", 10, 11), known[1])], around)) == [
        [],
        ["new"],
        [],
    ]


@pytest.mark.parametrize(("start", "end", "at"), [(9.0, 11.2, 0), (9.8, 12.0, 2)])
def test_a_word_over_a_published_one_without_words_goes_to_whom_most_of_it_belongs(
    start: float, end: float, at: int
) -> None:
    around = [place(0, 10), place(10, 11, words_from=None), place(11, 20)]
    found = assign_to_chunks([segment("long", ("long", start, end))], around)
    assert [bool(mine) for mine in found] == [number == at for number in range(3)]


def test_a_word_that_reached_over_a_short_chunk_is_not_written_behind_it() -> None:
    around = [
        place(0, 10, words_from=1.0, words_until=10.7),
        place(10, 10.3, words_from=None, words_until=None),
        place(10.3, 20),
    ]
    assert texts(assign_to_chunks([segment("long", ("long", 9.7, 10.7))], around)) == [[], [], []]


@pytest.mark.parametrize(
    ("text", "words", "pieces"),
    [
        (' Hello, "world" - yes. ', ["Hello", "world", "yes"], [" Hello, ", '"world" ', "- yes. "]),
        ("今天，天气", ["今天", "天气"], ["今天，", "天气"]),
        ("the the then", ["the", "the", "then"], ["the ", "the ", "then"]),
        ("a b", ["a", "c"], ["a ", "c "]),
    ],
)
def test_a_text_is_cut_between_its_words(text: str, words: list[str], pieces: list[str]) -> None:
    timed = [(word, float(at), at + 1.0) for at, word in enumerate(words)]
    assert spell_words(segment(text, *timed)) == pieces


def test_a_part_that_goes_on_without_a_blank_is_marked() -> None:
    hyphen = segment(
        "an ill-disposed man", ("an", 8, 9), ("ill", 9, 9.9), ("-disposed", 10, 11), ("man", 11, 12)
    )
    blanks = segment("an ill disposed", ("an", 8, 9), ("ill", 9, 9.9), ("disposed", 10, 11))
    assert [part.attached for mine in assign_to_chunks([hyphen], PAIR) for part in mine] == [
        msgspec.UNSET,
        True,
    ]
    assert [part.attached for mine in assign_to_chunks([blanks], PAIR) for part in mine] == [
        msgspec.UNSET
    ] * 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((" ill", "-disposed", " man"), " ill-disposed man"),
        (("ill", "-disposed", "man"), "ill -disposed man "),
    ],
)
def test_words_that_do_not_match_their_text_keep_the_blanks_they_have(
    words: tuple[str, ...], text: str
) -> None:
    assert "".join(spell_words(segment("something else", *((word, 0, 1) for word in words)))) == text
