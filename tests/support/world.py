"""A whole world of doubles on one fake clock, in which the production tick runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from batchscribe import __version__
from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.controller.advance import PassResult, advance_all, take_step
from batchscribe.controller.context import RunConfig, Waits, World
from batchscribe.controller.observe import observe
from batchscribe.controller.recovery import recover
from batchscribe.controller.scan import Scanner
from batchscribe.controller.steps import open_run
from batchscribe.controller.tick import Ticked
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.observation import Observation, Policy
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Decision, Launch, continue_run, decide
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import (
    EngineSpec,
    Limits,
    Manifest,
    Progress,
    WorkerEnd,
    WorkerRef,
)
from batchscribe.core.run.runs import Run
from batchscribe.core.run.waiting import Wait, wait_text
from batchscribe.core.text.rendering import Rendering
from batchscribe.ledger import Ledger
from batchscribe.ledger.ledger import PRAGMAS
from batchscribe.protocols import Store
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.guard import FakeGuard
from batchscribe.testing.launcher import FakeLauncher
from batchscribe.testing.notifier import RecordingNotifier
from batchscribe.testing.store import MemoryStore
from batchscribe.testing.worker import ChunkFate, PlayedWorker, WorkerScript

SECRET = "of this scheduler"
INSTANCE = "i-0123456789abcdef0"
RATE = Rate(per_hour=Usd.parse("0.526"), source="test")


class Notes(RecordingNotifier):
    """A notifier, a view and a report writer that record."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Progress] = []
        self.waits: list[str] = []
        self.reports: list[Run] = []

    def show(self, _run: Run, progress: Progress) -> None:
        self.shown.append(progress)

    def wait(self, wait: Wait, run: str = "") -> None:
        self.waits.append(wait_text(wait))

    def clear(self) -> None:
        """Shows nothing that has to be removed."""


@dataclass
class PlayedWorkers:
    """The workers of a launcher: a chunk every few seconds by the fake clock, then the exit record."""

    clock: FakeClock
    store: Store
    seconds_each: float = 2.0
    slow: dict[int, float] = field(default_factory=dict)
    """Seconds of each chunk by the number of the worker, if they differ."""
    end: WorkerEnd = WorkerEnd.FINISHED
    message: str = ""
    dies_after: int | None = None
    deaf: bool = False
    skips: frozenset[str] = frozenset()
    endless: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset()
    started: dict[tuple[str, int], PlayedWorker] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)

    def launch(self, _instance: Instance, manifest: Manifest, _url: str) -> None:
        script = WorkerScript(
            seconds=lambda: self.slow.get(manifest.worker, self.seconds_each),
            fate=lambda key: self._fate(manifest, key),
            ignores_end=lambda: self.deaf,
            published=self.published.append,
            end=lambda: (self.end, self.message),
        )
        self.started[manifest.run, manifest.worker] = PlayedWorker(self.clock, self.store, manifest, script)

    def cancel(self, worker: WorkerRef) -> None:
        self.started[worker.run, worker.worker].ask_to_end()

    def kill(self, worker: WorkerRef) -> None:
        self.started[worker.run, worker.worker].die()

    def is_alive(self, worker: WorkerRef) -> bool:
        return self.started[worker.run, worker.worker].alive

    def manifest(self, run: Run) -> Manifest:
        """The run's first manifest."""
        return self.started[run.id, 0].manifest

    def _fate(self, manifest: Manifest, key: str) -> ChunkFate:
        number = self.dies_after
        if number is not None and [chunk.key for chunk in manifest.chunks].index(key) == number:
            return ChunkFate.KILLER
        if key in self.endless:
            return ChunkFate.ENDLESS
        if key in self.skips:
            return ChunkFate.FORGOTTEN
        return ChunkFate.POISON if key in self.fails else ChunkFate.GOOD


@dataclass
class Stage:
    """The world, its configuration, and a hand on everything in it."""

    world: World
    config: RunConfig
    clock: FakeClock
    store: MemoryStore
    compute: FakeCompute
    capacity: ExistingInstances
    """The seam over `compute`."""
    launcher: FakeLauncher
    worker: PlayedWorkers
    guard: FakeGuard
    notes: Notes
    ledger: Ledger

    def upload(self, count: int, *, session: str = "s", size: int = 40_000, first: int = 1) -> list[str]:
        names = [f"{session}/chunk-{number:03}.webm" for number in range(first, first + count)]
        for name in names:
            self.store.place(name, name.encode(), size=size)
        return names


def stage(
    folder: Path,
    *,
    policy: Policy | None = None,
    store: MemoryStore | None = None,
    types: tuple[str, ...] = (),
    rate_of: Callable[[str], Rate] | None = None,
    **config: object,
) -> Stage:
    """A bucket, a cloud with one stopped GPU, and a scheduler whose ledger lies in `folder`."""
    clock = FakeClock()
    bucket = store or MemoryStore(clock)
    compute = FakeCompute(clock)
    compute.add(INSTANCE, instance_type="g4dn.xlarge")
    capacity = ExistingInstances(
        compute=compute,
        provider="ec2",
        rate_of=rate_of or (lambda _type: RATE),
        own_type="g4dn.xlarge",
        types=types,
    )
    worker = PlayedWorkers(clock, bucket)
    launcher = FakeLauncher(on_launch=worker.launch, on_cancel=worker.cancel, on_kill=worker.kill)
    launcher.is_alive = worker.is_alive
    guard = FakeGuard(clock, lambda _instance: None)
    notes = Notes()
    ledger = Ledger(folder / "ledger.sqlite", pragmas=PRAGMAS | {"synchronous": "OFF"})
    ids = iter(range(1000))
    world = World(
        clock=clock,
        source=bucket,
        output=bucket,
        home=bucket,
        capacity=capacity,
        launcher=launcher,
        guard=guard,
        notifier=notes,
        ledger=ledger,
        shield=clock,
        keep_alive=lambda: None,
        elsewhere=lambda world, _run: world,
        view=notes,
        scanner=_scanner(bucket, clock),
        preflight=lambda: None,
        secret=SECRET,
        new_run_id=lambda now: f"{now:%Y%m%d-%H%M%S}-{next(ids):06x}",
        open_rendering=Rendering,
        run_log=lambda _run: nullcontext(),
        report=notes.reports.append,
    )
    agreed = {
        "scheduler": "this",
        "release": __version__,
        "provider": "ec2",
        "instances": (INSTANCE,),
        "policy": policy or Policy(),
        "choose_engine": lambda _language: EngineSpec(engine="played"),
        "limits": Limits(),
        "max_attempts": 3,
        "priors": Priors(),
        "waits": Waits(),
    } | config
    return Stage(
        world=world,
        config=RunConfig(**agreed),  # type: ignore[arg-type]
        clock=clock,
        store=bucket,
        compute=compute,
        capacity=capacity,
        launcher=launcher,
        worker=worker,
        guard=guard,
        notes=notes,
        ledger=ledger,
    )


def advanced(at: Stage, is_there: Callable[[Run], bool]) -> Run:
    """The open run, after as many passes as it takes."""
    for _ in range(400):
        (run,) = at.ledger.open_runs()
        if is_there(run):
            return run
        at.clock.sleep(5)
        advance_all(at.world, at.config, PassResult())
    raise AssertionError("the run never came there")


def once(at: Stage) -> Ticked:
    """One step of the open run, or a decision and the first step of the run that it begins."""
    world, config, passed = at.world, at.config, PassResult()
    seen: Observation | None = None
    decision: Decision
    if runs := world.ledger.open_runs():
        run, decision = runs[0], continue_run(world.clock.now(), runs[0])
    else:
        recover(world, config)
        seen = observe(world, config)
        decision = decide(seen, config.policy)
        if not isinstance(decision, Launch):
            return Ticked(seen, decision)
        run = open_run(world, config, decision, seen.instances)
    run = take_step(world, config, run, passed)
    return Ticked(seen, decision, (run,), passed.all_errors)


def _scanner(store: MemoryStore, clock: FakeClock) -> Callable[[bool], Scanner]:
    def scanner(manual: bool) -> Scanner:
        age = timedelta(0) if manual else timedelta(minutes=5)
        return Scanner(store, store, clock=clock, min_age=age, live_lock=lambda: None, decoder=None)

    return scanner
