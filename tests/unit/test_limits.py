"""Objects larger than their reader accepts are not read, and count as unreadable."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.cli.app import App
from batchscribe.cli.chunks import export
from batchscribe.cli.chunks import why as why_command
from batchscribe.cli.scan import scan
from batchscribe.controller import fetching
from batchscribe.controller.previous_failures import read_past_attempts
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core import keys
from batchscribe.core.objects import CHUNK_LIST_BYTES, RECORD_BYTES, SESSION_BYTES, TRANSCRIPT_BYTES
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.manifest import EngineSpec, ExitRecord, Manifest, ManifestChunk
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.transcripts import ForeignTranscript, Segment, SessionTranscript, encode
from batchscribe.errors import ObjectTooLargeError, UnreadableError
from batchscribe.reading import is_stored, limit_of, read_record
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.stores import NOW


class Watched(MemoryStore):
    """Records which objects were asked for."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.asked: list[str] = []
        self.before = lambda method, key: self.asked.append(key) if method == "get" else None


def spoken(text: str) -> bytes:
    return encode(ForeignTranscript(segments=(Segment(text=text, start=0.0, end=1.0),), duration=10.0))


def session(*sizes: int | None) -> Watched:
    store = Watched()
    for number, size in enumerate(sizes, start=1):
        store.place(f"s/chunk-00{number}.mp3", b"audio")
        store.place(f"s/transcription-chunk-00{number}.json", spoken(f"text {number}"), size=size)
    return store


def scanner(store: MemoryStore) -> Scanner:
    return Scanner(store, store, clock=FakeClock())


def test_a_session_is_written_without_a_transcript_that_is_too_large_and_names_it() -> None:
    store = session(None, 60_000_000, None)
    assert publish_session(scanner(store), "s/", Rendering())
    assert not [key for key in store.asked if "002" in key]
    text = store.get("s/transcript.txt").data.decode()
    assert text.split("\n\n")[:3] == ["text 1", "[missing: chunk-002.mp3]", "text 3"]
    whole = msgspec.json.decode(store.get("s/transcript.json").data, type=SessionTranscript)
    assert [part.flags for part in whole.parts] == [(), ("missing", "unreadable"), ()]


def test_it_is_written_again_once_the_transcript_can_be_read() -> None:
    store = session(None, 60_000_000)
    publish_session(scanner(store), "s/", Rendering())
    assert publish_session(scanner(store), "s/", Rendering()) is None
    store.place("s/transcription-chunk-002.json", spoken("at last"))
    assert publish_session(scanner(store), "s/", Rendering())
    assert "at last" in store.get("s/transcript.txt").data.decode()


def test_an_object_that_grew_since_the_listing_is_not_read_either() -> None:
    store = session(None)
    store.place("s/transcription-chunk-001.json", b"x", size=TRANSCRIPT_BYTES + 1)
    ((key, data),) = fetching.fetch_objects(store, ["s/transcription-chunk-001.json"], limit=TRANSCRIPT_BYTES)
    assert (key, data) == ("s/transcription-chunk-001.json", b"")


def test_a_session_reads_no_more_than_it_may_in_all() -> None:
    store = session(TRANSCRIPT_BYTES, TRANSCRIPT_BYTES, TRANSCRIPT_BYTES, 1000)
    publish_session(scanner(store), "s/", Rendering())
    read = [key for key in store.asked if "transcription" in key]
    assert [key[-6] for key in read] == ["1", "2"]
    assert SESSION_BYTES == 2 * TRANSCRIPT_BYTES


def test_a_huge_file_in_the_place_of_a_session_s_is_not_ours() -> None:
    store = session(None)
    store.place("s/transcript.json", b"{}", size=2**40)
    stem = publish_session(scanner(store), "s/", Rendering())
    assert stem not in {None, "s/transcript"}


@pytest.mark.parametrize("kind", [Manifest, ExitRecord, InstanceRecord, wire.Failure])
def test_a_control_object_that_is_too_large_is_unreadable(kind: type[msgspec.Struct]) -> None:
    store = Watched()
    store.place("k", b"{}", size=limit_of(kind) + 1)
    with pytest.raises(UnreadableError, match=f"not a readable {kind.__name__}"):
        read_record(store, "k", kind)


def test_a_manifest_of_100_000_chunks_is_read() -> None:
    chunk = ManifestChunk(
        key=f"users/{'u' * 36}/audio/sessions/{'s' * 60}/chunk-00001.webm",
        etag="e" * 32,
        size=480_000,
        session=f"users/{'u' * 36}/audio/sessions/{'s' * 60}/",
        transcript=f"users/{'u' * 36}/audio/sessions/{'s' * 60}/transcription-chunk-00001.json",
    )
    manifest = Manifest(
        run="r",
        worker=0,
        release="1",
        source="s3://b",
        output="s3://b",
        deadline=NOW,
        engine=EngineSpec(engine="e"),
        settings_hash="h",
        chunks=(chunk,) * 100_000,
    )
    store = MemoryStore(FakeClock())
    store.place("k", wire.encode(manifest))
    assert read_record(store, "k", Manifest) == manifest
    assert limit_of(Manifest) == CHUNK_LIST_BYTES


def test_a_failed_attempt_that_is_too_large_counts_as_one() -> None:
    store = Watched()
    store.place(keys.attempt("a.mp3", "e", "run"), b"{}", size=RECORD_BYTES + 1)
    ((trouble,),) = read_past_attempts(store, None).values()
    assert (trouble.etag, trouble.failures) == ("e", 1)


def test_whether_an_object_is_there_is_asked_without_its_content() -> None:
    store = Watched()
    store.place("large", b"", size=2**40)
    store.place("empty")
    assert [is_stored(store, key) for key in ("large", "empty", "none")] == [True, True, False]
    with pytest.raises(ObjectTooLargeError):
        store.get("large", limit=0)


@pytest.fixture
def app(tmp_path: Path) -> App:
    (tmp_path / "s").mkdir()
    for number in (1, 2):
        (tmp_path / f"s/chunk-00{number}.mp3").write_bytes(b"12345")
        (tmp_path / f"s/transcription-chunk-00{number}.json").write_bytes(spoken(f"text {number}"))
    with (tmp_path / "s/transcription-chunk-002.json").open("r+b") as file:
        file.truncate(TRANSCRIPT_BYTES + 1)
    app = App()
    app.__dict__["settings"] = load(
        {"BATCH_SOURCE": str(tmp_path), "BATCH_MIN_AGE_MINUTES": "0"}, folder=tmp_path
    )
    return app


def test_scan_why_and_export_name_it_with_the_way_out(app: App) -> None:
    exported = CliRunner().invoke(export, ["s"], obj=app)
    assert exported.stdout.split("\n\n")[:2] == ["text 1", "[missing: chunk-002.mp3]"]
    assert "s/transcription-chunk-002.json is not read" in exported.stderr
    scanned = CliRunner().invoke(scan, [], obj=app).output
    assert "Transcripts that cannot be read: s/chunk-002.mp3" in scanned
    assert "s/chunk-002.mp3" in scanned
    told = CliRunner().invoke(why_command, ["s/chunk-002.mp3"], obj=app).output
    assert "33,554,433 bytes" in told
    for output in (exported.stderr, scanned, told):
        assert "batchscribe redo" in output
