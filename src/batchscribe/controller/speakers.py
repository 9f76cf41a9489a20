"""Speakers of a session's files: reads the voices of its chunks and the names that a user gave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from batchscribe.controller.fetching import fetch_objects
from batchscribe.core.objects import RECORD_BYTES, SESSION_BYTES, VOICES_BYTES
from batchscribe.core.run.manifest import hash_values
from batchscribe.core.scan.chunks import session_stems, voices_key
from batchscribe.core.text.rendering import Rendering
from batchscribe.core.text.speakers import HeldVoices, decode_names, label_voices, list_turns
from batchscribe.core.text.stitching import PartInput
from batchscribe.core.text.transcripts import PartSpeakers, Transcript
from batchscribe.core.text.voices import decode_voices
from batchscribe.errors import PermanentError
from batchscribe.protocols import Store

LOG = structlog.get_logger()
NAMES = ".speakers.json"
"""End of the key of a session's names, after the stem of its files. A user writes it, and only a user."""


def add_names(output: Store, session: str, rendering: Rendering) -> Rendering:
    """The rendering with the names of the session's speakers. Raises PermanentError for unreadable ones."""
    if not rendering.labels_speakers:
        return rendering
    places = [f"{stem}{NAMES}" for stem in session_stems(session)]
    for key, data in fetch_objects(output, places, limit=RECORD_BYTES):
        try:
            return replace(rendering, names=decode_names(data))
        except PermanentError as error:
            raise PermanentError(f"{key!r}: {error}; the session's files were kept") from error
    return rendering


def label_parts(
    output: Store, parts: Sequence[PartInput], known: Mapping[str, PartSpeakers], rendering: Rendering
) -> Sequence[PartInput]:
    """The parts with their speakers. `known`: by audio key, the labels of the session's file until now."""
    if not rendering.labels_speakers:
        return parts
    held = dict(_read_voices(output, parts, known))
    labelled = dict(zip(held, label_voices(list(held.values()), rendering.speaker_count), strict=True))
    return [
        replace(
            part,
            speakers=PartSpeakers(mark=labelled[at].mark, labels=labelled[at].labels),
            turns=list_turns(labelled[at], rendering.names),
        )
        if at in labelled
        else part
        for at, part in enumerate(parts)
    ]


def _read_voices(
    output: Store, parts: Sequence[PartInput], known: Mapping[str, PartSpeakers]
) -> Iterator[tuple[int, HeldVoices]]:
    """Yields the voices of each part that has any; those of other audio are not the part's."""
    places = {
        voices_key(part.transcript): at
        for at, part in enumerate(parts)
        if isinstance(part.content, Transcript)
    }
    left = SESSION_BYTES
    for key, data in fetch_objects(output, places, limit=VOICES_BYTES):
        left -= len(data)
        if left < 0:
            LOG.warning("voices.skipped", key=key, reason="those of the session are too large together")
            return
        part = parts[places[key]]
        try:
            voices = decode_voices(data)
        except PermanentError as error:
            LOG.warning("voices.skipped", key=key, reason=str(error))
            continue
        if isinstance(part.content, Transcript) and voices.audio.etag == part.content.audio.etag:
            mark, before = hash_values(data), known.get(part.key)
            same = before is not None and (before.mark, len(before.labels)) == (mark, len(voices.voices))
            yield places[key], HeldVoices(voices, mark, before.labels if before and same else ())
