"""Former module of `core.text.cues`; importable until 0.3."""

from batchscribe.core.text.cues import *  # noqa: F403
from batchscribe.core.text.cues import make_cues

cues = make_cues
