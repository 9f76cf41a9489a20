"""The absent guard: switched off by a setting, or not needed."""

from __future__ import annotations

from batchscribe.core.run.instances import Claim

OFF = (
    "off: nothing outside this machine would stop the GPU; if this machine dies during a run, the GPU runs "
    "on until this machine is back (BATCH_CLOUD_GUARD=off)"
)
NOT_NEEDED = "none: the GPU is in this machine"
RAY_ENDS = (
    "none outside the Ray cluster: each machine ends itself 3 min after its deadline or after 10 min without "
    "work, and the autoscaler ends idle nodes"
)


class NoGuard:
    """A protocols.Guard without effect: only this machine can stop the GPU."""

    def __init__(self, description: str = OFF) -> None:
        self.description = description

    def arm(self, claim: Claim) -> None:
        """Does nothing."""

    def disarm(self, instance: str, run: str) -> None:
        """Does nothing: nothing was armed."""

    def armed(self, instance: str) -> frozenset[str]:  # noqa: ARG002  the protocol's signature
        """Empty set: nothing is ever armed."""
        return frozenset()
