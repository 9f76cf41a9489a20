"""Former module of `core.text.transcripts`; importable until 0.3."""

from batchscribe.core.text.transcripts import *  # noqa: F403
