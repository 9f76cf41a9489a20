"""Flags of a transcript: notable events of its creation. Reports count them."""

from __future__ import annotations

REPAIRED = "repaired"
"""The chunk lacked the header of its recording, which was added."""
PARTIAL = "partial"
"""Some of its audio is damaged, or left out by its header; the rest was transcribed."""
TRACK_MISSING = "track-missing"
"""One of its audio tracks is in an unsupported format; the others were transcribed."""
RESCALED = "rescaled"
"""Its samples were far beyond full scale, so their unit was guessed."""
RERUN = "rerun"
"""Some of it was implausible and was decoded again with more careful options."""
LOW_CONFIDENCE = "low-confidence"
"""Some of it is still implausible."""
UNHEARD = "unheard"
"""It has 3 s or more of detected speech without a word, decoded twice."""
NO_SPEECH = "no-speech"
"""No speech was detected in it."""

EXPLANATIONS = {
    REPAIRED: "the file lacked the header of its recording, which was added",
    PARTIAL: "some of its audio is damaged or left out; the rest was transcribed",
    TRACK_MISSING: "one of its audio tracks is in an unsupported format; the others were transcribed",
    RESCALED: "its samples were far beyond full scale, so their unit was guessed",
    RERUN: "some of it was implausible and was decoded again with more careful options",
    LOW_CONFIDENCE: "some of its text is implausible: check it against the audio",
    UNHEARD: "3 s or more of detected speech have no word, although they were decoded twice",
    NO_SPEECH: "no speech was detected in it",
    "missing": "it has no transcript: its words are not in the text",
    "unreadable": "its transcript exists but cannot be read; `batchscribe redo` transcribes it again",
    "no-times": "its transcript has no times: its text spans the whole chunk",
}
"""Meaning of each flag of a transcript or of a session's part, for users."""

ALL = (REPAIRED, PARTIAL, TRACK_MISSING, RESCALED, RERUN, LOW_CONFIDENCE, UNHEARD, NO_SPEECH)
