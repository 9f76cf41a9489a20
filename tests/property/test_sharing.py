"""A text with known times, cut into chunks at will: whatever is heard when, each word is written once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.transcripts import AudioRef, Segment, SessionTranscript, Transcript, Word
from batchscribe.core.text.word_assignment import ChunkPlace, assign_to_chunks

# A slow machine is no finding.
calm = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LONGEST = 2.0
"""Seconds of the longest word."""
Shares = Mapping[int, tuple[Segment, ...]]


@dataclass(frozen=True)
class Said:
    """A word, and when it is said: seconds since the beginning of everything."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Recording:
    chunks: tuple[tuple[float, float], ...]
    """When each begins and ends."""
    said: tuple[Said, ...]
    together: int
    """How many words the engine puts into one segment."""
    between: str
    """What it writes between two words."""

    def apart(self, chunk: int) -> float:
        """Seconds between this chunk and the one before it; negative where they overlap."""
        return round(self.chunks[chunk][0] - self.chunks[chunk - 1][1], 6) if chunk else 0.0

    def heard(self, stretch: Sequence[int]) -> tuple[Said, ...]:
        begin, end = self.chunks[stretch[0]][0], self.chunks[stretch[-1]][1]
        near = 0.001  # less is nothing: engines tell times in milliseconds
        return tuple(word for word in self.said if begin - near <= word.start and word.end <= end + near)


@st.composite
def recordings(draw: st.DrawFn, shortest: float = 0.3) -> Recording:
    lengths = st.one_of(st.floats(shortest, 5), st.floats(shortest, 60), st.floats(60, 7200))
    chunks: list[tuple[float, float]] = []
    for length in draw(st.lists(lengths.map(_samples), min_size=1, max_size=7)):
        before = chunks[-1][1] if chunks else 0.0
        chunks.append(_behind(draw, length, before, before - chunks[-1][0] if chunks else 0.0))
    return Recording(
        chunks=tuple(chunks),
        said=_said(draw, chunks),
        together=draw(st.integers(1, 5)),
        between=draw(st.sampled_from([" ", ", ", ""])),
    )


def _samples(seconds: float) -> float:
    return round(seconds * 16_000) / 16_000


def _behind(draw: st.DrawFn, length: float, end: float, before: float) -> tuple[float, float]:
    """A chunk behind one that ends at `end`: it touches it, overlaps it, or leaves a gap."""
    most = min(length, before, 2.5)
    apart = draw(st.one_of(st.just(0.0), st.floats(-most, 0), st.floats(-most, 0), st.floats(0.1, 100)))
    begin = end + (_samples(apart) if before else 0.0)
    return begin, begin + length


def _said(draw: st.DrawFn, chunks: Sequence[tuple[float, float]]) -> tuple[Said, ...]:
    """Words where it matters: about the cuts and the seams."""
    seams = [(end + begin) / 2 for (_, end), (begin, _) in pairwise(chunks)]
    near = st.tuples(st.floats(-2.5, 2.5), st.floats(0.04, LONGEST))
    found: list[tuple[float, float]] = []
    for moment in (*(time for chunk in chunks for time in chunk), *seams):
        for offset, length in draw(st.lists(near, max_size=5)):
            found.append((round(moment + offset, 3), length))
    words: list[Said] = []
    at = 0.0
    for start, length in sorted(found):
        if start >= at:
            at = round(start + length, 3)
            words.append(Said(f"w{len(words)}", start, at))
    return tuple(words)


def engine(recording: Recording, stretch: Sequence[int]) -> list[Segment]:
    """What is heard in the stretch: all words that are whole in it, on its clock."""
    begin = recording.chunks[stretch[0]][0]
    words = [
        Word(word=word.name, start=round(word.start - begin, 3), end=round(word.end - begin, 3))
        for word in recording.heard(stretch)
    ]
    groups = [words[at : at + recording.together] for at in range(0, len(words), recording.together)]
    return [
        Segment(
            text=recording.between.join(word.word for word in group),
            start=group[0].start,
            end=group[-1].end,
            words=tuple(group),
        )
        for group in groups
    ]


def places(recording: Recording, stretch: Sequence[int], published: Shares) -> list[ChunkPlace]:
    origin = recording.chunks[stretch[0]][0]
    out: list[ChunkPlace] = []
    for at in stretch:
        begin, end = recording.chunks[at]
        words = [word for segment in published.get(at, ()) for word in segment.words]
        out.append(
            ChunkPlace(
                begin=begin - origin,
                end=end - origin,
                first=(begin if at == stretch[0] else (recording.chunks[at - 1][1] + begin) / 2) - origin,
                last=(end if at == stretch[-1] else (recording.chunks[at + 1][0] + end) / 2) - origin,
                published=at in published,
                words_from=begin - origin + words[0].true_start if words else None,
                words_until=begin - origin + words[-1].true_end if words else None,
            )
        )
    return out


def stretches(recording: Recording, chunks: Iterable[int]) -> list[list[int]]:
    """Runs of neighbours without a gap."""
    out: list[list[int]] = []
    for at in chunks:
        if out and out[-1][-1] == at - 1 and recording.apart(at) <= 0:
            out[-1].append(at)
        else:
            out.append([at])
    return out


def run(recording: Recording, stretch: Sequence[int], published: Shares) -> Shares:
    """One stretch, heard and given back to its chunks."""
    shares = assign_to_chunks(engine(recording, stretch), places(recording, stretch, published))
    assert not any(shares[number] for number, at in enumerate(stretch) if at in published)
    return dict(zip(stretch, shares, strict=True))


def check_chunk(recording: Recording, chunk: int, segments: Sequence[Segment]) -> None:
    """Times are inside, in order, and true; texts are their words."""
    begin, end = recording.chunks[chunk]
    said = {word.name: word for word in recording.said}
    words = [word for segment in segments for word in segment.words]
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= time <= end - begin + 1e-6 for time in times)
    for segment in segments:
        assert re.findall(r"w\d+", segment.text) == [word.word for word in segment.words]
        assert segment.text == segment.text.strip() != ""
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
    for word in words:
        assert begin + word.true_start == pytest.approx(said[word.word].start, abs=0.002)
        assert begin + word.true_end == pytest.approx(said[word.word].end, abs=0.002)
        assert (word.starts_before or 1) > 0
        assert (word.ends_after or 1) > 0


def written(shares: Shares) -> list[str]:
    return [word.word for at in sorted(shares) for segment in shares[at] for word in segment.words]


def session(
    recording: Recording, shares: Shares, *, stamped: bool, missing: Sequence[bool]
) -> SessionTranscript:
    parts: list[PartInput] = []
    for at, (begin, end) in enumerate(recording.chunks):
        if recording.apart(at) > 0 and missing[at]:
            parts.append(PartInput(key=f"{at}-missing", transcript="t"))
        content = Transcript(
            text="",
            segments=shares[at],
            duration=round(end - begin, 3),
            overlap=round(max(0.0, -recording.apart(at)), 3),
            position=round(begin, 3) if stamped else None,
            engine="scripted",
            model="scripted",
            settings_hash="h",
            audio=AudioRef(name="n", key="k", etag="e"),
            run="r",
            created_at=datetime(2026, 5, 1, tzinfo=UTC),
        )
        parts.append(PartInput(key=str(at), transcript="t", content=content))
    return stitch("s/", parts)


@calm
@given(recordings(), st.booleans(), st.lists(st.booleans(), min_size=7, max_size=7))
def test_each_word_is_written_once_with_its_time(
    recording: Recording, stamped: bool, missing: list[bool]
) -> None:
    runs = stretches(recording, range(len(recording.chunks)))
    shares = {at: found for stretch in runs for at, found in run(recording, stretch, {}).items()}
    for at, found in shares.items():
        check_chunk(recording, at, found)
    told = session(recording, shares, stamped=stamped, missing=missing)
    words = [word for segment in told.segments for word in segment.words]
    expected = [(word, stretch) for stretch in runs for word in recording.heard(stretch)]
    assert [word.word for word in words] == [word.name for word, _ in expected]
    gaps = [max(0.0, recording.apart(at)) for at in range(len(recording.chunks))]
    for word, (said, stretch) in zip(words, expected, strict=True):
        # Where nothing tells how long a gap is, the session's clock does not know it.
        unknown = 0.0 if stamped else sum(gaps[: stretch[0] + 1])
        assert word.start == pytest.approx(said.start - unknown, abs=0.02)
        assert word.end == pytest.approx(said.end - unknown, abs=0.02)
        assert not word.starts_before
        assert not word.ends_after
    for segment in told.segments:
        assert segment.start <= min(word.start for word in segment.words)
        assert segment.end >= max(word.end for word in segment.words)


@dataclass(frozen=True)
class Order:
    """Which chunks are published in which go; `ahead`: later ones are heard along, and lost."""

    goes: tuple[int, ...]
    ahead: tuple[bool, ...]


orders = st.builds(
    Order,
    goes=st.tuples(*[st.integers(0, 2)] * 7),
    ahead=st.tuples(*[st.booleans()] * 3),
)


def publish_in(recording: Recording, order: Order, reach: int) -> Shares:
    """All chunks, in their order; `reach`: how many published neighbours are heard along."""
    published: dict[int, tuple[Segment, ...]] = {}
    count = len(recording.chunks)
    for go in range(3):
        pending = {at for at in range(count) if order.goes[at] == go}
        heard = pending | {at for at in range(count) if order.goes[at] > go and order.ahead[go]}
        near = {at + step for at in heard for step in range(-reach, reach + 1)} & published.keys()
        results: dict[int, tuple[Segment, ...]] = {}
        for stretch in stretches(recording, sorted(heard | near)):
            results |= run(recording, stretch, published)
        published |= {at: results[at] for at in pending}
    return published


def check_published(recording: Recording, shares: Shares) -> None:
    for at, found in shares.items():
        check_chunk(recording, at, found)
    runs = stretches(recording, range(len(recording.chunks)))
    assert written(shares) == [word.name for stretch in runs for word in recording.heard(stretch)]


@calm
@given(recordings(), orders)
def test_whatever_was_published_before_each_word_is_written_once(recording: Recording, order: Order) -> None:
    check_published(recording, publish_in(recording, order, reach=7))


@calm
@given(recordings(shortest=2 * LONGEST), orders)
def test_one_neighbour_on_each_side_is_enough_where_no_word_is_longer(
    recording: Recording, order: Order
) -> None:
    check_published(recording, publish_in(recording, order, reach=1))
