"""Former path of `adapters.output.subtitles`, kept for other packages until 0.3."""

from batchscribe.adapters.output.subtitles import *  # noqa: F403
