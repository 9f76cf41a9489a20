"""Subtitles in a browser's player: Chromium's own parser of WebVTT."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page

from batchscribe.core.text.caption_style import CaptionPreset, Highlight, make_style
from batchscribe.core.text.cues import make_cues
from batchscribe.core.text.stitching import stitch
from batchscribe.core.text.subtitles import render
from batchscribe.core.text.transcripts import Segment, SessionTranscript, Word

PARSE = """async text => {
  const video = document.createElement('video'), track = document.createElement('track');
  track.src = URL.createObjectURL(new Blob([text], {type: 'text/vtt'}));
  const done = new Promise((good, bad) => { track.onload = good; track.onerror = bad; });
  video.append(track); document.body.append(video); track.track.mode = 'hidden';
  await done;
  const timed = node => node?.nodeType === Node.PROCESSING_INSTRUCTION_NODE ? node.data : null;
  return [...track.track.cues].map(cue => ({
    start: cue.startTime, end: cue.endTime, text: cue.getCueAsHTML().textContent,
    words: [...cue.getCueAsHTML().querySelectorAll('span')]
      .map(word => [timed(word.previousSibling), word.textContent.trim()]),
  }));
}"""


def make_session(*segments: Segment) -> SessionTranscript:
    digest = stitch("s/", []).digest
    return SessionTranscript(session="s/", text="", segments=segments, duration=30, parts=(), digest=digest)


@pytest.mark.parametrize("preset", CaptionPreset)
def test_a_player_shows_every_subtitle_and_knows_when_each_word_begins(
    browser_page: Page, preset: CaptionPreset
) -> None:
    text = "a<b & c are the letters of this long line -- that is 今日は too, for now and ever"
    words = tuple(
        Word(word=word, start=at * 0.4, end=at * 0.4 + 0.3) for at, word in enumerate(text.split(), 1)
    )
    segment = Segment(text=text, start=0.4, end=words[-1].end, words=words)
    session = make_session(segment)
    style = make_style(preset, highlight=Highlight.WORDS)
    shown: list[dict[str, Any]] = browser_page.evaluate(PARSE, render(session, "vtt", style).decode())
    cues = make_cues(session, style)
    assert [cue["text"] for cue in shown] == [cue.text for cue in cues]
    assert [(cue["start"], cue["end"]) for cue in shown] == [
        (pytest.approx(cue.start, abs=0.001), pytest.approx(cue.end, abs=0.001)) for cue in cues
    ]
    begins = {word.word: f"00:00:{word.start:06.3f}" for word in words}
    marked = [(word, at) for cue in shown for at, word in cue["words"]]
    assert marked == [(word, begins[word]) for word, _ in marked]
    assert len(marked) == len(words) - len(cues), "the first word of a subtitle begins with it"


@pytest.mark.parametrize("preset", CaptionPreset)
def test_a_player_shows_one_speaker_at_a_time_in_any_script(
    browser_page: Page, preset: CaptionPreset
) -> None:
    texts = [
        "Yes.",
        "No.",
        "今日は良い天気です。" * 8,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "مرحبا بكم",
    ]
    session = make_session(
        *(
            Segment(text=text, start=at * 0.4, end=at * 0.4 + 0.3, speaker=f"<{at % 2} & 3>")
            for at, text in enumerate(texts)
        )
    )
    shown = browser_page.evaluate(PARSE, render(session, "vtt", make_style(preset)).decode())
    assert "".join("".join(cue["text"].split()) for cue in shown) == "".join("".join(texts).split())
    assert all(one["end"] <= two["start"] for one, two in pairwise(shown))
