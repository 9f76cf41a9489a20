"""Former place of `core.text.speech`; other packages may import it from here until 0.3."""

from batchscribe.core.text.speech import *  # noqa: F403
