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

ALL = (REPAIRED, PARTIAL, TRACK_MISSING, RESCALED, RERUN, LOW_CONFIDENCE, UNHEARD, NO_SPEECH)
