from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscribe.core.text.caption_style import DEFAULT_STYLE
from batchscribe.core.text.cues import make_cues
from batchscribe.core.text.stitching import MISSING, POSITION_SLACK, PartInput, stitch
from batchscribe.core.text.timing import within
from batchscribe.core.text.transcripts import AudioRef, ForeignTranscript, Segment, Transcript, Word

# A slow machine is no finding.
calm = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(alphabet="abc .,?{}<&今\n", max_size=60)
moments = st.floats(-10, 200, allow_nan=False)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    words = tuple(
        Word(word=word, start=draw(moments), end=draw(moments))
        for word in draw(st.lists(st.text(alphabet="abc今", min_size=1, max_size=12), max_size=8))
    )
    text = " ".join(word.word for word in words) if words else draw(texts)
    return Segment(text=text, start=draw(moments), end=draw(moments), words=words)


@st.composite
def parts(draw: st.DrawFn) -> PartInput:
    """A chunk that begins where the one before it ends."""
    seconds = draw(st.floats(0, 100))
    clean = within(draw(st.lists(segments(), max_size=4)), seconds)
    content = draw(st.sampled_from([ForeignTranscript(segments=clean, duration=seconds), None]))
    key = draw(st.text(min_size=1, max_size=10))
    return PartInput(key=key, transcript=key + ".json", content=content, seconds=seconds)


@st.composite
def placed(draw: st.DrawFn) -> PartInput:
    """A chunk that says how it lies to others, be it true or not."""
    seconds = draw(st.floats(0, 100))
    cut = st.one_of(st.just(msgspec.UNSET), st.floats(0.001, 3))
    clean = [
        msgspec.structs.replace(
            segment,
            words=tuple(
                msgspec.structs.replace(word, starts_before=draw(cut), ends_after=draw(cut))
                for word in segment.words
            ),
        )
        for segment in within(draw(st.lists(segments(), max_size=4)), seconds)
    ]
    content = Transcript(
        text="",
        segments=tuple(clean),
        duration=seconds,
        overlap=draw(st.one_of(st.just(0.0), st.floats(-1, 200))),
        position=draw(st.one_of(st.none(), st.just(0.0), st.floats(-5, 500), st.just(float("nan")))),
        engine="scripted",
        model="scripted",
        settings_hash="h",
        audio=AudioRef(name="n", key="k", etag="e"),
        run="r",
        created_at=datetime(2026, 5, 1, tzinfo=UTC),
    )
    return PartInput(key="k", transcript="k.json", content=draw(st.sampled_from([content, content, None])))


@calm
@given(st.lists(segments(), max_size=5), st.floats(0, 40))
def test_clipped_times_are_inside_and_in_order(found: list[Segment], seconds: float) -> None:
    clean = within(found, seconds)
    assert [segment.text for segment in clean] == [segment.text for segment in found]
    moments = [time for segment in clean for word in segment.words for time in (word.start, word.end)]
    assert moments == sorted(moments)
    assert all(0 <= segment.start <= segment.end <= seconds for segment in clean)
    assert all(one.end <= two.start for one, two in pairwise(clean))
    assert within(clean, seconds) == clean


@calm
@given(st.lists(parts(), max_size=6))
def test_a_session_is_its_chunks_end_to_end(given_parts: list[PartInput]) -> None:
    session = stitch("s/", given_parts)
    assert len(session.parts) == len(given_parts)
    assert all(abs(one.offset + one.duration - two.offset) < 0.002 for one, two in pairwise(session.parts))
    starts = [segment.start for segment in session.segments]
    assert starts == sorted(starts)
    assert all(segment.end <= session.duration + 0.002 for segment in session.segments)
    said = sum(len(part.content.segments) for part in given_parts if part.content)
    assert len(session.segments) == said
    assert [MISSING in part.flags for part in session.parts] == [not part.content for part in given_parts]


@calm
@given(st.lists(placed(), max_size=6))
def test_wherever_chunks_say_they_lie_words_keep_their_true_times_in_them(
    given_parts: list[PartInput],
) -> None:
    session = stitch("s/", given_parts)
    said = [
        (segment, part.offset)
        for given_part, part in zip(given_parts, session.parts, strict=True)
        for segment in (given_part.content.segments if given_part.content else ())
    ]
    for told, (segment, offset) in zip(session.segments, said, strict=True):
        for word, chunks in zip(told.words, segment.words, strict=True):
            assert word.start == pytest.approx(max(0.0, chunks.true_start + offset), abs=0.002)
            assert word.end == pytest.approx(chunks.true_end + offset, abs=0.002)
            assert (word.starts_before, word.ends_after) == (msgspec.UNSET, msgspec.UNSET)
            assert told.start <= word.start
            assert word.end <= told.end


@calm
@given(st.lists(placed(), max_size=6))
def test_a_chunk_begins_no_earlier_than_its_overlap_or_what_stamps_may_be_off(
    given_parts: list[PartInput],
) -> None:
    session = stitch("s/", given_parts)
    end = 0.0
    for given_part, part in zip(given_parts, session.parts, strict=True):
        said = given_part.content.overlap if isinstance(given_part.content, Transcript) else 0.0
        assert part.offset >= max(0.0, end - max(said, POSITION_SLACK)) - 0.002
        end = max(end, part.offset + part.duration)
    assert session.duration == pytest.approx(end, abs=0.002)


@calm
@given(st.lists(st.one_of(parts(), placed()), max_size=4))
def test_every_word_is_shown_once_and_fits(given_parts: list[PartInput]) -> None:
    session = stitch("s/", given_parts)
    shown = list(make_cues(session))
    letters = "".join(segment.text for segment in session.segments)
    # Cues come by their starts, so a word that begins in the chunk before may pass others.
    assert sorted("".join("".join(cue.text for cue in shown).split())) == sorted("".join(letters.split()))
    for cue in shown:
        assert cue.start <= cue.end
        lines = cue.text.split("\n")
        assert len(lines) <= DEFAULT_STYLE.lines or any(
            len(word) > DEFAULT_STYLE.columns for word in letters.split()
        )
        assert max(map(len, lines)) <= DEFAULT_STYLE.columns
