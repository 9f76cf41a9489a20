"""Former module of `core.text.speech`; importable until 0.3."""

from batchscribe.core.text.speech import *  # noqa: F403
