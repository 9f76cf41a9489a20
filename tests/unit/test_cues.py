"""Subtitles as they are read back: the text that was said, on lines and for times that can be read."""

from __future__ import annotations

import html
from itertools import pairwise

import pysubs2
import pytest
import regex

from batchscribe.core.text.cues import LINE, READABLE, make_cues
from batchscribe.core.text.stitching import stitch
from batchscribe.core.text.subtitles import render
from batchscribe.core.text.transcripts import Segment, SessionTranscript, Word

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"


def session(*segments: Segment) -> SessionTranscript:
    empty = stitch("s/", [])
    return SessionTranscript(
        session="s/", text="", segments=segments, duration=30, parts=(), digest=empty.digest
    )


def said(text: str, start: float, end: float, *, channel: int = 1) -> Segment:
    return Segment(text=text, start=start, end=end, channel=channel)


def timed(*words: tuple[str, float, float]) -> Segment:
    spoken = tuple(Word(word=word, start=start, end=end) for word, start, end in words)
    text = " ".join(word.word for word in spoken)
    return Segment(text=text, start=spoken[0].start, end=spoken[-1].end, words=spoken)


def texts_of(file: bytes) -> list[str]:
    """The cues' texts, without number and times, by the format's own rule: a blank line ends a cue."""
    blocks = file.decode().removeprefix("WEBVTT\n\n").rstrip("\n").split("\n\n")
    return [block.split("\n", 2)[2] for block in blocks]


@pytest.mark.parametrize(
    "text", [r"D:\notes\new\home", r"\nabla and \hbar", r"one \N\N two", r"{\i1}braces{\i0}", "a --> b"]
)
def test_the_text_of_a_cue_is_the_text_that_was_said(text: str) -> None:
    transcript = session(Segment(text=text, start=0, end=3))
    assert texts_of(render(transcript, "srt")) == [text]
    assert [html.unescape(shown) for shown in texts_of(render(transcript, "vtt"))] == [text]


@pytest.mark.parametrize("text", ["\u0e01\u0e49", FAMILY, "\u0915\u094d\u0937\u093f", "\U0001f1e9\U0001f1ea"])
@pytest.mark.parametrize("before", ["", "x", "xxx"])
def test_no_line_begins_or_ends_inside_a_grapheme_cluster(text: str, before: str) -> None:
    whole = before + text * 60
    lines = [
        line
        for cue in make_cues(session(Segment(text=whole, start=0, end=6)))
        for line in cue.text.split("\n")
    ]
    assert "".join(lines) == whole
    assert [part for line in lines for part in regex.findall(r"\X", line)] == regex.findall(r"\X", whole)


@pytest.mark.parametrize(
    "text",
    ["今" * 100, "한국어 " * 40, FAMILY * 50, "\u2764\ufe0f" * 60],
    ids=["han", "hangul", "family", "heart"],
)
def test_wide_letters_take_two_columns_of_a_line(text: str) -> None:
    for cue in make_cues(session(Segment(text=text, start=0, end=20))):
        for line in cue.text.split("\n"):
            assert sum(1 if cluster == " " else 2 for cluster in regex.findall(r"\X", line)) <= LINE


def test_a_short_cue_stays_until_it_can_be_read() -> None:
    segments = (
        timed(("yes", 10.0, 10.0)),
        timed(("no", 12.02, 12.06)),
        timed(("well", 14, 14.1), ("ok", 17, 17.05), ("then", 22.9, 23)),
    )
    shown = make_cues(session(*segments))
    assert [cue.start for cue in shown] == [10.0, 12.02, 14, 17, 22.9]
    assert [cue.end - cue.start for cue in shown] == pytest.approx([READABLE] * 5)


def test_a_short_cue_ends_where_the_next_one_of_its_channel_begins() -> None:
    shown = make_cues(session(said("a", 1, 1.1), said("b", 1.2, 1.3, channel=2), said("c", 1.5, 4)))
    assert [(cue.text, cue.end) for cue in shown] == [("a", 1.5), ("b", 2.2), ("c", 4)]


@pytest.mark.parametrize("times", [(3.0, 2.0), (3.0, 3.0), (-5.0, -4.0), (0.0004999, 0.0004999)])
def test_no_cue_ends_before_it_has_begun_and_was_shown(times: tuple[float, float]) -> None:
    shown = make_cues(session(*[Segment(text="some words", start=times[0], end=times[1])] * 3))
    assert all(0 <= cue.start < cue.end for cue in shown)
    for kind in ("srt", "vtt"):
        read = pysubs2.SSAFile.from_string(render(session(said("back", *times)), kind).decode(), format_=kind)
        assert [event.start < event.end for event in read] == [True]


def test_cues_come_by_their_starts() -> None:
    # WebVTT requires it, and two channels' segments overlap.
    long, short = timed(*((f"word{n}", n, n + 1.0) for n in range(20))), said("short", 3.5, 4, channel=2)
    shown = make_cues(session(long, short))
    assert all(one.start <= two.start for one, two in pairwise(shown))


def test_a_session_may_be_longer_than_a_hundred_hours() -> None:
    late = session(Segment(text="late", start=400_000.25, end=400_002))
    assert b"111:06:40,250 --> 111:06:42,000" in render(late, "srt")
    assert b"111:06:40.250 --> 111:06:42.000" in render(late, "vtt")
