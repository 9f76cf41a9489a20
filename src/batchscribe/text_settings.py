"""Settings of the text, as a part of `settings.Settings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from batchscribe.core import setting_parsers as parse
from batchscribe.core.objects import MIB
from batchscribe.core.setting_parsers import Name
from batchscribe.core.text.caption_style import CaptionPreset, Highlight, make_style
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.replacements import parse_replacements
from batchscribe.core.text.speakers import AUTO, OFF
from batchscribe.core.text.vocabulary import parse_vocabulary
from batchscribe.core.text.voice_groups import MOST_SPEAKERS
from batchscribe.errors import MisconfiguredError


def as_path(text: str) -> Path:
    return Path(parse.matching()(text))


def parse_speakers(text: str) -> str:
    """Parses a number of speakers, `auto` or `off`."""
    if text.isascii() and text.isdecimal():
        return str(parse.whole(2, MOST_SPEAKERS)(text))
    return parse.one_of(OFF, AUTO)(text)


_ON_OFF = parse.one_of("on", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """Each field declares its setting's name and parser."""

    vocabulary: Annotated[Path | None, Name("BATCH_VOCABULARY", as_path, "a file", placed=True)] = None
    replacements: Annotated[Path | None, Name("BATCH_REPLACEMENTS", as_path, "a file", placed=True)] = None
    speakers: Annotated[str, Name("BATCH_SPEAKERS", parse_speakers, "off, auto or 2 to 20")] = OFF
    caption_preset: Annotated[
        CaptionPreset, Name("CAPTION_PRESET", parse.member(CaptionPreset), ", ".join(CaptionPreset))
    ] = CaptionPreset.DEFAULT
    caption_line_length: Annotated[
        int | None, Name("CAPTION_LINE_LENGTH", parse.whole(16, 200), "columns, 16 to 200")
    ] = None
    caption_lines: Annotated[int | None, Name("CAPTION_LINES", parse.whole(1, 4), "1 to 4")] = None
    caption_reading_speed: Annotated[
        float | None,
        Name("CAPTION_READING_SPEED", parse.number(1, 100), "columns a second, up to 100"),
    ] = None
    caption_shortest: Annotated[
        float | None, Name("CAPTION_SHORTEST_SECONDS", parse.number(0, 60), "seconds above 0, up to 60")
    ] = None
    caption_longest: Annotated[
        float | None, Name("CAPTION_LONGEST_SECONDS", parse.number(0, 60), "seconds above 0, up to 60")
    ] = None
    caption_gap: Annotated[
        float | None, Name("CAPTION_GAP_SECONDS", parse.number(-1, 5), "seconds, 0 to 5")
    ] = None
    caption_speakers: Annotated[str, Name("CAPTION_SPEAKERS", _ON_OFF, "on or off")] = "on"
    caption_highlight: Annotated[
        Highlight, Name("CAPTION_HIGHLIGHT", parse.member(Highlight), " or ".join(Highlight))
    ] = Highlight.OFF

    @property
    def labels_speakers(self) -> bool:
        return self.speakers != OFF

    def read_vocabulary(self) -> tuple[str, ...]:
        """Terms that the engine is to expect. Raises MisconfiguredError."""
        return parse_vocabulary(_read_text("BATCH_VOCABULARY", self.vocabulary))

    def open_rendering(self) -> Rendering:
        """Opens the rendering of session files.

        Raises MisconfiguredError if the file of replacements has errors, or limits contradict each other.
        """
        style = make_style(
            self.caption_preset,
            columns=self.caption_line_length,
            lines=self.caption_lines,
            reading_speed=self.caption_reading_speed,
            shortest=self.caption_shortest,
            longest=self.caption_longest,
            gap=self.caption_gap,
            speakers=self.caption_speakers == "on",
            highlight=self.caption_highlight,
        )
        rules = parse_replacements(_read_text("BATCH_REPLACEMENTS", self.replacements))
        return Rendering(style=style, replacements=rules, speakers=self.speakers)


def _read_text(setting: str, file: Path | None) -> str:
    """Text of a file of at most 1 MiB; empty without one."""
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            data = opened.read(MIB + 1)
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise MisconfiguredError(f"{setting} names {file}, which cannot be read: {reason}") from error
    if len(data) > MIB:
        raise MisconfiguredError(f"{setting} names {file}, which is larger than 1 MiB")
    return text
