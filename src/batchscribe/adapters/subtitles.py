"""Former path of `core.text.subtitles`, kept for other packages until 0.3."""

from batchscribe.core.text.subtitles import *  # noqa: F403
