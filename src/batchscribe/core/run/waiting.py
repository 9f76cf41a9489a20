"""Description of what an open run waits for."""

from __future__ import annotations

from dataclasses import dataclass

from batchscribe.core.run.meter import Moment
from batchscribe.core.run.runs import Run, RunState


@dataclass(frozen=True, slots=True)
class Wait:
    """What is waited for, with the last cause; for how many seconds, and at most how many."""

    text: str
    seconds: float = 0.0
    limit: float | None = None


def find_wait(run: Run, now: Moment, *, up: float, reach: float) -> Wait | None:
    """Returns what a run waits for; None while its worker reports progress.

    `up` and `reach` are the limits in seconds for a running instance, and for a host that answers.
    """
    match run.state:
        case RunState.PLANNED | RunState.ARMED:
            return Wait(_add_cause(f"waiting until {run.instance} is free", run))
        case RunState.PROVISIONING:
            name = f"{run.instance} ({run.instance_type})" if run.instance_type else run.instance
            return Wait(_add_cause(f"starting {name}", run), _seconds_since(run.start_requested, now), up)
        case RunState.DISPATCHING:
            machine = next(iter(run.undispatched), run.machines[0])
            text = run.trouble or f"waiting for an answer of {machine.id}"
            return Wait(text, _seconds_since(machine.reaching_since, now), reach)
        case RunState.TRANSCRIBING if run.worker_since is None:
            since = run.machines[0].reaching_since
            return Wait(
                _add_cause(f"waiting for the worker on {run.instance}", run), _seconds_since(since, now)
            )
        case RunState.RELEASING:
            held = ", ".join(machine.id for machine in run.machines if not machine.released)
            return Wait(_add_cause(f"stopping {held}", run), _seconds_since(run.stop_requested, now))
        case _:
            return None


def wait_text(wait: Wait) -> str:
    """One line: `starting i-0123 (g4dn.xlarge), 0:25 of 10:00`."""
    limit = f" of {_format_minutes(wait.limit)}" if wait.limit is not None else ""
    return f"{wait.text}, {_format_minutes(wait.seconds)}{limit}"


def _add_cause(text: str, run: Run) -> str:
    return f"{text}: {run.trouble}" if run.trouble else text


def _seconds_since(since: Moment | None, now: Moment) -> float:
    return max(0.0, now.seconds_since(since)) if since else 0.0


def _format_minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
