"""Limits of subtitles: lines, durations, reading speed; and presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from batchscribe.errors import MisconfiguredError


class Highlight(StrEnum):
    """Marks in WebVTT of the word that is spoken."""

    OFF = "off"
    WORDS = "words"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionStyle:
    """Limits of one cue. The defaults are the broadcasters' convention."""

    columns: int = 42
    """Of a line, as a terminal counts them: East Asian wide letters and emoji have two."""
    lines: int = 2
    shortest: float = 1.0
    """Seconds."""
    longest: float = 7.0
    """Seconds."""
    gap: float = 0.0
    """Seconds between two cues of one speaker."""
    reading_speed: float | None = None
    """Columns a second: a cue stays longer for it if there is room; no text is left out. None: no limit."""
    speakers: bool = True
    """Speakers are named if there are several."""
    highlight: Highlight = Highlight.OFF

    def __post_init__(self) -> None:
        if self.shortest > self.longest:
            raise MisconfiguredError(
                f"subtitles of at least {self.shortest:g} s and at most {self.longest:g} s do not exist: "
                "change CAPTION_SHORTEST_SECONDS or CAPTION_LONGEST_SECONDS"
            )


DEFAULT_STYLE = CaptionStyle()


class CaptionPreset(StrEnum):
    """Known sets of limits."""

    DEFAULT = "default"
    NETFLIX = "netflix"
    BBC = "bbc"
    YOUTUBE = "youtube"


PRESETS: Mapping[CaptionPreset, CaptionStyle] = MappingProxyType(
    {
        CaptionPreset.DEFAULT: DEFAULT_STYLE,
        # Netflix Timed Text Style Guide, general requirements and English: 42 characters, 5/6 s to 7 s, a gap
        # of 2 frames (at 24 a second), 20 characters a second for adults.
        CaptionPreset.NETFLIX: CaptionStyle(shortest=5 / 6, gap=2 / 24, reading_speed=20.0),
        # BBC Subtitle Guidelines: two lines, 37 characters of teletext, 160 to 180 words a minute: with five
        # letters and a blank in a word, 17 columns a second.
        CaptionPreset.BBC: CaptionStyle(columns=37, reading_speed=17.0),
        # YouTube publishes no numbers; it takes CEA-608 files, whose lines have 32 columns.
        CaptionPreset.YOUTUBE: CaptionStyle(columns=32, reading_speed=20.0),
    }
)


def make_style(preset: CaptionPreset, **changes: Any) -> CaptionStyle:
    """The preset with given changes; raises MisconfiguredError if they contradict."""
    return replace(PRESETS[preset], **{name: value for name, value in changes.items() if value is not None})
