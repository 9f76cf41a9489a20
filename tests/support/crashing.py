"""Command lines that die by SIGKILL at a named place, each a process of its own with real files.

Every seam of the World is wrapped from outside. Before and after each call, a failed one too, lies a place:
`compute.start:before`, `ledger.save_run:settled:after`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

PLAYED_WORKER = Path(__file__).with_name("played_worker.py")
MESSAGES = "messages"
TRIES = 1
LAG = 0.2
"""Seconds: moto shows an instance `stopped` at once, without `stopping`, and its answers are never old."""
READ_TIMEOUT = 0.5
"""Seconds, of a call to the cloud in here: a fault is met by our code, not by the library's own patience."""


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code, or minus the signal that killed it."""

    code: int
    output: str
    errors: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.output)


@dataclass(frozen=True)
class Fuse:
    """Kills this process at one place."""

    place: str

    def at(self, place: str) -> None:
        if place == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


class Fused:
    """Stands before anything with methods, with a place to die before and after each call."""

    def __init__(
        self, inner: object, name: str, fuse: Fuse, of: Callable[..., str] = lambda *_args: ""
    ) -> None:
        self._inner = inner
        self._name = name
        self._fuse = fuse
        self._of = of

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        return self._wrapped(attribute, value) if callable(value) else value

    def _wrapped(self, attribute: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            place = f"{self._name}.{attribute}{self._of(*args)}"
            self._fuse.at(f"{place}:before")
            try:
                return method(*args, **named)
            finally:  # after a failure too: what it did is then known to nobody
                self._fuse.at(f"{place}:after")

        return call


class TranscriptInfo:
    """A notifier whose receiver is a file with a line of JSON for each message."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def send(self, message: Any) -> None:
        line = {"title": message.title, "body": message.body, "level": message.level.value}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def emit(self, kind: str, data: Any) -> None:
        """Events are not counted."""


def _state(*args: Any) -> str:
    """`:settled` of a run that is saved."""
    return f":{args[0].state.value}" if args and hasattr(args[0], "state") else ""


def _object(*args: Any) -> str:
    """`:intent` of a control object, `:instance` of an instance's record, `:session` of anything else."""
    key = args[0] if args and isinstance(args[0], str) else ""
    if "/instances/" in key:
        return ":instance"
    return f":{Path(key).stem}" if key.startswith("_batchscribe/") else ":session"


def _fused(world: Any, fuse: Fuse) -> Any:
    from batchscribe.adapters.existing_instances import ExistingInstances
    from batchscribe.adapters.local.launcher import LocalLauncher

    state = Path.cwd() / ".batchscribe"
    played = LocalLauncher(
        state,
        Path.cwd() / "logs",
        environment=dict(os.environ),
        command=(sys.executable, str(PLAYED_WORKER)),
    )
    launcher = Fused(played, "launcher", fuse)
    if isinstance(world.capacity, ExistingInstances):
        capacity: Any = replace(world.capacity, compute=Fused(world.capacity.compute, "compute", fuse))
    else:
        capacity = Fused(world.capacity, "capacity", fuse)
    output = Fused(world.output, "store", fuse, _object)
    home = output if world.home is world.output else Fused(world.home, "store", fuse, _object)
    return replace(
        world,
        output=output,
        home=home,
        capacity=capacity,
        launcher=launcher,
        elsewhere=lambda here, run: replace(world.elsewhere(here, run), launcher=launcher),
        guard=Fused(world.guard, "guard", fuse),
        notifier=Fused(TranscriptInfo(Path.cwd() / MESSAGES), "notifier", fuse),
        ledger=Fused(world.ledger, "ledger", fuse, _state),
    )


def _shorten(module: Any, name: str) -> None:
    """Gives an adapter of the cloud little patience, whoever makes it."""
    kind = getattr(module, name)

    def begin(self: Any, **named: Any) -> None:
        kind.__init__(self, **(named | {"attempts": TRIES, "read_timeout": READ_TIMEOUT}))

    setattr(module, name, type(name, (kind,), {"__init__": begin}))


def poll_often() -> None:
    """Makes this process poll machines at work at each pass, not twice a minute."""
    from batchscribe.wiring import scheduler

    kind: Any = scheduler
    kind.Waits = partial(kind.Waits, describe=0.0)


def arm(*, crash: str, lands: float | None, host: str) -> None:
    """Makes this process a command line that is killed at the place `crash`.

    `lands` is how long a start may take to show, in seconds, if that is not to be waited for. `host` is the
    name of the machine, if it is to be another one.
    """
    from batchscribe.adapters.aws import ec2, eventbridge, fleet
    from batchscribe.controller import steps, teardown
    from batchscribe.core.run import meter
    from batchscribe.wiring import scheduler

    _shorten(ec2, "Ec2Compute")
    _shorten(fleet, "FleetCapacity")
    _shorten(eventbridge, "EventBridgeGuard")
    if lands is not None:
        for module in (steps, teardown):
            module.START_VISIBILITY_DELAY = timedelta(seconds=lands)  # type: ignore[attr-defined]
    meter.LONGEST_LAG = timedelta(seconds=LAG)
    if host:
        scheduler.socket.gethostname = lambda: host  # type: ignore[attr-defined]
    build, fuse = scheduler._build_world, Fuse(crash)
    scheduler._build_world = lambda *args, **named: _fused(build(*args, **named), fuse)
