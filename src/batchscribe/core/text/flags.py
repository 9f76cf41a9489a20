"""What a transcript says of how it came about, one word for each; reports sum them."""

from __future__ import annotations

REPAIRED = "repaired"
"""It lacked the header of its recording, and was given it."""
PARTIAL = "partial"
"""Some of its sound was lost to damage, or is left out by its header: the rest was transcribed."""
TRACK_MISSING = "track-missing"
"""It has an audio track that is not decoded here: the other tracks were transcribed."""
RESCALED = "rescaled"
"""Its samples were far beyond full scale: their unit was guessed."""
RERUN = "rerun"
"""Some of it looked wrong and was heard a second time, more carefully."""
LOW_CONFIDENCE = "low-confidence"
"""Some of it looks wrong still."""
UNHEARD = "unheard"
"""It has 3 s or more of detected speech without a word, decoded twice."""
NO_SPEECH = "no-speech"
"""No speech was detected in it."""

ALL = (REPAIRED, PARTIAL, TRACK_MISSING, RESCALED, RERUN, LOW_CONFIDENCE, UNHEARD, NO_SPEECH)
