"""No guard outside this machine: switched off by name, and said so wherever a guard is shown."""

from __future__ import annotations

from batchscribe.core.instances import Claim


class NoGuard:
    """A protocols.Guard that guards nothing: only this machine can stop the GPU."""

    description = (
        "off: nothing outside this machine would stop the GPU; if this machine dies during a run, "
        "the GPU runs on until this machine is back"
    )

    def arm(self, claim: Claim) -> None:
        """Does nothing, by choice of the operator."""

    def disarm(self, instance: str, run: str) -> None:
        """Does nothing: nothing was armed."""

    def armed(self, instance: str) -> frozenset[str]:  # noqa: ARG002  the protocol's signature
        """Never."""
        return frozenset()
