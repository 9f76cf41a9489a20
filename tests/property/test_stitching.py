from __future__ import annotations

from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscribe.core.cues import LINE, LINES, cues
from batchscribe.core.stitching import MISSING, PartInput, stitch
from batchscribe.core.timing import within
from batchscribe.core.transcripts import ForeignTranscript, Segment, Word

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
    seconds = draw(st.floats(0, 100))
    clean = within(draw(st.lists(segments(), max_size=4)), seconds)
    content = draw(st.sampled_from([ForeignTranscript(segments=clean, duration=seconds), None]))
    key = draw(st.text(min_size=1, max_size=10))
    return PartInput(key=key, transcript=key + ".json", content=content, seconds=seconds)


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
@given(st.lists(parts(), max_size=4))
def test_every_word_is_shown_once_and_fits(given_parts: list[PartInput]) -> None:
    session = stitch("s/", given_parts)
    shown = list(cues(session))
    letters = "".join(segment.text for segment in session.segments)
    assert "".join("".join(cue.text for cue in shown).split()) == "".join(letters.split())
    for cue in shown:
        assert cue.start <= cue.end
        lines = cue.text.split("\n")
        assert len(lines) <= LINES or any(len(word) > LINE for word in letters.split())
        assert max(map(len, lines)) <= LINE
