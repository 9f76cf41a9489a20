"""The session reader in Chromium: real audio, the word at each time, keys, hostile names and texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest
from click.testing import CliRunner

from batchscribe.adapters.stores.directory import DirectoryStore
from batchscribe.audio.audio_decoder import AudioDecoder
from batchscribe.cli.main import cli
from batchscribe.controller.scan import Scanner
from batchscribe.controller.sessions import AssembledSession, assemble_session
from batchscribe.core.scan.chunks import audio_name, split_key, transcript_key
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.transcripts import AudioRef, Segment, SessionTranscript, Transcript, Word, encode
from batchscribe.dashboard import audio
from batchscribe.dashboard.context import open_context
from batchscribe.dashboard.reader import ReaderAudio, render_file
from batchscribe.dashboard.server import create_app
from batchscribe.testing.clock import FakeClock
from support.audio import DEMO, sine
from support.audio import encode as encode_audio
from support.browser import find_faults, serving
from support.dashboards import settings_of
from support.stores import NOW

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.e2e
CUT = DEMO / "cut" / "one-recording"
SESSION = "user/one-recording/"
OVERLAP = 0.5
LENGTHS = (5.0, 5.5, 5.5, 3.28)
SEEK = """([time]) => new Promise((done) => {
  const marked = () => [...document.querySelectorAll(".w.now")].map((word) => word.textContent);
  const finish = () => requestAnimationFrame(() => done(marked()));
  document.addEventListener("seeked", finish, { capture: true, once: true });
  const position = document.getElementById("position");
  position.value = time;
  position.dispatchEvent(new Event("input"));
})"""
HOSTILE = '</script><img src=x onerror="alert(1)">\u202e\x1b[31m&amp;\x00'


def transcript(key: str, seconds: float, words: list[str], *, overlap: float = 0.0) -> bytes:
    """A transcript with words of equal length and half a second of silence at its end."""
    step = (seconds - 0.5) / len(words)
    timed = tuple(
        Word(
            word=f" {word}",
            start=round(number * step, 3),
            end=round((number + 0.7) * step, 3),
            probability=0.2 if number == 1 else 0.9,
        )
        for number, word in enumerate(words)
    )
    segment = Segment(text=" ".join(words), start=timed[0].start, end=timed[-1].end, words=timed)
    made = Transcript(
        text=segment.text,
        segments=(segment,),
        duration=seconds,
        overlap=overlap,
        language="en",
        engine="e",
        model="m",
        settings_hash="h",
        audio=AudioRef(name=key.rpartition("/")[2], key=key, etag="e"),
        run="r",
        created_at=NOW,
    )
    return encode(made)


def read_piece(number: int, key: str) -> bytes:
    data = (CUT / f"chunk-{number + 1:03}.webm").read_bytes()
    if key.endswith(".webm"):
        return data
    with AudioDecoder() as decoder:
        return encode_audio(decoder.decode_all(data, max_seconds=60).samples, "avi")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """A recording in four overlapping pieces with a transcript of each; browsers do not play the third."""
    store = DirectoryStore(tmp_path / "bucket", expected=False)
    text = json.loads((DEMO / "corpus.json").read_text())["session"]["text"].split()
    for number, seconds in enumerate(LENGTHS):
        key = f"{SESSION}chunk-{number + 1:03}.{'avi' if number == 2 else 'webm'}"
        name = audio_name(key)
        assert name is not None
        store.replace(key, read_piece(number, key))
        words = text[number * 10 : number * 10 + 10]
        overlap = OVERLAP if number else 0.0
        store.replace(transcript_key(name), transcript(key, seconds, words, overlap=overlap))
    return store


def session_of(store: DirectoryStore) -> SessionTranscript:
    return assemble_session(Scanner(store, store, clock=FakeClock()), SESSION).transcript


@pytest.fixture
def url(store: DirectoryStore, tmp_path: Path) -> Iterator[str]:
    with serving(create_app(open_context(settings_of(tmp_path, BATCH_SOURCE=store.url)))) as url:
        yield url


def words_at(session: SessionTranscript, time: float) -> list[str]:
    words = [word for segment in session.segments for word in segment.words]
    return [word.word.strip() for word in words if word.start <= time < word.end][-1:]


def check_five_moments(page: Page, session: SessionTranscript) -> None:
    """Compares the highlighted word with the transcript's times, in each chunk and between two words."""
    second, third, last = (part.offset for part in session.parts[1:])
    moments = [0.2, 3.3, second + 1.2, third + 0.4, last + 1.8]
    expected = [words_at(session, time) for time in moments]
    assert [bool(words) for words in expected] == [True, True, True, False, True]
    for time, words in zip(moments, expected, strict=True):
        assert page.evaluate(SEEK, [time]) == words, time


def test_a_file_plays_its_audio_and_marks_the_word_that_is_spoken(
    store: DirectoryStore, tmp_path: Path, browser_page: Page
) -> None:
    file = tmp_path / "reader.html"
    args = ["export", SESSION, "--source", store.url, "--format", "html", "-o", str(file)]
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    browser_page.goto(file.as_uri())
    session = session_of(store)
    check_five_moments(browser_page, session)
    length = browser_page.evaluate("document.getElementById('audio').duration")
    assert abs(length - session.duration) < 0.1
    assert find_faults(browser_page) == []
    (spoken,) = browser_page.evaluate(SEEK, [3.3])
    browser_page.locator("#captions").check()
    browser_page.locator("#caption", has_text=spoken).wait_for()


def test_pages_play_chunk_after_chunk_on_one_clock(
    url: str, store: DirectoryStore, browser_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the browser refuses although the server took it for playable, the third chunk, is decoded.
    monkeypatch.setattr(audio, "find_media_type", lambda _key, _head: "audio/mpeg")
    session = session_of(store)
    browser_page.goto(f"{url}/sessions/{quote(SESSION, safe='')}")
    check_five_moments(browser_page, session)
    # At the end of a chunk the next one goes on, without the audio that both have.
    browser_page.evaluate(SEEK, [4.9])
    browser_page.locator("#play").click()
    browser_page.locator("#player[data-part='1']").wait_for()
    browser_page.locator("#play").click()
    assert browser_page.locator("#problem").text_content() == ""
    assert float(browser_page.locator("#position").input_value()) >= 4.9


def test_audio_of_another_length_than_transcribed_is_decoded(
    url: str, store: DirectoryStore, browser_page: Page
) -> None:
    """A browser that misjudges the length of a file seeks to wrong times."""
    store.replace("odd.mp3", encode_audio(sine(5.0), "mp3"))
    store.replace("transcription-odd.json", transcript("odd.mp3", 20.0, ["one", "two", "three", "four"]))
    browser_page.goto(f"{url}/sessions/odd.mp3")
    with browser_page.expect_request("**/audio/0/odd.mp3?decoded=1"):
        assert browser_page.evaluate(SEEK, [0.5]) == ["one"]


def test_keys_alone_find_play_and_read_a_session(url: str, store: DirectoryStore, browser_page: Page) -> None:
    page = browser_page
    words = [word.word.strip() for segment in session_of(store).segments for word in segment.words]
    page.goto(f"{url}/sessions?q=one")
    assert find_faults(page) == []
    page.locator("th a").focus()
    page.keyboard.press("Enter")
    page.locator(".w.now").wait_for()
    assert find_faults(page) == []
    for _ in range(3):
        page.keyboard.press(".")
    assert page.locator(".w.now").text_content() == words[3]
    page.keyboard.press(",")
    assert page.locator(".w.now").text_content() == words[2]
    page.keyboard.press("k")
    assert page.locator("#play").text_content() == "Pause"
    page.keyboard.press("k")
    page.locator(".para .at").first.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#t=0.00")


def test_hostile_names_and_texts_are_only_text(
    store: DirectoryStore, url: str, tmp_path: Path, browser_page: Page
) -> None:
    session = f"x'\"><b>{'n' * 150}\u202ename</b>\x07\n"
    key = f"{session}/chunk-001.mp3"
    name = audio_name(key)
    assert name is not None
    store.replace(key, b"no audio")
    store.replace(transcript_key(name), transcript(key, 5.0, [HOSTILE, "مرحبا", "\U0001f600\u200f", "end"]))
    browser_page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    browser_page.goto(f"{url}/sessions")
    browser_page.locator("th a", has_text="nnnn").click()
    browser_page.locator(".w.now").wait_for()
    shown: list[str] = browser_page.locator(".para .w").all_text_contents()
    assert shown[0] == '</script><img src=x onerror="alert(1)">\\u202e\\x1b[31m&amp;\\x00'
    assert shown[1:] == ["مرحبا", "\U0001f600\u200f", "end"]
    assert browser_page.locator("#reader img, #reader b, h1 b").count() == 0
    assert find_faults(browser_page) == []


def test_a_file_with_a_long_hostile_name_opens_its_audio_from_disk(
    store: DirectoryStore, tmp_path: Path, browser_page: Page
) -> None:
    whole = session_of(store)
    name = "</script>" * 1200
    parts = tuple(
        msgspec.structs.replace(part, key=f"{name}/{split_key(part.key)[1]}") for part in whole.parts
    )
    changed = msgspec.structs.replace(whole, session=f"{name}/", parts=parts)
    found = AssembledSession(transcript=changed, chunks=4, missing={})
    file = tmp_path / "reader.html"
    file.write_text(render_file(found, ReaderAudio(chosen=True, notes=("too long",)), Rendering()))
    browser_page.goto(file.as_uri())
    browser_page.locator("#files").set_input_files(str(CUT / "chunk-001.webm"))
    assert browser_page.evaluate(SEEK, [3.4]) == words_at(whole, 3.4)
    browser_page.locator("#files").set_input_files(str(DEMO / "corpus.json"))
    assert "Not a file of this session" in (browser_page.locator("#problem").text_content() or "")
    width: Any = browser_page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert width <= 0
