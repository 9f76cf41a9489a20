"""What a session's folder has of it, as one transcript."""

from __future__ import annotations

from typing import cast

import pytest

from batchscribe.controller.commands.redo import quarantine
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import assemble_session
from batchscribe.core.run.manifest import QuarantineRecord
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


def test_a_session_as_it_stands_shows_what_it_lacks() -> None:
    found = assemble_session(scanner(1, 2, 4), "s/").transcript
    assert [(part.offset, MISSING in part.flags) for part in found.parts] == [
        (0, False),
        (9.5, False),
        (19.5, True),
        (19.5, False),
        (29.5, True),
    ]
    assert [segment.start for segment in found.segments] == [1, 10.5, 20.5]


def test_chunks_without_a_transcript_are_listed_with_their_reasons() -> None:
    made = scanner(1, 2)
    store = cast(MemoryStore, made.source)
    etag = next(info.etag for info in store.list("s/chunk-004"))
    record = QuarantineRecord(key="s/chunk-004.mp3", etag=etag, decoder="", attempts=3, message="bad", at=NOW)
    quarantine(store, record)
    store.place("s/chunk-005.mp3", b"")
    store.place("s/chunk-006.dss", b"audio")
    store.place("s/below/chunk-001.dss", b"audio")
    found = assemble_session(made, "s/")
    assert found.chunks == 6
    assert found.missing == {
        "waiting": ["s/chunk-003.mp3"],
        "quarantined": ["s/chunk-004.mp3"],
        "in an unsupported format": ["s/chunk-006.dss"],
    }
    assert assemble_session(scanner(1, 2, 3, 4, 5), "s/").missing == {}


def test_of_a_session_without_a_transcript_there_is_none() -> None:
    with pytest.raises(ObjectNotFoundError, match="no transcript of session"):
        assemble_session(scanner(), "s/")
