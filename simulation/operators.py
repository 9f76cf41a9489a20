"""The operator of the first host: edited settings and ledger files."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.no_guard import NoGuard
from batchscribe.controller.context import RunConfig, World
from batchscribe.controller.scan import Scanner
from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.offers import LOCAL, Market
from batchscribe.core.run.instances import Claim, Instance, InstanceState
from batchscribe.core.run.runs import Run
from batchscribe.protocols import Store
from simulation.timeline import Timeline
from simulation.weather import HOUR, MINUTE, between, pick


class Edit(StrEnum):
    """Settings that differ from the first ones."""

    STORES = "source and output"
    INSTANCE = "instance, source and output"
    PROVIDER = "provider, source and output"
    GUARD = "guard"


class File(StrEnum):
    """Events of the ledger's file."""

    DAMAGED = "damaged"
    SET_ASIDE = "set aside"
    ROLLED_BACK = "rolled back"
    NEWER = "written by a newer version"
    """One open run in it cannot be read."""
    READABLE = "readable again"


class Unguarded(NoGuard):
    """BATCH_CLOUD_GUARD=off; `armed_run` is called with runs that begin without a stop order."""

    def __init__(self, armed_run: Callable[[str], object], let_go: Callable[[str], object]) -> None:
        super().__init__()
        self._armed_run = armed_run
        self._let_go = let_go

    def arm(self, claim: Claim) -> None:
        self._armed_run(claim.run)

    def disarm(self, instance: str, run: str) -> None:  # noqa: ARG002  the protocol's signature
        self._let_go(run)


class ThisMachine:
    """A protocols.Compute with the GPU in the scheduler's own machine."""

    def describe(self, instance: str) -> Instance:
        return Instance(id=instance, state=InstanceState.RUNNING)

    def claim(self, claim: Claim) -> None:
        """It has no tags."""

    def start(self, claim: Claim) -> None:
        """It runs already."""

    def announce(self, instance: str, manifest: str) -> None:
        """It has no tags."""

    def stop(self, instance: str, *, force: bool = False) -> None:
        """It stays up."""

    def release(self, instance: str) -> None:
        """It has no tags."""

    def change_type(self, instance: str, instance_type: str) -> None:
        """Its type cannot change."""


THIS_MACHINE = ExistingInstances(
    compute=ThisMachine(), provider=LOCAL, rate_of=lambda _type: FREE, market=Market.LOCAL
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Current settings, and the empty store that some of them select."""

    edit: Edit | None
    place: Store
    foreign: str
    """Another instance."""
    unguarded: Unguarded

    def config(self, config: RunConfig) -> RunConfig:
        match self.edit:
            case Edit.INSTANCE:
                return replace(config, instances=(self.foreign,))
            case Edit.PROVIDER:
                return replace(config, provider=LOCAL, instances=(LOCAL,), shared_machine=True)
            case _:
                return config

    def world(self, world: World) -> World:
        """World of these settings; its `elsewhere` returns a run's own world."""
        if self.edit is None:
            return world
        if self.edit is Edit.GUARD:
            return replace(world, guard=self.unguarded)

        def back(now: World, run: Run) -> World:
            own = replace(
                now,
                source=world.source,
                output=world.output,
                home=world.home,
                capacity=world.capacity,
                launcher=world.launcher,
                scanner=world.scanner,
            )
            return world.elsewhere(own, run)

        place = self.place
        return replace(
            world,
            source=place,
            output=place,
            home=place,
            capacity=THIS_MACHINE if self.edit is Edit.PROVIDER else world.capacity,
            scanner=lambda _manual: Scanner(place, place, clock=world.clock),
            elsewhere=back,
        )


class Operator:
    """Acts between two processes of the host, at random times."""

    def __init__(self, rng: random.Random, line: Timeline, *, busy: Callable[[], bool]) -> None:
        self.over = False
        self.edit: Callable[[Edit | None], None] = lambda _edit: None
        self.handle: Callable[[File], None] = lambda _file: None
        self.keep_copy: Callable[[], None] = lambda: None
        self._rng = rng
        self._line = line
        self._busy = busy

    def plan(self, *, edits: int, files: int, hours: float) -> None:
        for _ in range(edits):
            kind = pick(self._rng, tuple(Edit))
            lasts = pick(self._rng, (5 * MINUTE, HOUR, 4 * HOUR))
            at = between(self._rng, 0.0, hours * HOUR)
            self._line.at(at, self._between(partial(self.edit, kind)))
            self._line.at(at + lasts, self._between(partial(self.edit, None)))
        for _ in range(files):
            file = pick(self._rng, (File.DAMAGED, File.SET_ASIDE, File.ROLLED_BACK, File.NEWER))
            at = between(self._rng, 0.0, hours * HOUR)
            if file is File.ROLLED_BACK:
                self._line.at(max(0.0, at - between(self._rng, 0.0, HOUR)), self._between(self.keep_copy))
            self._line.at(at, self._between(partial(self.handle, file)))
            if file is File.NEWER:
                self._line.at(at + 2 * HOUR, self._between(partial(self.handle, File.READABLE)))

    def _between(self, act: Callable[[], None]) -> Callable[[], None]:
        def wait() -> None:
            if self.over:
                return
            if self._busy():
                self._line.at(0.5 * MINUTE, wait)
            else:
                act()

        return wait
