"""What a session's folder has of it, as one transcript."""

from __future__ import annotations

import pytest

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import assemble_session
from batchscribe.core.text.stitching import MISSING
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript, encode
from batchscribe.errors import ObjectNotFoundError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.stores import NOW


def spoken(number: int) -> bytes:
    """Ten seconds that begin half a second before the chunk before them ends."""
    return encode(
        Transcript(
            text=str(number),
            segments=(Segment(text=str(number), start=1.0, end=2.0),),
            duration=10.0,
            overlap=0.5 if number > 1 else 0.0,
            flags=(),
            engine="fake",
            model="m",
            settings_hash="h",
            audio=AudioRef(name=f"chunk-00{number}.mp3", key=f"s/chunk-00{number}.mp3", etag="e"),
            run="r",
            created_at=NOW,
        )
    )


def scanner(*transcribed: int) -> Scanner:
    store = MemoryStore(FakeClock())
    for number in range(1, 6):
        store.place(f"s/chunk-00{number}.mp3", b"audio")
    for number in transcribed:
        store.place(f"s/transcription-chunk-00{number}.json", spoken(number))
    return Scanner(store, store, clock=FakeClock())


def test_a_session_as_it_stands_ends_with_its_last_transcript_and_shows_what_lacks_before() -> None:
    found = assemble_session(scanner(1, 2, 4), "s/")
    assert [(part.offset, MISSING in part.flags) for part in found.parts] == [
        (0, False),
        (9.5, False),
        (19.5, True),
        (19.5, False),
    ]
    assert [segment.start for segment in found.segments] == [1, 10.5, 20.5]


def test_of_a_session_without_a_transcript_there_is_none() -> None:
    with pytest.raises(ObjectNotFoundError, match="no transcript of session"):
        assemble_session(scanner(), "s/")
