"""Former place of `adapters.output.subtitles`; other packages may import it from here until 0.3."""

from batchscribe.adapters.output.subtitles import *  # noqa: F403
