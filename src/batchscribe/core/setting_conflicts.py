"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscribe.core.keys import CONTROL
from batchscribe.errors import MisconfiguredError


def refuse_misplaced_launch(launch: str, provider: str) -> None:
    fitting = ("auto", "local") if provider == "local" else ("auto", "boot", "ssh")
    if launch not in fitting:
        raise MisconfiguredError(
            f"BATCH_LAUNCH={launch} cannot start a GPU of GPU_PROVIDER={provider}: use {' or '.join(fitting)}"
        )


def refuse_unfitting_guard(guard: str, provider: str) -> None:
    """EventBridge can stop neither this machine nor the actors of a Ray cluster."""
    if provider == "ray" and guard != "off":
        raise MisconfiguredError(
            f"BATCH_CLOUD_GUARD={guard} cannot stop a machine of GPU_PROVIDER=ray: remove it; machines end "
            "themselves, and the cluster's idle timeout ends their nodes"
        )


def refuse_misplaced_control(completed: Mapping[str, Any]) -> None:
    """Only the prefix `_batchscribe/` distinguishes control objects from audio and results."""
    control = f"{completed.get('control', '')}/"
    default = f"{completed['output']}/{CONTROL}"
    for name, attribute in (("BATCH_SOURCE", "source"), ("BATCH_OUTPUT", "output")):
        place = f"{completed.get(attribute, '')}/"
        if len(place) > 1 and control.startswith(place) and control != default:
            raise MisconfiguredError(
                f"BATCH_CONTROL is inside {name}, so its objects would be listed as audio: use a separate "
                "prefix or bucket"
            )
