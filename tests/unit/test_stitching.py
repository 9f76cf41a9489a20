from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import starmap
from math import inf, nan

import msgspec
import pysubs2
import pytest

from batchscribe.core.text.caption_style import DEFAULT_STYLE
from batchscribe.core.text.cues import make_cues, make_paragraphs
from batchscribe.core.text.stitching import MISSING, PartInput, compute_digest, stitch
from batchscribe.core.text.subtitles import FORMATS, render
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import AudioRef, ForeignTranscript, Segment, Transcript, Word
from batchscribe.core.text.word_assignment import ChunkPlace, assign_to_chunks
from batchscribe.errors import MisconfiguredError


def spoken(text: str, start: float = 0.0, *, pace: float = 0.4) -> Segment:
    words = tuple(
        Word(word=word, start=start + place * pace, end=start + (place + 1) * pace)
        for place, word in enumerate(text.split())
    )
    return Segment(text=text, start=start, end=words[-1].end, words=words)


def transcript(
    *segments: Segment,
    duration: float = 10.0,
    flags: tuple[str, ...] = (),
    overlap: float = 0.0,
    position: float | None = None,
) -> Transcript:
    return Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration=duration,
        overlap=overlap,
        position=position,
        language="en",
        flags=flags,
        engine="scripted",
        model="scripted",
        settings_hash="h",
        audio=AudioRef(name="chunk-001.webm", key="s/chunk-001.webm", etag="e"),
        run="r",
        created_at=datetime(2024, 5, 1, tzinfo=UTC),
    )


def part(
    number: int, content: Transcript | ForeignTranscript | None, seconds: float | None = None
) -> PartInput:
    return PartInput(
        key=f"s/chunk-{number:03}.webm",
        transcript=f"s/transcription-chunk-{number:03}.json",
        etag=f"etag-{number}",
        content=content,
        seconds=seconds,
    )


def test_each_chunk_begins_where_the_ones_before_it_end() -> None:
    session = stitch(
        "s/",
        [
            part(1, transcript(spoken("one two", 1.0), duration=10.25)),
            part(2, transcript(duration=5.0, flags=("no-speech",))),
            part(3, transcript(spoken("three", 0.5), duration=2.0)),
        ],
    )
    assert session.text == "one two three"
    assert [item.offset for item in session.parts] == [0, 10.25, 15.25]
    assert session.segments[1].start == 15.75
    assert session.segments[1].words[0].start == 15.75
    assert session.duration == 17.25
    assert session.language == "en"
    assert session.parts[1].flags == ("no-speech",)


@pytest.mark.parametrize(("seconds", "offset"), [(None, 10.0), (7.5, 17.5)])
def test_a_missing_chunk_is_flagged_and_takes_its_time(seconds: float | None, offset: float) -> None:
    session = stitch(
        "s/", [part(1, transcript()), part(2, None, seconds), part(3, transcript(spoken("end"), duration=1))]
    )
    assert session.parts[1].flags == (MISSING,)
    assert session.parts[2].offset == offset
    assert "[missing: chunk-002.webm]" in render(session, "txt").decode()


def offsets(*contents: Transcript | None) -> list[float]:
    return [item.offset for item in stitch("s/", list(starmap(part, enumerate(contents)))).parts]


def test_a_chunk_begins_before_the_end_of_the_one_before_it_where_both_have_a_part() -> None:
    assert offsets(transcript(), transcript(overlap=0.5), transcript(overlap=0.25)) == [0, 9.5, 19.25]
    session = stitch("s/", [part(1, transcript()), part(2, transcript(spoken("two", 1.0), overlap=0.5))])
    assert session.segments[0].words[0].start == 10.5
    assert session.duration == 19.5


@pytest.mark.parametrize(
    ("before", "overlap", "offset"),
    [
        (transcript(duration=0.3), 0.5, 0.0),
        (None, 0.5, 0.0),
        (transcript(), 30.0, 8.0),
        (transcript(), -1, 10),
    ],
)
def test_an_overlap_is_no_longer_than_either_chunk(
    before: Transcript | None, overlap: float, offset: float
) -> None:
    assert offsets(before, transcript(overlap=overlap, duration=2))[1] == offset


def test_a_missing_chunk_leaves_its_true_gap_where_time_stamps_tell() -> None:
    known = [transcript(position=0.0), None, None, transcript(position=30.5), transcript(position=40.5)]
    assert offsets(*known) == [0, 10, 10, 30.5, 40.5]
    assert offsets(transcript(), None, transcript(position=20.0)) == [0, 10, 10]


def test_time_stamps_count_from_where_their_recording_begins() -> None:
    two = [transcript(position=0.0), transcript(position=10.0), transcript(position=0.0), None]
    assert offsets(*two, transcript(position=20.0)) == [0, 10, 20, 30, 40]
    late = [transcript(position=100.0), None, transcript(position=120.0), transcript(), None]
    assert offsets(*late, transcript(position=150.0)) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("position", "overlap", "offset"),
    [
        (9.9, 0.0, 9.9),
        (8.9, 0.0, 10),
        (8.1, 2.0, 8.1),
        (7.9, 2.0, 8.0),
        (nan, 0.0, 10),
        (inf, 0.0, 10),
        (-5.0, 0, 10),
    ],
)
def test_time_stamps_that_cannot_be_true_are_not_believed(
    position: float, overlap: float, offset: float
) -> None:
    assert offsets(transcript(position=0.0), transcript(position=position, overlap=overlap))[1] == offset


def test_short_chunks_that_each_begin_a_recording_lie_behind_each_other() -> None:
    assert offsets(*[transcript(position=0.0, duration=0.5)] * 3) == [0, 0.5, 1.0]


def test_a_session_never_ends_before_what_was_placed_in_it() -> None:
    inside = transcript(position=9.2, duration=0.3)
    assert offsets(transcript(position=0.0), inside, transcript()) == [0, 9.2, 10]


def test_after_wrong_time_stamps_later_ones_count_from_there() -> None:
    known = [transcript(position=50.0), transcript(position=3.0), None, transcript(position=23.0)]
    assert offsets(*known) == [0, 10, 20, 30]


def test_a_word_that_a_cut_goes_through_is_whole_in_the_session() -> None:
    begun = Word(word="over", start=0.0, end=0.5, starts_before=0.25)
    ended = Word(word="cut", start=9.5, end=10.0, ends_after=0.5)
    segment = Segment(text="over cut", start=0.0, end=10.0, words=(begun, ended))
    session = stitch("s/", [part(1, transcript()), part(2, transcript(segment)), part(3, transcript())])
    (told,) = session.segments
    assert [(word.start, word.end) for word in told.words] == [(9.75, 10.5), (19.5, 20.5)]
    assert (told.start, told.end) == (9.75, 20.5)
    found = json.loads(render(session, "json"))["segments"][0]["words"]
    assert all("starts_before" not in word and "ends_after" not in word for word in found)
    assert [(cue.start, cue.end) for cue in make_cues(session)] == [(9.75, 10.75), (19.5, 20.5)]


def test_no_word_begins_before_its_session() -> None:
    early = Word(word="early", start=0.0, end=0.5, starts_before=0.25)
    session = stitch("s/", [part(1, transcript(Segment(text="early", start=0.0, end=0.5, words=(early,))))])
    assert (session.segments[0].start, session.segments[0].words[0].start) == (0, 0)


def test_transcripts_of_the_original_system_are_taken_as_they_are() -> None:
    timed = ForeignTranscript(segments=(spoken("hello", 2.0),), text="hello")
    untimed = ForeignTranscript(text="only text", duration=4.0)
    session = stitch("s/", [part(1, timed), part(2, untimed)])
    assert session.parts[1].offset == pytest.approx(2.4)
    assert session.parts[1].flags == ("no-times",)
    assert session.segments[1].end == pytest.approx(6.4)


def test_the_digest_changes_with_what_went_in_and_with_nothing_else() -> None:
    one, two = part(1, transcript()), part(2, transcript())
    assert compute_digest([one, two]) == compute_digest([one, part(2, transcript(spoken("same etag")))])
    variants = [[one], [two, one], [one, part(2, None)], [one, two, part(3, None)]]
    assert len({compute_digest([one, two]), *map(compute_digest, variants)}) == 5


def test_cues_can_be_read() -> None:
    text = "this sentence goes on and on and has far more words than two lines can hold " * 3
    session = stitch("s/", [part(1, transcript(spoken(text.strip()), duration=60))])
    shown = list(make_cues(session))
    assert len(shown) >= 3
    for cue in shown:
        lines = cue.text.split("\n")
        assert len(lines) <= DEFAULT_STYLE.lines
        assert max(map(len, lines)) <= DEFAULT_STYLE.columns
        assert 0 < cue.end - cue.start <= DEFAULT_STYLE.longest
    assert " ".join(cue.text.replace("\n", " ") for cue in shown).split() == text.split()


def test_a_pause_and_a_sentence_end_a_cue() -> None:
    quiet = Segment(
        text="first then",
        start=0,
        end=5,
        words=(Word(word="first", start=0, end=0.5), Word(word="then", start=4.5, end=5)),
    )
    long = spoken("a whole sentence of more than forty letters. Then another")
    session = stitch("s/", [part(1, transcript(quiet)), part(2, transcript(long))])
    texts = [cue.text.replace("\n", " ") for cue in make_cues(session)]
    assert texts == ["first", "then", "a whole sentence of more than forty letters.", "Then another"]


def test_languages_without_blanks_get_none() -> None:
    segment = Segment(
        text="今天天气",
        start=0,
        end=2,
        words=(Word(word="今天", start=0, end=1), Word(word="天气", start=1, end=2)),
    )
    assert [cue.text for cue in make_cues(stitch("s/", [part(1, transcript(segment))]))] == ["今天天气"]


def test_words_are_guessed_where_a_segment_has_none() -> None:
    segment = Segment(text="no words here, " * 12, start=0.0, end=20.0)
    shown = list(make_cues(stitch("s/", [part(1, transcript(segment, duration=20))])))
    assert len(shown) > 2
    assert shown[-1].end == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("letter", ["\u4eca", "\u0e01\u0e49", "x"])
def test_a_text_without_blanks_is_cut_into_cues_that_can_be_read(letter: str) -> None:
    text = letter * 600
    segment = Segment(text=text, start=0.0, end=200.0)
    shown = list(make_cues(stitch("s/", [part(1, transcript(segment, duration=200))])))
    assert "".join(cue.text for cue in shown).replace("\n", "") == text
    assert max(len(cue.text.splitlines()) for cue in shown) <= DEFAULT_STYLE.lines
    assert max(len(line) for cue in shown for line in cue.text.splitlines()) <= DEFAULT_STYLE.columns
    assert max(cue.end - cue.start for cue in shown) <= DEFAULT_STYLE.longest + 0.01
    assert all(line.startswith(letter[0]) for cue in shown for line in cue.text.splitlines()), (
        "a mark stays with its letter"
    )
    assert [cue.start for cue in shown[1:]] == pytest.approx([cue.end for cue in shown[:-1]])
    assert shown[-1].end == pytest.approx(200, abs=0.1)


def test_a_slow_word_stays_whole() -> None:
    segment = Segment(text="wait", start=0.0, end=20.0)
    assert [cue.text for cue in make_cues(stitch("s/", [part(1, transcript(segment, duration=20))]))] == [
        "wait"
    ]


def test_subtitle_files_are_read_back() -> None:
    session = stitch("s/", [part(1, transcript(spoken("{not} a <b>tag</b> & so on", 1.0)))])
    srt = render(session, "srt").decode()
    assert "{not} a <b>tag</b> & so on" in srt
    assert "00:00:01,000 --> " in srt
    vtt = render(session, "vtt").decode()
    assert vtt.startswith("WEBVTT\n")
    assert "{not} a &lt;b&gt;tag&lt;/b&gt; &amp; so on" in vtt
    for text, kind in ((srt, "srt"), (vtt, "vtt")):
        assert pysubs2.SSAFile.from_string(text, format_=kind)[0].start == 1000


def test_text_comes_in_paragraphs() -> None:
    session = stitch(
        "s/", [part(1, transcript(spoken("one"), spoken("two", 1.0), spoken("three", 9.0), duration=12))]
    )
    assert make_paragraphs(session) == ["one two", "three"]
    assert render(session, "txt") == b"one two\n\nthree\n\n"


def test_two_parties_are_told_apart_in_every_format() -> None:
    said = [("one", 0.0, 1.0, 1), ("two", 1.0, 2.0, 2), ("three", 2.0, 3.0, 2), ("four", 9.0, 9.5, 1)]
    segments = tuple(Segment(text=text, start=start, end=end, channel=who) for text, start, end, who in said)
    session = msgspec.structs.replace(stitch("s/", []), segments=segments)
    assert make_paragraphs(session) == ["Channel 1: one", "Channel 2: two three", "Channel 1: four"]
    assert [cue.speaker for cue in make_cues(session)] == [f"Channel {who}" for who in (1, 2, 2, 1)]
    assert b"\n[Channel 1] one\n" in render(session, "srt")
    assert b"\n<v Channel 2>two\n" in render(session, "vtt")


def test_json_is_the_session_itself() -> None:
    session = stitch("s/", [part(1, transcript(spoken("one")))])
    found = json.loads(render(session, "json"))
    assert found["format"] == "batchscribe.session"
    assert found["segments"][0]["words"][0]["word"] == "one"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_session_without_a_word_is_a_file_all_the_same(kind: str) -> None:
    assert isinstance(render(stitch("s/", [part(1, transcript())]), kind), bytes)
    assert isinstance(render(stitch("s/", []), kind), bytes)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(MisconfiguredError, match="srt, vtt, txt, tsv, json"):
        render(stitch("s/", []), "docx")


def test_times_keep_to_their_window() -> None:
    wild = Segment(
        text="a b c",
        start=-1,
        end=99,
        words=(
            Word(word="a", start=-0.5, end=0.4),
            Word(word="b", start=0.2, end=0.1),
            Word(word="c", start=3.0, end=99),
        ),
    )
    (kept,) = within([wild], 5.0)
    assert [(word.start, word.end) for word in kept.words] == [(0, 0.4), (0.4, 0.4), (3.0, 5.0)]
    assert (kept.start, kept.end) == (0, 5.0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("ill", "-disposed", "man"), "ill-disposed man"),
        (("今天", "天气"), "今天天气"),
        (("an", "ill"), "an ill"),
    ],
)
def test_what_a_cut_goes_through_is_written_as_it_was_said(words: tuple[str, ...], text: str) -> None:
    timed = tuple(Word(word=word, start=9.5 + at / 2, end=10 + at / 2) for at, word in enumerate(words))
    whole = Segment(text=text, start=9.5, end=timed[-1].end, words=timed)
    places = [ChunkPlace(begin=0, end=10, first=0, last=10), ChunkPlace(begin=10, end=20, first=10, last=20)]
    parts = [part(at, transcript(*mine)) for at, mine in enumerate(assign_to_chunks([whole], places), 1)]
    session = stitch("s/", parts)
    assert session.text == text
    assert make_paragraphs(session) == [text]


def test_a_word_whose_beginning_is_missing_is_not_glued_to_what_comes_before() -> None:
    rest = Segment(text="-disposed", start=0.0, end=0.5, attached=True)
    early = transcript(spoken("early"))
    gone = part(2, None, seconds=10.0)
    assert stitch("s/", [part(1, early), gone, part(3, transcript(rest))]).text == "early -disposed"
    other = msgspec.structs.replace(rest, channel=2)
    late = transcript(spoken("late", 9.6))
    assert stitch("s/", [part(1, late), part(2, transcript(other))]).text == "late -disposed"
    assert stitch("s/", [part(1, late), part(2, transcript(rest))]).text == "late-disposed"
