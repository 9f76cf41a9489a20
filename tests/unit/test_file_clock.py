"""Transcripts count on the clock of their file, sessions on the length of their files."""

from __future__ import annotations

import numpy as np

from batchscribe.audio.overlaps import Overlaps
from batchscribe.core.text.flags import PARTIAL, RESCALED
from batchscribe.core.text.speech import SAMPLE_RATE
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.transcripts import AudioRef, Transcript
from batchscribe.worker.assembly import TranscribedChunk, _collect_flags
from batchscribe.worker.context_audio import Neighbour
from batchscribe.worker.sounds import Sound, Whole
from batchscribe.worker.timeline import AudioTimeline, Ended, PendingWindow, count_channels
from support.spoken import Spoken, find_speech, speech
from support.values import NOW

SHAPE = (48_000, 1, "opus")
WORDS = [Spoken(at, at * 0.5 + 0.1, at * 0.5 + 0.4) for at in range(8)]
SOUND = speech(WORDS, 4)


def laid(*leads: float, before: Neighbour | None = None) -> list[PendingWindow | Ended]:
    """What comes out of chunks of 4 s of speech, whose files begin so much earlier than their sound."""
    out: list[PendingWindow | Ended] = []
    stretch = AudioTimeline(SOUND, find_speech=find_speech, overlaps=Overlaps(0), emit=out.append)
    if before is not None:
        stretch.begin_with_neighbour(before)
    for number, lead in enumerate(leads):
        stretch.begin_chunk(number, Sound(None, SHAPE, lead=lead), SOUND)
        stretch.end_chunk(Whole(4.0, partial=False, repaired=False))
    stretch.close()
    return out


def test_the_clock_of_a_chunk_begins_with_its_file() -> None:
    window, one, two = laid(3.0, 1.0)
    assert isinstance(window, PendingWindow)
    assert [(place.begin, place.first, place.end) for place in window.places] == [(-3, 0, 4), (3, 4, 8)]
    assert isinstance(one, Ended)
    assert isinstance(two, Ended)
    assert [ended.whole.seconds for ended in (one, two)] == [7.0, 5.0]


def test_a_neighbour_counts_on_the_clock_of_its_file_too() -> None:
    before = Neighbour(SOUND, 4 * SAMPLE_RATE, Sound(None, SHAPE, lead=2.0), ())
    window, *_ = laid(0.0, before=before)
    assert isinstance(window, PendingWindow)
    assert [(place.begin, place.end) for place in window.places] == [(-2, 4), (4, 8)]


def test_a_position_is_that_of_the_file() -> None:
    out: list[PendingWindow | Ended] = []
    stretch = AudioTimeline(SOUND, find_speech=find_speech, overlaps=Overlaps(0), emit=out.append)
    stretch.begin_chunk(0, Sound(13.0, SHAPE, lead=3.0), SOUND)
    stretch.end_chunk(Whole(4.0, partial=False, repaired=False))
    stretch.close()
    assert isinstance(out[-1], Ended)
    assert out[-1].position == 10.0


def test_chunks_with_another_number_of_tracks_do_not_follow() -> None:
    first = Sound(None, SHAPE, sent=2)
    assert Sound(None, SHAPE, sent=2).follows(first, 10.0)
    assert not Sound(None, SHAPE, sent=3).follows(first, 10.0)
    assert not Sound(None, SHAPE, sent=2, apart=True).follows(first, 10.0)


def test_languages_that_begin_alike_stay_apart() -> None:
    both = np.column_stack([SOUND, SOUND])
    assert count_channels(both) == 1
    assert count_channels(np.column_stack([SOUND, SOUND, np.roll(SOUND, 99)])) == 3
    out: list[PendingWindow | Ended] = []
    stretch = AudioTimeline(both, find_speech=find_speech, overlaps=Overlaps(0), emit=out.append, apart=True)
    stretch.begin_chunk(0, Sound(None, SHAPE, sent=2, apart=True), both)
    stretch.end_chunk(Whole(4.0, partial=False, repaired=False))
    stretch.close()
    windows = [item for item in out if isinstance(item, PendingWindow)]
    assert [(window.channel, window.apart) for window in windows] == [(1, True), (2, True)]


def test_flags_of_the_decoding_stand_in_the_transcript() -> None:
    whole = Whole(4.0, partial=True, repaired=False, flags=frozenset({RESCALED}))
    heard = TranscribedChunk(Ended(chunk=0, whole=whole), (), "en", frozenset())
    assert {RESCALED, PARTIAL} < set(_collect_flags(heard))


def transcript(number: int, span: float | None) -> PartInput:
    key = f"s/chunk-{number}.mp4"
    content = Transcript(
        text="",
        segments=(),
        duration=4.0,
        span=span,
        engine="scripted",
        model="scripted",
        settings_hash="h",
        audio=AudioRef(name=key[2:], key=key, etag="e"),
        run="r",
        created_at=NOW,
    )
    return PartInput(key=key, transcript=f"s/transcription-chunk-{number}.json", content=content)


def test_a_session_counts_the_whole_of_its_files() -> None:
    found = stitch("s/", [transcript(1, 12.0), transcript(2, 12.0), transcript(3, 2.0), transcript(4, None)])
    assert [part.offset for part in found.parts] == [0, 12, 24, 28]
    assert found.duration == 32
