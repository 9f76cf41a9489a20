"""Former module of `audio.audio_decoder`; importable until 0.3."""

from batchscribe.audio.audio_decoder import *  # noqa: F403
