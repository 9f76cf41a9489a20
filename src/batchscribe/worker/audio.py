"""Former place of `audio.audio_decoder`; other packages may import it from here until 0.3."""

from batchscribe.audio.audio_decoder import *  # noqa: F403
