"""Settings that contradict each other; `completed` has values by attribute, with derived defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchscribe.core.keys import CONTROL
from batchscribe.errors import MisconfiguredError


def refuse_misplaced_launch(completed: Mapping[str, Any]) -> None:
    launch, provider = completed.get("launch", "auto"), completed["provider"]
    fitting = ("auto", "local") if provider == "local" else ("auto", "boot", "ssh")
    if launch not in fitting:
        raise MisconfiguredError(
            f"BATCH_LAUNCH={launch} cannot start a GPU of GPU_PROVIDER={provider}: use {' or '.join(fitting)}"
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


def refuse_misplaced_state(completed: Mapping[str, Any]) -> None:
    """The state has the key of the scheduler's seals: no writer of audio and no GPU host may read it."""
    state = completed.get("state", "")
    if "://" not in state:
        return
    if state.startswith("file:"):
        raise MisconfiguredError(
            "BATCH_STATE_DIR is a file URL, and the machine's users could read the scheduler's secret there: "
            "write the folder itself, as a path"
        )
    if completed["provider"] == "local" or completed.get("cpu_lane", "off") != "off":
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


CONFLICTS = (refuse_misplaced_launch, refuse_misplaced_control, refuse_misplaced_state)
"""Each raises MisconfiguredError."""
