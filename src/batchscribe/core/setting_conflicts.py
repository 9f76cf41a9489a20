"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscribe.core.keys import CONTROL
from batchscribe.errors import MisconfiguredError

_LAUNCHES = {
    "local": ("auto", "local"),
    "ec2": ("auto", "boot", "ssh"),
    "fleet": ("auto", "boot"),
    "ray": ("auto",),
}
"""Values of BATCH_LAUNCH, by provider."""


def refuse_misplaced_launch(launch: str, provider: str) -> None:
    fitting = _LAUNCHES[provider]
    if launch not in fitting:
        raise MisconfiguredError(
            f"BATCH_LAUNCH={launch} cannot start a GPU of GPU_PROVIDER={provider}: use {' or '.join(fitting)}"
        )


def refuse_unused_machine(values: Mapping[str, Any]) -> None:
    """Refuses settings of one instance for machines that runs create.

    With a fleet, GPU_INSTANCE_ID is the instance that images are made on.
    """
    provider = values["provider"]
    if provider == "ray" and values.get("instance_id"):
        raise MisconfiguredError(
            "GPU_INSTANCE_ID names an instance, and a run of GPU_PROVIDER=ray has the nodes of its cluster: "
            "remove GPU_INSTANCE_ID, or use GPU_PROVIDER=ec2"
        )
    if provider == "fleet" and values.get("hourly_cost") is not None:
        raise MisconfiguredError(
            "GPU_HOURLY_COST is one price, and GPU_PROVIDER=fleet has one for each type, market and zone: "
            "remove it, or write your prices into BATCH_PRICE_FILE"
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
