"""Description of what an open run waits for."""

from __future__ import annotations

from dataclasses import dataclass

from batchscribe.core.figures import format_count
from batchscribe.core.run.meter import Moment
from batchscribe.core.run.runs import Machine, Run, RunState

_SHARED = frozenset({RunState.PROVISIONING, RunState.DISPATCHING, RunState.TRANSCRIBING})


@dataclass(frozen=True, slots=True)
class Wait:
    """Subject and cause of a wait, with its seconds and limit."""

    text: str
    seconds: float = 0.0
    limit: float | None = None


def find_wait(run: Run, now: Moment, *, up: float, reach: float) -> Wait | None:
    """Returns what a run waits for; None while its worker reports progress.

    `up` and `reach` are the limits in seconds for a running instance, and for a host that answers.
    """
    if len(run.machines) > 1 and run.state in _SHARED:
        return _find_shared_wait(run, now, up)
    return _find_wait(run, now, up=up, reach=reach)


def _find_shared_wait(run: Run, now: Moment, up: float) -> Wait | None:
    """Common wait of several machines; None as soon as one works."""
    if run.worker_since is not None:
        return None
    count = format_count(len(run.working), "machine")
    since = _seconds_since(run.start_requested, now)
    if run.awaited:
        return Wait(_add_cause(f"starting {count}", run), since, up)
    return Wait(_add_cause(f"waiting for the first worker of {count}", run), since)


def _find_wait(run: Run, now: Moment, *, up: float, reach: float) -> Wait | None:
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


def describe_machines(run: Run) -> tuple[str, ...]:
    """A sentence for each of several machines: state, price and cost."""
    if len(run.machines) == 1:
        return ()
    return tuple(
        f"{each.id}{_describe_offer(each)} {_describe_state(run, each)}, at most {run.bill_of(each)}"
        for each in run.machines
    )


def _describe_offer(machine: Machine) -> str:
    named = " ".join(filter(None, (machine.type, machine.market, machine.region)))
    priced = f"{named}, {machine.rate.per_hour} an hour" if machine.rate else named
    return f" ({priced})" if priced else ""


def _describe_state(run: Run, machine: Machine) -> str:
    if machine.released:
        return f"is stopped: {machine.outcome}" if machine.outcome else "is stopped"
    if machine.over:
        return "is being stopped"
    if run.is_at_work(machine):
        return "is at work"
    return "waits for work" if machine.reaching_since else "is being started"


def _add_cause(text: str, run: Run) -> str:
    return f"{text}: {run.trouble}" if run.trouble else text


def _seconds_since(since: Moment | None, now: Moment) -> float:
    return max(0.0, now.seconds_since(since)) if since else 0.0


def _format_minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
