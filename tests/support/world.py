"""A whole world of doubles on one fake clock, in which the production tick runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from batchscribe import __version__
from batchscribe.controller.advance import Passed, take_step
from batchscribe.controller.context import Terms, Waits, World
from batchscribe.controller.observe import observe
from batchscribe.controller.reconcile import recover
from batchscribe.controller.scan import Scanner
from batchscribe.controller.steps import open_run
from batchscribe.controller.tick import Ticked
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.packing import Priors
from batchscribe.core.decide.policy import Decision, Launch, Observation, Policy, continue_run, decide
from batchscribe.core.messages import Message
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.instances import Claim, Instance
from batchscribe.core.run.manifest import (
    EngineSpec,
    ExitRecord,
    Limits,
    Manifest,
    Phase,
    Progress,
    Tally,
    Timings,
    WorkerEnd,
    WorkerRef,
)
from batchscribe.core.run.runs import Run, next_step
from batchscribe.core.text.transcripts import AudioRef, Segment, Transcript, Word, encode
from batchscribe.ledger import Ledger
from batchscribe.testing.clock import FakeClock
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.launcher import FakeLauncher
from batchscribe.testing.store import MemoryStore

SECRET = "of this scheduler"
INSTANCE = "i-0123456789abcdef0"
RATE = Rate(per_hour=Usd.parse("0.526"), source="test")
SECONDS_PER_CHUNK = 10.0


class Notes:
    """A notifier, a view, a guard and a report writer that remember."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.events: list[str] = []
        self.shown: list[Progress] = []
        self.reports: list[Run] = []
        self.guarded: dict[str, str] = {}
        self.description = "remembered"
        self.guard_calls: list[str] = []
        self.arm_error: Exception | None = None

    def send(self, message: Message) -> None:
        self.messages.append(message)

    def emit(self, kind: str, data: Mapping[str, object]) -> None:
        self.events.append(f"{kind} {data.get('session', '')}".rstrip())

    def show(self, _run: Run, progress: Progress) -> None:
        self.shown.append(progress)

    def arm(self, claim: Claim) -> None:
        self.guard_calls.append("arm")
        if self.arm_error:
            raise self.arm_error
        self.guarded[claim.run] = claim.instance

    def disarm(self, _instance: str, run: str) -> None:
        self.guard_calls.append("disarm")
        self.guarded.pop(run, None)

    def armed(self, instance: str) -> frozenset[str]:
        return frozenset(run for run, guarded in self.guarded.items() if guarded == instance)


@dataclass
class PlayedWorker:
    """Plays a worker in the store by the fake clock: a chunk every few seconds, then the last word."""

    clock: FakeClock
    store: MemoryStore
    seconds_each: float = 2.0
    end: WorkerEnd = WorkerEnd.FINISHED
    message: str = ""
    dies_after: int | None = None
    deaf: bool = False
    skips: frozenset[str] = frozenset()
    endless: frozenset[str] = frozenset()
    fails: frozenset[str] = frozenset()
    alive: dict[tuple[str, int], bool] = field(default_factory=dict)
    manifests: dict[tuple[str, int], Manifest] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)

    def launch(self, _instance: Instance, manifest: Manifest, _url: str) -> None:
        self.alive[manifest.run, manifest.worker] = True
        self.manifests[manifest.run, manifest.worker] = manifest
        self._next(manifest, 0)

    def cancel(self, worker: WorkerRef) -> None:
        if self.alive.get((worker.run, worker.worker)) and not self.deaf:
            self._exit(self.manifests[worker.run, worker.worker], WorkerEnd.STOPPED)

    def kill(self, worker: WorkerRef) -> None:
        self.alive[worker.run, worker.worker] = False

    def _next(self, manifest: Manifest, index: int) -> None:
        self.clock.at(self.seconds_each, lambda: self._work(manifest, index))

    def _work(self, manifest: Manifest, index: int) -> None:
        if not self.alive[manifest.run, manifest.worker]:
            return
        if self.dies_after == index:
            self._progress(manifest, index, (manifest.chunks[index].key,))
            self.alive[manifest.run, manifest.worker] = False
            return
        chunk = manifest.chunks[index]
        if chunk.key in self.endless:
            self._progress(manifest, index, (chunk.key,))
            return
        if chunk.key in self.skips:
            pass
        elif chunk.key in self.fails:
            failure = wire.Failure(
                key=chunk.key,
                etag=chunk.etag,
                run=manifest.run,
                kind=wire.FailureKind.CHUNK,
                message="not audio",
                at=self.clock.now(),
            )
            self.store.create(keys.attempt(chunk.key, chunk.etag, manifest.run), wire.encode(failure))
        elif self.store.create(chunk.transcript, encode(transcript(chunk, manifest.run, self.clock.now()))):
            self.published.append(chunk.key)
        self._progress(manifest, index + 1, ())
        if index + 1 < len(manifest.chunks):
            self._next(manifest, index + 1)
        else:
            self._exit(manifest, self.end)

    def _tally(self, manifest: Manifest, done: int) -> Tally:
        failed = sum(chunk.key in self.fails for chunk in manifest.chunks[:done])
        return Tally(done=done - failed, failed=failed, audio_seconds=(done - failed) * SECONDS_PER_CHUNK)

    def _progress(self, manifest: Manifest, done: int, in_flight: tuple[str, ...]) -> None:
        progress = Progress(
            run=manifest.run,
            worker=manifest.worker,
            sequence=done,
            phase=Phase.WORKING,
            at=self.clock.now(),
            total=len(manifest.chunks),
            tally=self._tally(manifest, done),
            timings=Timings(loaded=1.0, first_window=1.5, elapsed=done * 2.0 + 1.5, busy=done * 2.0),
            in_flight=in_flight,
        )
        self.store.replace(keys.progress(manifest.run, manifest.worker), wire.encode(progress))

    def _exit(self, manifest: Manifest, end: WorkerEnd) -> None:
        self.alive[manifest.run, manifest.worker] = False
        done = sum(chunk.key in self.published for chunk in manifest.chunks)
        record = ExitRecord(
            run=manifest.run,
            worker=manifest.worker,
            end=end,
            message=self.message,
            at=self.clock.now(),
            tally=self._tally(manifest, done),
            timings=Timings(loaded=1.0, first_window=1.5, elapsed=done * 2.0 + 1.5, busy=done * 2.0),
        )
        self.store.create(keys.exit_record(manifest.run, manifest.worker), wire.encode(record))


def transcript(chunk: wire.ManifestChunk, run: str, at: datetime) -> Transcript:
    words = (Word(word="one", start=0.5, end=0.9), Word(word="two", start=1.0, end=1.4))
    return Transcript(
        text="one two",
        segments=(Segment(text="one two", start=0.5, end=1.4, words=words),),
        duration=SECONDS_PER_CHUNK,
        engine="played",
        model="",
        settings_hash="test",
        audio=AudioRef(name=chunk.key.rpartition("/")[2], key=chunk.key, etag=chunk.etag),
        run=run,
        created_at=at,
    )


@dataclass
class Stage:
    """The world, its terms, and a hand on everything in it."""

    world: World
    terms: Terms
    clock: FakeClock
    store: MemoryStore
    compute: FakeCompute
    launcher: FakeLauncher
    worker: PlayedWorker
    notes: Notes
    ledger: Ledger

    def upload(self, count: int, *, session: str = "s", size: int = 40_000, first: int = 1) -> list[str]:
        names = [f"{session}/chunk-{number:03}.webm" for number in range(first, first + count)]
        for name in names:
            self.store.create(name, name.encode().ljust(size, b"."))
        return names


def stage(
    folder: Path, *, policy: Policy | None = None, store: MemoryStore | None = None, **terms: object
) -> Stage:
    """A bucket, a cloud with one stopped GPU, and a scheduler whose ledger lies in `folder`."""
    clock = FakeClock()
    bucket = store or MemoryStore(clock)
    compute = FakeCompute(clock)
    compute.add(INSTANCE, instance_type="g4dn.xlarge")
    worker = PlayedWorker(clock, bucket)
    launcher = FakeLauncher(on_launch=worker.launch, on_cancel=worker.cancel, on_kill=worker.kill)
    launcher.is_alive = lambda manifest: worker.alive.get((manifest.run, manifest.worker), False)
    notes = Notes()
    ledger = Ledger(folder / "ledger.sqlite")
    ids = iter(range(1000))
    world = World(
        clock=clock,
        source=bucket,
        output=bucket,
        home=bucket,
        compute=compute,
        launcher=launcher,
        guard=notes,
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
        render=lambda whole, kind: encode(whole) if kind == "json" else whole.text.encode(),
        run_log=lambda _run: nullcontext(),
        report=notes.reports.append,
    )
    agreed = {
        "scheduler": "this",
        "release": __version__,
        "provider": "ec2",
        "instances": (INSTANCE,),
        "instance_type": "g4dn.xlarge",
        "rate_of": lambda _type: RATE,
        "policy": policy or Policy(),
        "engine": EngineSpec(engine="played"),
        "settings_hash": "test",
        "limits": Limits(),
        "max_attempts": 3,
        "priors": Priors(),
        "waits": Waits(),
    } | terms
    return Stage(
        world=world,
        terms=Terms(**agreed),  # type: ignore[arg-type]
        clock=clock,
        store=bucket,
        compute=compute,
        launcher=launcher,
        worker=worker,
        notes=notes,
        ledger=ledger,
    )


def once(at: Stage) -> Ticked:
    """One step of the open run, or a decision and the first step of the run that it begins."""
    world, terms, passed = at.world, at.terms, Passed()
    seen: Observation | None = None
    decision: Decision
    if runs := world.ledger.open_runs():
        run, decision = runs[0], continue_run(world.clock.now(), runs[0])
    else:
        recover(world, terms)
        seen = observe(world, terms)
        decision = decide(seen, terms.policy)
        if not isinstance(decision, Launch):
            return Ticked(seen, decision)
        run = open_run(world, terms, decision, seen.instance)
    step = next_step(run)
    assert step is not None
    run = take_step(world, terms, run, step, passed)
    return Ticked(seen, decision, (run,), passed.all_errors)


def _scanner(store: MemoryStore, clock: FakeClock) -> Callable[[bool], Scanner]:
    def scanner(by_hand: bool) -> Scanner:
        age = timedelta(0) if by_hand else timedelta(minutes=5)
        return Scanner(store, store, clock=clock, min_age=age, live_lock=lambda: None, decoder=None)

    return scanner
