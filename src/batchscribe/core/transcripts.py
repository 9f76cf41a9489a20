"""Former place of `core.text.transcripts`; other packages may import it from here until 0.3."""

from batchscribe.core.text.transcripts import *  # noqa: F403
