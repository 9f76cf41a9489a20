"""Reads the files of a user's words: the vocabulary of engines, and the replacements of session files."""

from __future__ import annotations

from pathlib import Path

from batchscribe.core.objects import MIB
from batchscribe.core.run.host import Finding, failed, passed
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.replacements import parse_replacements
from batchscribe.core.text.vocabulary import parse_vocabulary
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings


def read_vocabulary(settings: Settings) -> tuple[str, ...]:
    """Raises MisconfiguredError if the file has errors."""
    text = _read_text("BATCH_VOCABULARY", settings.vocabulary)
    return parse_vocabulary(text)


def open_rendering(settings: Settings) -> Rendering:
    """Raises MisconfiguredError if the file of replacements has errors, or limits contradict each other."""
    text = _read_text("BATCH_REPLACEMENTS", settings.replacements)
    return Rendering(style=settings.caption_style, replacements=parse_replacements(text))


def check_rendering(settings: Settings) -> Finding:
    """Checks that session files can be rendered, before money is spent."""
    try:
        rendering = open_rendering(settings)
    except MisconfiguredError as error:
        return failed("session files", str(error))
    return passed("session files", f"{len(rendering.replacements)} replacements")


def _read_text(setting: str, file: Path | None) -> str:
    """Text of a file of at most 1 MiB; empty without one."""
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            data = opened.read(MIB + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise MisconfiguredError(f"{setting} names {file}, which cannot be read: {reason}") from error
    if len(data) > MIB:
        raise MisconfiguredError(f"{setting} names {file}, which is larger than 1 MiB")
    return text
