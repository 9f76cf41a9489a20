"""Steps of a run; each moves it to another state."""

from __future__ import annotations

from enum import StrEnum

from batchscribe.core.run.runs import Run, RunState


class Step(StrEnum):
    ARM = "arm"
    PROVISION = "provision"
    AWAIT_RUNNING = "await-running"
    DISPATCH = "dispatch"
    FOLLOW = "follow"
    RELEASE = "release"
    SETTLE = "settle"


_STEPS = {
    RunState.PLANNED: Step.ARM,
    RunState.ARMED: Step.PROVISION,
    RunState.PROVISIONING: Step.AWAIT_RUNNING,
    RunState.DISPATCHING: Step.DISPATCH,
    RunState.TRANSCRIBING: Step.FOLLOW,
    RunState.RELEASING: Step.RELEASE,
    RunState.VERIFYING: Step.SETTLE,
}


def next_step(run: Run) -> Step | None:
    """The next step of a run; None if it is settled."""
    return _STEPS.get(run.state)
