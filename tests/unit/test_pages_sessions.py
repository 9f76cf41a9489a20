"""Pages of the sessions without a browser: index, search, states, byte ranges, and what is refused."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from batchscribe.audio.session_audio import place_chunks
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import AssembledSession, assemble_session, publish_session
from batchscribe.core.decide.packing import Priors
from batchscribe.core.redaction import printable
from batchscribe.core.text.cues import SpokenWord
from batchscribe.core.text.paragraphs import LONGEST, Paragraph, list_paragraphs
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.spelling import join_segments
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.subtitles import FORMATS, KEPT
from batchscribe.core.text.transcripts import AudioRef, ForeignTranscript, Segment, Transcript, Word, encode
from batchscribe.dashboard.audio import NO_DECODER, embed_audio, find_media_type, parse_range
from batchscribe.dashboard.context import open_context
from batchscribe.dashboard.index import build_index, keep_details, read_details
from batchscribe.dashboard.reader import (
    ReaderAudio,
    _pack_words,
    describe_session,
    name_download,
    render_file,
)
from batchscribe.dashboard.server import create_app
from batchscribe.dashboard.sessions import SEARCH, make_url, search_sessions
from batchscribe.errors import StoreUnavailableError
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import FILE_NAME
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support import values
from support.audio import DEMO, sine
from support.audio import encode as encode_audio
from support.dashboards import OWN, quarantine_chunk, settings_of
from support.stores import NOW

LISTED = 4
"""Prefixes of one index: attempts, compacted ones, quarantine, and everything."""
ROOT = Path(__file__).parents[2]
WALK = DEMO / "audio" / "morning-walk"


def transcript(key: str, *, text: str = "one two", seconds: float = 10.0) -> bytes:
    words = tuple(
        Word(word=f" {word}", start=float(n), end=n + 0.5, probability=0.4)
        for n, word in enumerate(text.split())
    )
    return encode(
        Transcript(
            text=text,
            segments=(Segment(text=text, start=0.0, end=words[-1].end, words=words),),
            duration=seconds,
            engine="e",
            model="m",
            settings_hash="h",
            audio=AudioRef(name=key.rpartition("/")[2], key=key, etag="e"),
            run="r",
            created_at=NOW,
        )
    )


def fetch(client: TestClient, path: str, **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
    answer = client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return answer.status_code, answer.content, answer.headers


def put_session(store: MemoryStore, name: str, chunks: int, *, done: int) -> None:
    for number in range(1, chunks + 1):
        key = f"{name}/chunk-{number:03}.mp3"
        store.place(key, b"\xff\xfbaudio", modified=NOW - timedelta(hours=5))
        if number <= done:
            store.place(f"{name}/transcription-chunk-{number:03}.json", transcript(key))


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(FakeClock())
    put_session(store, "done", 2, done=2)
    put_session(store, "part", 3, done=1)
    put_session(store, "new", 1, done=0)
    store.place("empty.mp3", b"")
    store.place("talk.mp3", (WALK / "chunk-004.mp3").read_bytes(), modified=NOW - timedelta(hours=1))
    store.place("transcription-talk.json", transcript("talk.mp3", seconds=2.99))
    return store


def scanner(store: MemoryStore) -> Scanner:
    return Scanner(store, store, clock=FakeClock())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def client(store: MemoryStore, clock: FakeClock, tmp_path: Path) -> Iterator[TestClient]:
    context = open_context(settings_of(tmp_path))
    world = replace(context.scheduler.world, source=store, output=store, clock=clock)
    context = replace(context, scheduler=replace(context.scheduler, world=world))
    with TestClient(create_app(context), base_url="http://localhost") as client:
        yield client


def test_the_index_has_each_session_with_its_state(store: MemoryStore) -> None:
    index = build_index(scanner(store), Priors())
    assert {entry.name: (entry.state, entry.done, entry.chunks) for entry in index.entries} == {
        "done": ("complete", 2, 2),
        "part": ("partly transcribed", 1, 3),
        "new": ("not transcribed", 0, 1),
        "empty.mp3": ("empty", 0, 1),
        "talk.mp3": ("complete", 1, 1),
    }


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"q": "TALK"}, {"talk.mp3"}),
        ({"state": "partly transcribed"}, {"part"}),
        ({"flag": "stale"}, {"talk.mp3"}),
        ({"min": "0.01"}, {"talk.mp3"}),
        ({"min": "x", "max": "nan"}, set()),
        ({"q": "*"}, set()),
    ],
)
def test_a_search_matches_every_condition(store: MemoryStore, asked: dict[str, str], names: set[str]) -> None:
    store.place("talk.mp3", b"a" * 80_000, modified=NOW + timedelta(hours=1))
    index = build_index(scanner(store), Priors())
    found = search_sessions(index, dict.fromkeys(SEARCH, "") | asked)
    assert {entry.name for entry in found} == names


def test_a_session_of_which_all_is_done_is_read_from_its_file(store: MemoryStore, client: TestClient) -> None:
    publish_session(scanner(store), "done/", Rendering())
    fetch(client, "/sessions")
    before = store.calls.copy()
    for _ in range(2):
        status, page, _ = fetch(client, make_url("sessions", "done/"))
        assert (status, b"one two" in page) == (200, True)
    assert store.calls["list"] == before["list"]
    assert store.calls["get"] == before["get"] + 1


def test_a_session_file_that_is_not_current_is_not_shown(store: MemoryStore, client: TestClient) -> None:
    publish_session(scanner(store), "done/", Rendering())
    key = "done/chunk-002.mp3"
    store.place("done/transcription-chunk-002.json", transcript(key, text="three four"))
    assert b"three four" in fetch(client, make_url("sessions", "done/"))[1]


def test_thousands_of_requests_make_one_listing(store: MemoryStore, client: TestClient) -> None:
    for number in range(300):
        put_session(store, f"s{number:04}", 1, done=0)
    pages = [fetch(client, f"/sessions?page={number % 9}&q=s")[1] for number in range(40)]
    assert all(page.count(b"<tr>") <= 51 for page in pages)
    assert store.calls["list"] == LISTED


@pytest.mark.parametrize(
    ("session", "status", "text"),
    [
        ("part/", 200, b"2 of 3 chunks: not transcribed"),
        ("new/", 200, b"not transcribed yet"),
        ("empty.mp3", 200, b"0 bytes"),
        ("don", 404, b"Similar"),
        ("done", 404, b"/sessions/done%2F"),
        ("../../etc/passwd", 404, b"no session of this name"),
        ("_batchscribe/", 404, b"no session of this name"),
        ("a\nb//../\x00", 404, b"no session of this name"),
    ],
)
def test_each_state_of_a_session_has_its_page(
    client: TestClient, session: str, status: int, text: bytes
) -> None:
    found = fetch(client, make_url("sessions", session))
    assert (found[0], text in found[1]) == (status, True)


def test_a_session_that_failed_has_its_error_and_the_way_to_it(
    store: MemoryStore, client: TestClient
) -> None:
    quarantine_chunk(store, "new/chunk-001.mp3")
    page = fetch(client, make_url("sessions", "new/"))[1]
    assert b"cannot be decoded" in page
    assert b'href="/why?key=new/chunk-001.mp3"' in page
    assert b'href="/quarantine"' in page
    assert b"wait for the next run" not in page


def test_a_session_whose_last_chunks_failed_is_complete_with_missing_ones(
    store: MemoryStore, client: TestClient
) -> None:
    for key in ("part/chunk-002.mp3", "part/chunk-003.mp3"):
        quarantine_chunk(store, key)
    page = fetch(client, "/sessions?q=part")[1]
    assert b'<span class="badge warn">complete, 2 missing</span>' in page


def test_an_unreadable_transcript_is_named(store: MemoryStore, client: TestClient) -> None:
    store.place("talk.mp3", b"audio", modified=NOW - timedelta(hours=9))
    store.place("transcription-talk.json", b"x" * 100)
    status, page, _ = fetch(client, make_url("sessions", "talk.mp3"))
    assert (status, b"cannot be read" in page) == (200, True)


def test_a_store_that_is_down_has_a_page(store: MemoryStore, client: TestClient) -> None:
    store.before = refuse
    status, page, _ = fetch(client, "/sessions")
    assert (status, b"could not be listed: no answer" in page) == (200, True)
    status, page, _ = fetch(client, make_url("sessions", "done/"))
    assert (status, b"no answer" in page) == (503, True)
    status, text, _ = fetch(client, make_url("audio/0", "done/"))
    assert (status, text) == (503, b"no answer; nothing was lost; try again\n")


def test_a_failed_listing_leaves_the_index_before_it(
    store: MemoryStore, clock: FakeClock, client: TestClient
) -> None:
    assert b"talk.mp3" in fetch(client, "/sessions")[1]
    store.before = refuse
    clock.sleep(3600)
    fetch(client, "/sessions")
    page = wait_until(client, b"could not be listed: no answer")
    assert b"talk.mp3" in page


def test_users_cannot_make_listings_follow_each_other_without_a_pause(
    store: MemoryStore, clock: FakeClock, client: TestClient
) -> None:
    fetch(client, "/sessions")
    for _ in range(5):
        client.post("/sessions/refresh", headers=OWN)
    assert store.calls["list"] == LISTED
    clock.sleep(60)
    store.place("late.mp3", b"audio", modified=NOW)
    client.post("/sessions/refresh", headers=OWN)
    wait_until(client, b"late.mp3")


@pytest.mark.parametrize("path", ["/sessions", "/quarantine"])
def test_a_newer_record_of_the_ledger_makes_a_reading_old(
    store: MemoryStore, clock: FakeClock, client: TestClient, tmp_path: Path, path: str
) -> None:
    fetch(client, path)
    store.place("late.mp3", b"audio", modified=NOW)
    quarantine_chunk(store, "late.mp3")
    clock.sleep(6)
    assert b"late.mp3" not in fetch(client, path)[1]
    with Ledger(tmp_path / ".batchscribe" / FILE_NAME, pragmas={}) as ledger:
        ledger.save_run(values.run(), at=clock.now(), note="settled")
    assert b"late.mp3" in fetch(client, path)[1]


def refuse(_method: str, _key: str) -> None:
    raise StoreUnavailableError("no answer; nothing was lost; try again")


def wait_until(client: TestClient, text: bytes) -> bytes:
    """Asks for the list until it has a text: the index is made in a thread."""
    for _ in range(3000):
        if text in (page := fetch(client, "/sessions")[1]):
            return page
        time.sleep(0.01)
    raise AssertionError(f"{text!r} never came")


def test_audio_is_served_in_parts(client: TestClient, store: MemoryStore) -> None:
    whole = (WALK / "chunk-004.mp3").read_bytes()
    place = make_url("audio/0", "talk.mp3")
    status, data, headers = fetch(client, place)
    assert (status, data, headers["content-type"]) == (200, whole, "audio/mpeg")
    status, data, headers = fetch(client, place, Range="bytes=100-199")
    assert (status, data, headers["content-range"]) == (206, whole[100:200], f"bytes 100-199/{len(whole)}")
    assert fetch(client, place, Range="bytes=-5")[1] == whole[-5:]
    assert fetch(client, place, Range=f"bytes={len(whole)}-")[0] == 416
    assert fetch(client, place, Range="bytes=0-3", If_Range='"other"')[:2] == (200, whole)
    assert store.calls.get("get", 0) < 9


def test_audio_that_browsers_do_not_play_is_decoded_once(client: TestClient, store: MemoryStore) -> None:
    store.place("clip.avi", encode_audio(sine(2.0), "avi"), modified=NOW - timedelta(hours=9))
    store.place("transcription-clip.json", transcript("clip.avi", seconds=2.0))
    place = make_url("audio/0", "clip.avi")
    status, data, headers = fetch(client, place, Range="bytes=0-")
    assert (status, headers["content-type"]) == (206, "audio/mpeg")
    assert abs(len(data) / 4000 - 2.0) < 0.3
    assert fetch(client, place, Range="bytes=100-")[1] == data[100:]
    assert fetch(client, make_url("audio/0", "done/") + "?decoded=1")[0] == 415


def test_a_forged_session_file_reaches_no_other_object(client: TestClient, store: MemoryStore) -> None:
    publish_session(scanner(store), "done/", Rendering())
    forged = store.get("done/transcript.json").data.replace(b'"done/chunk-001.mp3"', b'"talk.mp3"')
    store.place("done/transcript.json", forged)
    assert b"talk.mp3" in fetch(client, make_url("sessions", "done/"))[1]
    assert fetch(client, make_url("audio/0", "done/"))[0] == 404
    for number in ("99", "9" * 5000, "-1", "x"):
        assert fetch(client, make_url(f"audio/{number}", "done/"))[0] == 404


@pytest.mark.parametrize("kind", FORMATS)
def test_transcripts_are_downloads(client: TestClient, kind: str) -> None:
    status, data, headers = fetch(client, make_url(f"transcripts/{kind}", "done/"))
    assert (status, b"one" in data) == (200, True)
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''done.{kind}"
    assert fetch(client, make_url("transcripts/exe", "done/"))[0] == 404


def test_only_whole_files_are_played_as_they_are() -> None:
    files = {path.name: find_media_type(path.name, path.read_bytes()) for path in sorted(WALK.iterdir())}
    assert files == {
        "chunk-001.webm": "audio/webm",
        "chunk-002.ogg": "audio/ogg",
        "chunk-003.opus": "audio/ogg",
        "chunk-004.mp3": "audio/mpeg",
        "chunk-005.m4a": "audio/mp4",
    }
    pieces = list((ROOT / "tests" / "data" / "recorder" / "webm").glob("*.webm"))
    assert len(pieces) > 1
    assert {find_media_type(path.name, path.read_bytes()) for path in pieces} == {None}
    assert find_media_type("a.mp3", b"<html>") is None
    assert find_media_type("a.exe", b"ID3") is None


@given(st.text(max_size=30), st.integers(1, 1000))
def test_any_range_lies_within_the_object(asked: str, size: int) -> None:
    found = parse_range(f"bytes={asked}", size)
    assert found is None or 0 <= found[0] < found[1] <= size


@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=60), st.booleans())
def test_paragraphs_keep_all_words_in_order(texts: list[str], words: bool) -> None:
    segments = tuple(
        Segment(
            text=text,
            start=float(number),
            end=number + 0.9,
            words=(Word(word=text, start=float(number), end=number + 0.9),) if words else (),
        )
        for number, text in enumerate(texts)
    )
    whole = stitch("s/", [PartInput(key="k", transcript="t", content=ForeignTranscript(segments=segments))])
    paragraphs = list(list_paragraphs(whole))
    shown = "".join(each.text for each in paragraphs)
    assert "".join(shown.split()) == "".join(join_segments(segments).split())
    assert all(len(each.text) <= LONGEST + 20 for each in paragraphs)


def test_a_file_has_every_format_and_no_markup_of_its_texts() -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e"
    segments = (Segment(text=hostile, start=0.0, end=9.0),)
    whole = stitch(
        hostile, [PartInput(key="k", transcript="t", content=ForeignTranscript(segments=segments))]
    )
    found = AssembledSession(transcript=whole, chunks=1, missing={hostile: [hostile]})
    html = render_file(found, ReaderAudio(chosen=True, notes=(hostile,)), Rendering())
    assert all(f".{kind}" in html for kind in FORMATS)
    assert not any(text in html for text in ("<img", "<script>alert", "\u202e"))


def test_words_are_listed_in_the_order_of_the_texts() -> None:
    # Two channels: the second one's segment begins later, and its first word earlier.
    segments = tuple(
        Segment(text=text, start=begin, end=9.0, channel=channel, words=(Word(word=text, start=at, end=9.0),))
        for channel, text, begin, at in ((1, "hello", 1.0, 2.0), (2, "yes", 1.5, 1.6))
    )
    whole = stitch("s/", [PartInput(key="k", transcript="t", content=ForeignTranscript(segments=segments))])
    values = describe_session(AssembledSession(transcript=whole, chunks=1, missing={}), ReaderAudio(), [])
    assert [(item["text"], item["start"]) for item in values["items"]] == [("yes", 1.6), ("hello", 2.0)]
    assert [packed[:2] for packed in values["data"]["words"]] == [[3, 1600], [5, 2000]]


@given(st.text(min_size=1, max_size=40))
def test_lengths_of_words_count_the_units_that_scripts_count(text: str) -> None:
    packed = _pack_words(Paragraph((SpokenWord(text, 1.0, 2.0, 0.5),), None))
    assert packed == [len(printable(text, keep=KEPT).encode("utf-16-le")) // 2, 1000, 1000, 50]


def test_ids_with_any_characters_stay_one_segment_of_a_url() -> None:
    assert make_url("sessions", "a/../b//\n.mp3") == "/sessions/a%2F..%2Fb%2F%2F%0A.mp3"


def test_a_file_states_why_it_has_no_audio(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = assemble_session(scanner(store), "talk.mp3").transcript
    settings = settings_of(tmp_path)
    assert embed_audio(settings, store, found, 20_000_000).data
    long = embed_audio(settings, store, found, 10_000)
    assert (long.data, long.chosen) == (b"", True)
    assert "more than the limit" in long.notes[0]
    broken = embed_audio(settings, store, assemble_session(scanner(store), "done/").transcript, 10**9)
    assert [note.partition(":")[0] for note in broken.notes] == [
        "The audio of chunk-001.mp3 is missing",
        "The audio of chunk-002.mp3 is missing",
    ]
    monkeypatch.setitem(sys.modules, "batchscribe.audio.session_audio", None)
    without = embed_audio(settings, store, found, 20_000_000)
    assert (without.chosen, without.notes) == (True, (NO_DECODER,))


def test_chunks_lie_on_the_clock_of_their_session() -> None:
    one, two = np.ones(16_000, np.float32), np.full(16_000, 2, np.float32)
    placed = np.concatenate(
        list(place_chunks([(0.0, [one]), (0.5, [two[:4_000], two[4_000:]]), (2.0, [one])], 2.5))
    )
    assert len(placed) == 40_000
    assert [float(placed[at]) for at in (0, 15_999, 16_000, 23_999, 24_000, 31_999, 32_000, 39_999)] == [
        *(1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0),
    ]
    assert list(place_chunks([], 0.0)) == []


def test_lengths_and_flags_come_from_the_ends_of_session_files(store: MemoryStore) -> None:
    for number in range(1, 3):
        key = f"done/chunk-{number:03}.mp3"
        made = msgspec.json.decode(transcript(key, text='\n  "duration": 7 ' * 9_000, seconds=60.0))
        made["flags"] = ["low-confidence"]
        store.place(f"done/transcription-chunk-{number:03}.json", msgspec.json.encode(made))
    publish_session(scanner(store), "done/", Rendering())
    index = read_details(build_index(scanner(store), Priors()), store)
    entry = index.by_id["done/"]
    assert (entry.seconds, entry.flags) == (120.0, (("low-confidence", 2),))
    assert index.by_id["talk.mp3"].details is None
    store.delete("talk.mp3")
    reads = store.calls["get_range"]
    again = read_details(keep_details(build_index(scanner(store), Priors()), index), store)
    assert again.by_id["done/"] == entry
    assert store.calls["get_range"] == reads


@pytest.mark.parametrize(
    ("session", "name"),
    [
        ("./", "session"),
        ("a/walk/", "walk"),
        ("talk.mp3", "talk.mp3"),
        ("a/..\n<b>/", "_b_"),
        ("é" * 300, "é" * 100),
    ],
)
def test_downloads_have_plain_names(session: str, name: str) -> None:
    assert name_download(session).strip("_") == name.strip("_")


def test_the_session_at_the_top_has_a_page(store: MemoryStore, client: TestClient) -> None:
    store.place("chunk-001.mp3", b"\xff\xfbaudio", modified=NOW - timedelta(hours=5))
    store.place("transcription-chunk-001.json", transcript("chunk-001.mp3"))
    status, page, _ = fetch(client, make_url("sessions", "./"))
    assert (status, b"one two" in page, b"/audio/*/.%2F" in page) == (200, True, True)
