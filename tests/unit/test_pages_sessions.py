"""Pages of the sessions without a browser: index, search, states, byte ranges, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import publish_session
from batchscribe.core.decide.packing import Priors
from batchscribe.core.text.cues import SpokenWord
from batchscribe.core.text.paragraphs import LONGEST, Paragraph, list_paragraphs
from batchscribe.core.text.spelling import join_segments
from batchscribe.core.text.stitching import PartInput, stitch
from batchscribe.core.text.subtitles import render
from batchscribe.core.text.transcripts import AudioRef, ForeignTranscript, Segment, Transcript, Word, encode
from batchscribe.dashboard.audio import find_media_type, parse_range
from batchscribe.dashboard.context import Context
from batchscribe.dashboard.index import IndexKeeper, build_index
from batchscribe.dashboard.reader import _pack_words
from batchscribe.dashboard.server import create_app
from batchscribe.dashboard.sessions import SEARCH, make_url, search_sessions
from batchscribe.errors import StoreUnavailableError
from batchscribe.settings import load
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.store import MemoryStore
from support.audio import DEMO, sine
from support.audio import encode as encode_audio
from support.browser import serving
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
def url(store: MemoryStore, tmp_path: Path) -> Iterator[str]:
    settings = load({"BATCH_SOURCE": tmp_path.as_uri(), "GPU_PROVIDER": "local"}, folder=tmp_path)
    context = Context(settings=settings, clock=FakeClock(), source=store, output=store)
    with serving(create_app(context)) as url:
        yield url


def fetch(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    asked = Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urlopen(asked) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


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


def test_a_session_of_which_all_is_done_is_read_from_its_file(store: MemoryStore, url: str) -> None:
    publish_session(scanner(store), "done/", render)
    fetch(f"{url}/sessions")
    before = store.calls.copy()
    for _ in range(2):
        status, page, _ = fetch(url + make_url("sessions", "done/"))
        assert (status, b"one two" in page) == (200, True)
    assert store.calls["list"] == before["list"]
    assert store.calls["get"] == before["get"] + 1


def test_a_session_file_that_is_not_current_is_not_shown(store: MemoryStore, url: str) -> None:
    publish_session(scanner(store), "done/", render)
    key = "done/chunk-002.mp3"
    store.place("done/transcription-chunk-002.json", transcript(key, text="three four"))
    assert b"three four" in fetch(url + make_url("sessions", "done/"))[1]


def test_thousands_of_requests_make_one_listing(store: MemoryStore, url: str) -> None:
    for number in range(300):
        put_session(store, f"s{number:04}", 1, done=0)
    pages = [fetch(f"{url}/sessions?page={number % 9}&q=s")[1] for number in range(40)]
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
def test_each_state_of_a_session_has_its_page(url: str, session: str, status: int, text: bytes) -> None:
    found = fetch(url + make_url("sessions", session))
    assert (found[0], text in found[1]) == (status, True)


def test_an_unreadable_transcript_is_named(store: MemoryStore, url: str) -> None:
    store.place("talk.mp3", b"audio", modified=NOW - timedelta(hours=9))
    store.place("transcription-talk.json", b"x" * 100)
    status, page, _ = fetch(url + make_url("sessions", "talk.mp3"))
    assert (status, b"cannot be read" in page) == (200, True)


def test_a_store_that_is_down_has_a_page(store: MemoryStore, url: str) -> None:
    def refuse(_method: str, _key: str) -> None:
        raise StoreUnavailableError("no answer; nothing was lost; try again")

    store.before = refuse
    status, page, _ = fetch(f"{url}/sessions")
    assert (status, b"could not be listed: no answer" in page) == (200, True)
    status, page, _ = fetch(url + make_url("sessions", "done/"))
    assert (status, b"no answer" in page) == (503, True)
    status, text, _ = fetch(url + make_url("audio/0", "done/"))
    assert (status, text) == (503, b"no answer; nothing was lost; try again\n")


def test_the_index_before_a_failed_listing_stays(store: MemoryStore) -> None:
    clock = FakeClock()
    keeper = IndexKeeper(lambda: build_index(scanner(store), Priors()), clock)
    first = keeper.read(wait=60)
    assert first is not None
    store.before = lambda _method, _key: (_ for _ in ()).throw(StoreUnavailableError("no answer"))  # type: ignore[assignment]
    clock.sleep(3600)
    assert keeper.read() is first
    wait_for(keeper)
    assert (keeper.index, keeper.problem) == (first, "no answer")


def test_users_cannot_make_listings_follow_each_other_without_a_pause(store: MemoryStore) -> None:
    keeper = IndexKeeper(lambda: build_index(scanner(store), Priors()), FakeClock())
    for _ in range(5):
        keeper.refresh()
        wait_for(keeper)
    assert store.calls["list"] == LISTED


def wait_for(keeper: IndexKeeper) -> None:
    for thread in threading.enumerate():
        if thread.name == "index":
            thread.join()
    assert not keeper.busy


def test_audio_is_served_in_parts(url: str, store: MemoryStore) -> None:
    whole = (WALK / "chunk-004.mp3").read_bytes()
    place = url + make_url("audio/0", "talk.mp3")
    status, data, headers = fetch(place)
    assert (status, data, headers["content-type"]) == (200, whole, "audio/mpeg")
    status, data, headers = fetch(place, Range="bytes=100-199")
    assert (status, data, headers["content-range"]) == (206, whole[100:200], f"bytes 100-199/{len(whole)}")
    assert fetch(place, Range="bytes=-5")[1] == whole[-5:]
    assert fetch(place, Range=f"bytes={len(whole)}-")[0] == 416
    assert fetch(place, Range="bytes=0-3", If_Range='"other"')[:2] == (200, whole)
    assert store.calls.get("get", 0) < 9


def test_audio_that_browsers_do_not_play_is_decoded_once(url: str, store: MemoryStore) -> None:
    store.place("clip.avi", encode_audio(sine(2.0), "avi"), modified=NOW - timedelta(hours=9))
    store.place("transcription-clip.json", transcript("clip.avi", seconds=2.0))
    place = url + make_url("audio/0", "clip.avi")
    status, data, headers = fetch(place, Range="bytes=0-")
    assert (status, headers["content-type"]) == (206, "audio/mpeg")
    assert abs(len(data) / 4000 - 2.0) < 0.3
    assert fetch(place, Range="bytes=100-")[1] == data[100:]
    assert fetch(url + make_url("audio/0", "done/") + "?decoded=1")[0] == 415


def test_a_forged_session_file_reaches_no_other_object(url: str, store: MemoryStore) -> None:
    publish_session(scanner(store), "done/", render)
    forged = store.get("done/transcript.json").data.replace(b'"done/chunk-001.mp3"', b'"talk.mp3"')
    store.place("done/transcript.json", forged)
    assert b"talk.mp3" in fetch(url + make_url("sessions", "done/"))[1]
    assert fetch(url + make_url("audio/0", "done/"))[0] == 404
    assert fetch(url + make_url("audio/99", "done/"))[0] == 404


@pytest.mark.parametrize("kind", ["srt", "vtt", "txt", "json"])
def test_transcripts_are_downloads(url: str, kind: str) -> None:
    status, data, headers = fetch(url + make_url(f"transcripts/{kind}", "done/"))
    assert (status, b"one" in data) == (200, True)
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''done.{kind}"
    assert fetch(url + make_url("transcripts/exe", "done/"))[0] == 404


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
    assert " ".join("".join(each.text for each in paragraphs).split()) == " ".join(
        join_segments(segments).split()
    )
    assert all(len(each.text) <= LONGEST + 20 for each in paragraphs)


@given(st.text(min_size=1, max_size=40))
def test_lengths_of_words_count_the_units_that_scripts_count(text: str) -> None:
    packed = _pack_words(Paragraph((SpokenWord(text, 1.0, 2.0, 0.5),), None))
    from batchscribe.core.redaction import printable
    from batchscribe.core.text.subtitles import KEPT

    assert packed == [len(printable(text, keep=KEPT).encode("utf-16-le")) // 2, 1000, 1000, 50]


def test_ids_with_any_characters_stay_one_segment_of_a_url() -> None:
    assert make_url("sessions", "a/../b//\n.mp3") == f"/sessions/{quote('a/../b//')}%0A.mp3".replace(
        "/../b//", "%2F..%2Fb%2F%2F"
    )
