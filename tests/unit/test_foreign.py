"""One object in a bucket, whatever is in it, is an error of that object and of nothing else."""

from __future__ import annotations

import pytest

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core import keys
from batchscribe.core.run.host import InstanceRecord, decode_reply
from batchscribe.core.run.manifest import Manifest, decode
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.transcripts import ForeignTranscript
from batchscribe.core.text.transcripts import decode as decode_transcript
from batchscribe.core.text.transcripts import encode as encode_transcript
from batchscribe.errors import MisconfiguredError, PermanentError
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore

DEEP = b'{"words":' * 5000
NESTED = b'{"notes":' + b"[" * 5000 + b"]" * 5000 + b"}"
NOT_UTF8 = b'{"text":"caf\xe9","run":"caf\xe9","session":"caf\xe9","instance":"caf\xe9"}'
OTHER = b'{"results":{"transcripts":[{"transcript":"hello"}]},"run":1,"instance":1}'
STRANGE = [
    DEEP,
    OTHER,
    NESTED,
    NOT_UTF8,
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"text":[],"run":1,"instance":1}',
]


@pytest.mark.parametrize("data", STRANGE)
def test_strange_bytes_are_no_transcript(data: bytes) -> None:
    with pytest.raises(PermanentError, match="not a transcript"):
        decode_transcript(data)


@pytest.mark.parametrize("data", STRANGE)
def test_strange_bytes_are_no_control_object(data: bytes) -> None:
    with pytest.raises(MisconfiguredError, match="not a readable Manifest"):
        decode(data, Manifest)
    with pytest.raises(MisconfiguredError, match="not a readable InstanceRecord"):
        decode(data, InstanceRecord)
    assert decode_reply(data) is None


@pytest.mark.parametrize(
    "text", ['{"duration":"inf"}', '{"segments":[{"text":"a","start":"nan","end":1}]}', '{"duration":1e308}']
)
def test_a_time_that_is_no_number_places_nothing(text: str) -> None:
    with pytest.raises(PermanentError, match="not a number"):
        decode_transcript(text.encode())


@pytest.mark.parametrize("data", STRANGE)
def test_a_strange_file_in_the_place_of_a_session_s_is_not_ours(data: bytes) -> None:
    store = MemoryStore(FakeClock())
    store.place("s/chunk-001.mp3", b"audio")
    store.place("s/transcription-chunk-001.json", encode_transcript(ForeignTranscript(text="hello")))
    store.place("s/transcript.json", data)
    scanner = Scanner(store, store, clock=FakeClock())
    stem = publish_session(scanner, "s/", Rendering())
    assert stem not in {None, "s/transcript"}
    assert store.get("s/transcript.json").data == data
    assert store.keys(keys.CONTROL) == ()
