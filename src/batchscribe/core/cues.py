"""Former place of `core.text.cues`; other packages may import it from here until 0.3."""

from batchscribe.core.text.cues import *  # noqa: F403
