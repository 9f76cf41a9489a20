"""Former module of `core.run.manifest`; importable until 0.3."""

from batchscribe.core.run.manifest import *  # noqa: F403
