"""Transcribes a bucket's audio on a GPU that is started on demand."""

__version__ = "0.2.0"
ACCEPTED_RELEASES = frozenset({__version__, "0.1.0"})
"""Releases of schedulers whose manifests a worker of this release processes: its own, and the one before."""
