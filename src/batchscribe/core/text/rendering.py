"""The form of session files: replacements in text, limits of subtitles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from batchscribe.core.text.caption_style import DEFAULT_STYLE, CaptionStyle
from batchscribe.core.text.replacements import Replacement, hash_rules, replace_words
from batchscribe.core.text.speakers import OFF
from batchscribe.core.text.spelling import join_segments
from batchscribe.core.text.subtitles import render
from batchscribe.core.text.transcripts import SessionTranscript


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """Makes a session's files from its transcript; chunk transcripts stay."""

    style: CaptionStyle = DEFAULT_STYLE
    replacements: tuple[Replacement, ...] = ()
    speakers: str = OFF
    """The number of speakers, `auto` or `off`."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of the session's speakers, by label."""

    @property
    def labels_speakers(self) -> bool:
        return self.speakers != OFF

    @property
    def speaker_count(self) -> int | None:
        """The stated number of speakers; None if it is open."""
        return int(self.speakers) if self.speakers.isdecimal() else None

    def sign(self, digest: str) -> str:
        """The digest of a session's inputs and of its non-default settings."""
        if self == DEFAULT_RENDERING:
            return digest
        form = f"{digest} {self.style} {hash_rules(self.replacements)}"
        if self.labels_speakers:
            form += f" {self.speakers} {sorted(self.names.items())}"
        return hashlib.sha256(form.encode()).hexdigest()

    def finish(self, transcript: SessionTranscript) -> SessionTranscript:
        """The transcript as written; raises PermanentError for slow replacements."""
        digest = self.sign(transcript.digest)
        if self.labels_speakers:
            transcript = msgspec.structs.replace(transcript, speakers=self.speakers)
        if not self.replacements:
            return msgspec.structs.replace(transcript, digest=digest)
        segments = tuple(replace_words(segment, self.replacements) for segment in transcript.segments)
        text = join_segments(segments)
        return msgspec.structs.replace(transcript, segments=segments, text=text, digest=digest)

    def render(self, transcript: SessionTranscript, format_: str) -> bytes:
        """Renders a finished transcript. Raises MisconfiguredError for an unknown format."""
        return render(transcript, format_, self.style)


DEFAULT_RENDERING = Rendering()
