"""Subtitles as they are read back: the text that was said, on lines and for times that can be read."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pysubs2
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.core.text.caption_style import (
    DEFAULT_STYLE,
    CaptionPreset,
    CaptionStyle,
    Highlight,
    make_style,
)
from batchscribe.core.text.cues import make_cues
from batchscribe.core.text.stitching import stitch
from batchscribe.core.text.subtitles import render
from batchscribe.core.text.transcripts import Segment, SessionTranscript, Word
from batchscribe.errors import MisconfiguredError

TIMES = st.floats(0, 60, allow_nan=False)
SPEECH = st.lists(
    st.builds(
        lambda text, start, length, who: Segment(text=text, start=start, end=start + length, **who),
        st.text("ab.今 \n", min_size=1, max_size=150).filter(str.strip),
        TIMES,
        st.floats(0, 20),
        st.sampled_from([{"channel": 1}, {"channel": 2}, {"speaker": "Ada"}, {"speaker": "Grace"}, {}]),
    ),
    max_size=8,
)
"""Segments of channels and speakers, at any times: overlapping, dense, and longer than a cue."""
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


def letters(text: str) -> str:
    return "".join(text.split())


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
            assert (
                sum(1 if cluster == " " else 2 for cluster in regex.findall(r"\X", line))
                <= DEFAULT_STYLE.columns
            )


def test_a_sentence_of_wide_letters_ends_its_cue() -> None:
    sentences = (
        "今日はとても良い天気ですから、皆さんと一緒に公園へ行きましょう。",
        "それから美味しいものを食べましょう。",
    )
    shown = make_cues(session(Segment(text="".join(sentences), start=0, end=6)))
    assert [letters(cue.text) for cue in shown] == list(sentences)


def test_no_line_begins_with_a_closing_mark_or_small_letter() -> None:
    text = "今日は、とても良い天気です。」ちょっと「散歩」ー！" * 12
    lines = [line for cue in make_cues(session(said(text, 0, 90))) for line in cue.text.split("\n")]
    assert "".join(lines) == text
    assert len(lines) > 10
    assert not {line[0] for line in lines} & set("、。」ょっー！")


def test_a_short_cue_stays_until_it_can_be_read() -> None:
    segments = (
        timed(("yes", 10.0, 10.0)),
        timed(("no", 12.02, 12.06)),
        timed(("well", 14, 14.1), ("ok", 17, 17.05), ("then", 22.9, 23)),
    )
    shown = make_cues(session(*segments))
    assert [cue.start for cue in shown] == [10.0, 12.02, 14, 17, 22.9]
    assert [cue.end - cue.start for cue in shown] == pytest.approx([DEFAULT_STYLE.shortest] * 5)


def test_a_short_cue_joins_the_next_one_of_its_channel() -> None:
    shown = make_cues(session(said("a", 1, 1.1), said("b", 1.2, 1.3, channel=2), said("c", 1.5, 4)))
    assert [(cue.text, cue.start, cue.end) for cue in shown] == [("a c", 1, 4), ("b", 1.2, 2.2)]


def test_a_last_word_is_not_alone_in_its_cue() -> None:
    text = "This is a sentence of ninety letters, in the middle of which nobody breathes or stops at all."
    shown = make_cues(session(Segment(text=text, start=0, end=6)))
    assert " ".join(cue.text.replace("\n", " ") for cue in shown) == text
    assert [len(cue.text) for cue in shown] == [pytest.approx(len(text) / 2, abs=5)] * 2
    quick = [(word, n * 0.3, n * 0.3 + 0.2) for n, word in enumerate(text.split()[:-1])]
    assert make_cues(session(timed(*quick, ("all.", 9, 9.3))))[-1].text == "all.", "a pause is before it"


def test_speakers_of_one_recording_take_turns_in_the_order_of_their_words() -> None:
    spoken = [("Yes.", 0.5, 0.8, "Ada"), ("No.", 0.9, 1.1, "Grace"), ("Really?", 1.2, 1.6, "Ada")]
    segments = [Segment(text=text, start=start, end=end, speaker=who) for text, start, end, who in spoken]
    shown = make_cues(session(*segments, said("besides", 0.6, 2)))
    own = [(cue.text, cue.start, cue.end) for cue in shown if cue.speaker != "Channel 1"]
    assert own == [("Yes.", 0.5, 1.5), ("No.", 1.5, 2.5), ("Really?", 2.5, 3.5)]


def test_a_short_cue_that_fits_nowhere_delays_the_next_one() -> None:
    full = f"{'x' * 42} {'y' * 42}"
    shown = make_cues(session(Segment(text="a.", start=1, end=1.1), Segment(text=full, start=1.5, end=4.5)))
    assert [(cue.start, cue.end) for cue in shown] == [(1, 2), (2, 4.5)]


@pytest.mark.parametrize("times", [(3.0, 2.0), (3.0, 3.0), (-5.0, -4.0), (0.0004999, 0.0004999)])
def test_no_cue_ends_before_it_has_begun_and_was_shown(times: tuple[float, float]) -> None:
    shown = make_cues(session(*[Segment(text="some words", start=times[0], end=times[1])] * 3))
    assert all(0 <= cue.start < cue.end for cue in shown)
    for kind in ("srt", "vtt"):
        read = pysubs2.SSAFile.from_string(render(session(said("back", *times)), kind).decode(), format_=kind)
        assert [event.start < event.end for event in read] == [True]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_speaker_without_a_text_has_no_cue(text: str) -> None:
    assert [cue.text for cue in make_cues(session(said(text, 1, 2), said("a", 1, 2, channel=2)))] == ["a"]


def test_blanks_that_are_shown_have_their_columns() -> None:
    style = CaptionStyle(columns=20, lines=1)
    shown = make_cues(session(timed(("\u3000", 1, 2), ("x" * 19, 2, 3))), style)
    assert all("\n" not in cue.text for cue in shown)


def test_cues_come_by_their_starts() -> None:
    # WebVTT requires it, and two channels' segments overlap.
    long, short = timed(*((f"word{n}", n, n + 1.0) for n in range(20))), said("short", 3.5, 4, channel=2)
    shown = make_cues(session(long, short))
    assert all(one.start <= two.start for one, two in pairwise(shown))


def test_a_session_may_be_longer_than_a_hundred_hours() -> None:
    late = session(Segment(text="late", start=400_000.25, end=400_002))
    assert b"111:06:40,250 --> 111:06:42,000" in render(late, "srt")
    assert b"111:06:40.250 --> 111:06:42.000" in render(late, "vtt")


@given(SPEECH, st.sampled_from(CaptionPreset))
def test_cues_keep_the_limits_and_all_text(segments: list[Segment], preset: CaptionPreset) -> None:
    style = make_style(preset)
    shown = make_cues(session(*segments), style)
    assert Counter(letters("".join(cue.text for cue in shown))) == Counter(
        letters("".join(segment.text for segment in segments))
    )
    for cue in shown:
        assert style.shortest - 0.001 <= cue.end - cue.start <= style.longest + 0.001
        assert len(cue.text.split("\n")) <= style.lines
    channels = {f"Channel {number}" for number in (1, 2)}
    for names in ({"Channel 1"}, {"Channel 2"}, {cue.speaker for cue in shown} - channels):
        own = [cue for cue in shown if cue.speaker in names]
        assert all(two.start - one.end >= style.gap - 0.001 for one, two in pairwise(own))


def test_a_long_text_stays_until_it_is_read_if_there_is_room() -> None:
    text = "forty columns of text spoken too quickly"
    (shown,) = make_cues(session(Segment(text=text, start=0, end=1)), make_style(CaptionPreset.NETFLIX))
    assert shown.end == pytest.approx(len(text) / 20)


def test_settings_change_a_preset_and_contradictions_are_refused() -> None:
    assert make_style(CaptionPreset.BBC, lines=1, gap=None) == replace(make_style(CaptionPreset.BBC), lines=1)
    with pytest.raises(MisconfiguredError, match="CAPTION_SHORTEST_SECONDS"):
        make_style(CaptionPreset.BBC, shortest=9.0)


def test_webvtt_marks_the_word_that_is_spoken() -> None:
    whole = session(timed(("a<b", 0.0, 0.4), ("two", 0.5, 0.9), ("three", 0.5, 1.2)))
    file = render(whole, "vtt", CaptionStyle(highlight=Highlight.WORDS)).decode()
    assert "a&lt;b <00:00:00.500><c>two three</c>" in file
    assert len(pysubs2.SSAFile.from_string(file, format_="vtt")) == 1


def test_speakers_are_named_unless_they_are_off() -> None:
    whole = session(said("hello", 1, 3), said("yes", 4, 5, channel=2))
    assert texts_of(render(whole, "srt")) == ["[Channel 1] hello", "[Channel 2] yes"]
    assert texts_of(render(whole, "vtt")) == ["<v Channel 1>hello", "<v Channel 2>yes"]
    assert texts_of(render(whole, "srt", CaptionStyle(speakers=False))) == ["hello", "yes"]


def test_tab_separated_values_are_whispers() -> None:
    whole = session(Segment(text=" one\ttwo ", start=0.5, end=1.2345))
    assert render(whole, "tsv") == b"start\tend\ttext\n500\t1234\tone two\n"
