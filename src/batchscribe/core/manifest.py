"""Former place of `core.run.manifest`; other packages may import it from here until 0.3."""

from batchscribe.core.run.manifest import *  # noqa: F403
