"""Settings that contradict each other.

`completed` has values by attribute, with derived defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscribe.core.decide.offers import EC2, FLEET, LOCAL, RAY
from batchscribe.core.keys import CONTROL
from batchscribe.errors import MisconfiguredError

_LAUNCHES = {
    LOCAL: ("auto", "local"),
    EC2: ("auto", "boot", "ssh"),
    FLEET: ("auto", "boot"),
    RAY: ("auto",),
}
"""Values of BATCH_LAUNCH, by provider."""


def refuse_misplaced_launch(completed: Mapping[str, Any]) -> None:
    launch, provider = completed.get("launch", "auto"), completed["provider"]
    fitting = _LAUNCHES[provider]
    if launch not in fitting:
        raise MisconfiguredError(
            f"BATCH_LAUNCH={launch} cannot start a GPU of GPU_PROVIDER={provider}: use {' or '.join(fitting)}"
        )


def refuse_unused_machine(completed: Mapping[str, Any]) -> None:
    """Refuses settings of instances or regions that the provider cannot use.

    With a fleet, GPU_INSTANCE_ID is the instance that images are made on.
    """
    provider = completed["provider"]
    if provider == RAY and completed.get("instance_id"):
        raise MisconfiguredError(
            "GPU_INSTANCE_ID names an instance, and a run of GPU_PROVIDER=ray has the nodes of its cluster: "
            "remove GPU_INSTANCE_ID, or use GPU_PROVIDER=ec2"
        )
    if provider == FLEET and completed.get("hourly_cost") is not None:
        raise MisconfiguredError(
            "GPU_HOURLY_COST is one price, and GPU_PROVIDER=fleet has one for each type, market and zone: "
            "remove it, or write your prices into BATCH_PRICE_FILE"
        )
    if provider != FLEET and completed.get("further_regions"):
        raise MisconfiguredError(
            f"GPU_FURTHER_REGIONS has regions to create machines in, and GPU_PROVIDER={provider} creates "
            "none there: remove it, or use GPU_PROVIDER=fleet"
        )


def refuse_repeated_region(completed: Mapping[str, Any]) -> None:
    """Refuses a repeated region; the home region has to be known."""
    further = [there.name for there in completed.get("further_regions", ())]
    home = completed.get("region", "")
    if further and not home:
        raise MisconfiguredError("GPU_FURTHER_REGIONS is set without AWS_REGION: set the region before them")
    if len({home, *further}) <= len(further):
        raise MisconfiguredError(
            "GPU_FURTHER_REGIONS has a region twice, or that of AWS_REGION: list each region once"
        )


def refuse_unfitting_guard(completed: Mapping[str, Any]) -> None:
    """Refuses a guard for a Ray cluster: EventBridge cannot stop its actors."""
    guard, provider = completed["cloud_guard"], completed["provider"]
    if provider == RAY and guard != "off":
        raise MisconfiguredError(
            f"BATCH_CLOUD_GUARD={guard} cannot stop a machine of GPU_PROVIDER=ray: remove it; machines end "
            "themselves, and the cluster's idle timeout ends their nodes"
        )


def refuse_misplaced_control(completed: Mapping[str, Any]) -> None:
    """Refuses a place that control objects would share with audio or results."""
    control = f"{completed.get('control', '')}/"
    default = f"{completed['output']}/{CONTROL}"
    for name, attribute in (("BATCH_SOURCE", "source"), ("BATCH_OUTPUT", "output")):
        place = f"{completed.get(attribute, '')}/"
        if len(place) > 1 and control.startswith(place) and control != default:
            raise MisconfiguredError(
                f"BATCH_CONTROL is inside {name}, so its objects would be listed as audio: use a separate "
                "prefix or bucket"
            )


def refuse_misplaced_state(completed: Mapping[str, Any]) -> None:
    """Refuses a state in a place whose users could read its secret."""
    state = completed.get("state", "")
    if "://" not in state:
        return
    if state.startswith("file:"):
        raise MisconfiguredError(
            "BATCH_STATE_DIR is a file URL, and the machine's users could read the scheduler's secret there: "
            "write the folder itself, as a path"
        )
    if completed["provider"] == LOCAL or completed.get("cpu_lane", "off") != "off":
        raise MisconfiguredError(
            "BATCH_STATE_DIR is in a store, but work on this machine's own GPU or processor needs a folder: "
            "use one, or GPU_INSTANCE_ID without BATCH_CPU_LANE"
        )
    for name, attribute in (("SOURCE", "source"), ("OUTPUT", "output"), ("CONTROL", "control")):
        place = completed.get(attribute, "")
        if place and f"{state}/".startswith(f"{place}/"):
            raise MisconfiguredError(
                f"BATCH_STATE_DIR is inside BATCH_{name}, whose users could read the scheduler's secret: use "
                "a separate prefix or bucket"
            )


CONFLICTS = (
    refuse_misplaced_launch,
    refuse_unused_machine,
    refuse_repeated_region,
    refuse_unfitting_guard,
    refuse_misplaced_control,
    refuse_misplaced_state,
)
"""Each raises MisconfiguredError."""
