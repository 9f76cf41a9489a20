"""Reads how session files are rendered: the file of replacements, and the limits of subtitles."""

from __future__ import annotations

from batchscribe.core.objects import MIB
from batchscribe.core.run.host import Finding, failed, passed
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.replacements import parse_replacements
from batchscribe.errors import MisconfiguredError
from batchscribe.settings import Settings


def open_rendering(settings: Settings) -> Rendering:
    """Raises MisconfiguredError if the file of replacements has errors, or limits contradict each other."""
    if settings.replacements is None:
        return Rendering(style=settings.caption_style)
    try:
        with settings.replacements.open("rb") as file:
            data = file.read(MIB + 1)
        if len(data) > MIB:
            raise ValueError("larger than 1 MiB")  # noqa: TRY301
        text = data.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MisconfiguredError(
            f"BATCH_REPLACEMENTS names {settings.replacements}, which cannot be read: {reason}"
        ) from error
    return Rendering(style=settings.caption_style, replacements=parse_replacements(text))


def check_rendering(settings: Settings) -> Finding:
    """Checks that session files can be rendered, before money is spent."""
    try:
        rendering = open_rendering(settings)
    except MisconfiguredError as error:
        return failed("session files", str(error), "correct it; chunk transcripts do not depend on it")
    return passed("session files", f"{len(rendering.replacements)} replacements")
