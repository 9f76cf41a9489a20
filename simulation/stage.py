"""Wiring of an episode: the simulated world of the production tick."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial

import msgspec

from batchscribe import __version__
from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.controller.context import RunConfig, Waits, World
from batchscribe.controller.scan import Scanner
from batchscribe.core import keys
from batchscribe.core.decide.money import Rate, Usd
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run import report
from batchscribe.core.run.host import InstanceRecord
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec, Limits
from batchscribe.core.run.runs import Run
from batchscribe.core.text.rendering import Rendering
from batchscribe.testing.compute import Cloud, Start
from batchscribe.testing.guard import FakeGuard
from batchscribe.testing.worker import ChunkFate, WorkerScript
from simulation.cloud import CloudApi
from simulation.faults import HANG_SECONDS, LONGEST_LAG, SECRET, Trouble
from simulation.gate import Gate
from simulation.hosts import FIRST, SECOND
from simulation.invariants import Checker, Memory
from simulation.lane import Lane
from simulation.launcher import OverSsh
from simulation.operators import Settings
from simulation.people import ManualUsers, Uploads
from simulation.played_host import Boot, PlayedHost
from simulation.process import Slot
from simulation.promises import Promises
from simulation.seams import (
    SENDING,
    Bucket,
    GuardSeam,
    KernelLock,
    LedgerCopy,
    LedgerSeam,
    StoreSeam,
    TextCollector,
)
from simulation.timeline import HostClock, HostTime, Timeline
from simulation.trace import Trace
from simulation.weather import CALM, HOUR, MINUTE, Weather, between, draw_policy, pick

INSTANCE = "i-0123456789abcdef0"
FOREIGN = "i-0fedcba9876543210"
TYPE = "g4dn.xlarge"
OTHERS = ("g5.xlarge", "g6.xlarge")
RATES = {
    name: Rate(per_hour=Usd.parse(dollars), source="simulated")
    for name, dollars in ((TYPE, "0.526"), ("g5.xlarge", "1.006"), ("g6.xlarge", "0.8048"))
}


class Stage:
    """World of an episode, with access to all its parts."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.rng = rng
        self.line = Timeline()
        self.trace = Trace(self.line)
        self.host = HostTime()
        self.host_up = True
        self.main = self.new_slot(self.host, FIRST)
        self.beside = self.new_slot(self.host, FIRST)
        """Slot of the watchdog's passes while a tick waits."""
        self.at_work = self.main
        self.gate = self.main.gate
        self.pays_twice = False
        """True if chunks may be done again: imitated rules, or two schedulers on a borrowed instance."""
        self.bucket = Bucket(self.line, url="memory://simulated")
        self.cloud = Cloud(self.line)
        self.machine = self.cloud.add(INSTANCE, instance_type=TYPE)
        self.cloud.add(FOREIGN, instance_type=TYPE)
        self.guard = FakeGuard(self.line, self.cloud.begin_stop, plan=self.line.at)
        self.trouble = Trouble(rng, self.line, weather)
        self.uploads = Uploads(rng, self.line, self.bucket, weather)
        self.people = ManualUsers(rng, self.line, self.cloud, INSTANCE)
        self.checker = Checker(self.gate, self.line, self.cloud, self.bucket, self.guard, ours=INSTANCE)
        self.lock = KernelLock(lambda text: self.gate.violated("I6", text))
        self.policy = draw_policy(rng, weather)
        self.ledger = self.new_ledger(self.main.gate)
        self.others: tuple[LedgerSeam, ...] = ()
        """Ledgers of other hosts."""
        self.settings: Settings | None = None
        self.on_save: Callable[[Run], object] = lambda _run: None
        self._weather = weather
        self.cloud.refused_types = frozenset(each for each in OTHERS if rng.random() < weather.refused_types)
        self._pace = between(rng, 20.0, 150.0)
        self._waits = Waits(poll=pick(rng, (20.0, 40.0)), describe=pick(rng, (30.0, 60.0)))
        self.gpu_host = self._make_host()
        self.promises = Promises(self.gate, self.line, self.machine, self.gpu_host, self._waits)
        self._wire()
        self._ids = self._pids = 0
        self.true_scanner = Scanner(self.bucket, self.bucket, clock=self.line)
        self.types = pick(rng, ((), OTHERS))
        self.lane = self._make_lane() if weather.lane and rng.random() < weather.lane else None
        config = self._make_config()
        self.config = self.lane.configure(config) if self.lane else config
        self.wire_worlds()

    def plan(self, hours: float) -> None:
        """Plans uploads, users and faults within `hours`."""
        self.uploads.plan(hours)
        self.people.plan(self._weather, hours)
        self.trouble.plan(hours)
        for _ in range(self._weather.host_partitions):
            self.line.at(between(self.rng, 0.0, hours * HOUR), self._cut_gpu_host)
        self.main.gate.expect(self._weather.crash)
        self.beside.gate.expect(self._weather.crash)

    def begin(self, slot: Slot, name: str) -> None:
        """Begins a new process of the controller."""
        self._pids += 1
        self.trace.add(f"--- {name}{' of the second host' if slot.host == SECOND else ''}")
        slot.interrupted = self.at_work if self.at_work.running else None
        slot.begin(self._pids)
        self._give_way(slot)

    def end(self, slot: Slot) -> None:
        """Ends the process; the one that it interrupted continues, or ends too."""
        slot.end()
        self.lock.bury(slot.pid)
        before = slot.interrupted or self.main
        self._give_way(before)
        self.line.cut = before.running and before.gate.dead

    def kill(self, slot: Slot) -> None:
        """Kills the process with SIGKILL; the kernel frees its lock."""
        self.trace.add(f"process {slot.pid} is killed")
        slot.gate.kill()
        self.line.cut = slot is self.at_work  # a process beside it continues
        self.lock.bury(slot.pid)

    def power_off(self) -> None:
        self.host_up = False
        if self.lane:
            self.lane.power_off()
        for slot in (self.main, self.beside):
            if slot.running:
                slot.gate.kill()
        self.line.cut = self.at_work.running and self.at_work.gate.dead

    def boot(self) -> None:
        """Boots the host after a power loss."""
        self.host.booted = self.line.seconds
        self.host_up = True
        self.promises.booted()

    def _give_way(self, slot: Slot) -> None:
        self.at_work = slot
        if slot.host == FIRST:
            self.ledger.gate = slot.gate
        self.checker.enter(slot.pid, slot.host, slot.clock.now)

    def jump(self, seconds: float) -> None:
        """Sets the host's wall clock by `seconds`; its uptime is unchanged."""
        self.trace.add(f"the host's clock jumps by {seconds:.0f} s")
        self.host.offset += timedelta(seconds=seconds)
        self.checker.jumps.append((self.line.seconds, seconds))
        self.promises.jumped()

    def lose_ledger(self) -> None:
        self.trace.add("the ledger is lost")
        self.replace_ledger(None)

    def replace_ledger(self, older: tuple[LedgerCopy, Memory] | None) -> None:
        self.checker.ledger_lost(FIRST, older[1] if older else None)
        self.promises.ledger_lost()
        self.ledger.close()
        self.ledger = self.new_ledger(self.main.gate)
        if older:
            self.ledger.restore(older[0])
        self.wire_worlds()

    def calm(self) -> None:
        """Ends all faults; a stuck instance stays stuck until it is stopped."""
        self.trace.add("=== calm")
        self._weather = CALM
        self.main.gate.expect(0.0)
        self.beside.gate.expect(0.0)
        self.trouble.calm()
        self.people.leave()
        self.gpu_host.offline_until = 0.0
        if self.host.offset:
            self.jump(-self.host.offset.total_seconds())

    @property
    def is_up(self) -> bool:
        """True if a machine is up for a run of ours."""
        return self.checker.ours(self.machine.holder)

    def _wire(self) -> None:
        self.line.after = self._check
        for slot in (self.main, self.beside):
            self.wire_slot(slot)
        self.cloud.on_change = self.trace.add
        self.cloud.next_start, self.cloud.next_stop = self._draw_start, lambda: between(self.rng, 5.0, 120.0)
        self.cloud.gets_stuck = lambda: self.rng.random() < self._weather.stuck
        self.cloud.on_running = lambda machine: self.gpu_host.begin() if machine is self.machine else None
        self.cloud.on_down = lambda machine: self.gpu_host.end() if machine is self.machine else None
        self.checker.ledgers = lambda: (self.ledger, *self.others)
        self.checker.chunks.uploaded = self.uploads.keys
        self.checker.bills.lag = LONGEST_LAG if self._weather.stale else 0.0
        self.checker.secrets = (SECRET,)
        self.checker.bills.rates = {name: rate.per_hour for name, rate in RATES.items()}
        self.checker.own_type = TYPE
        self.checker.chunks.policy = self.policy
        self.bucket.on_write = self.checker.written
        self.trouble.wrong = self.promises.wrong
        self.promises.ours = self.checker.ours
        self.promises.unwritten = lambda: self.trouble.unwritten
        self.promises.host_up = lambda: self.host_up
        self.promises.elsewhere = lambda run: self.checker.owner(run) == SECOND
        self.lock.process = lambda: self.at_work.pid

    def wire_slot(self, slot: Slot) -> None:
        slot.gate.check = self._check
        slot.gate.trouble, slot.gate.takes = self.trouble.find_error, self.trouble.takes
        slot.gate.limit = HANG_SECONDS
        slot.gate.died = self.promises.died
        slot.clock.pause = partial(self._sleep, slot.gate)

    def _check(self) -> None:
        self.checker.step()
        self.promises.step()

    def _saved(self, run: Run, at: datetime) -> None:
        self.checker.saved(run, at)
        self.promises.saved(run)
        self.on_save(run)

    def _collect(self, kind: str, text: str) -> None:
        self.checker.check_text(kind, text)
        if kind == SENDING:
            self.promises.message_due()
        elif kind == "message":
            title = text.partition("\n")[0]
            self.promises.message_sent(title, self.at_work.host)
            self.checker.chunks.alerted(title)

    def _polled(self, asked: float, at: float, seen: Instance) -> None:
        self.checker.polled(asked, at, seen)
        self.promises.polled()

    def _done_twice(self, key: str) -> None:
        """I5, when a worker finds an existing transcript."""
        if not self.pays_twice:
            self.gate.violated("I5", f"{key} was done, and was done again")

    def new_slot(self, time: HostTime, host: str) -> Slot:
        return Slot(Gate(self.rng, self.line, self.trace), HostClock(self.line, time), host)

    def _sleep(self, gate: Gate, seconds: float) -> None:
        gate.point("sleep", f"{seconds:g}")
        self.line.sleep(seconds)
        gate.keep_alive()
        gate.point("awake")

    def _draw_start(self) -> Start:
        return Start(between(self.rng, 8.0, 90.0), self.rng.random() < self._weather.broken_boot)

    def _cut_gpu_host(self) -> None:
        lasts = pick(self.rng, (2 * MINUTE, 12 * MINUTE, 40 * MINUTE))
        self.gpu_host.offline_until = self.line.seconds + lasts

    def _make_host(self) -> PlayedHost:
        script = WorkerScript(
            seconds=self._draw_seconds,
            fate=self._draw_fate,
            online=lambda: self.gpu_host.online,
            torn=self.trouble.torn,
            published_before=self._done_twice,
            audio_seconds=600.0,
            loaded=20.0,
        )
        gpu_host = PlayedHost(self.line, self.cloud, self.bucket, self.machine, script)
        gpu_host.next_boot, gpu_host.begun = self._draw_boot, self.checker.work_begun
        record = InstanceRecord(
            instance=INSTANCE,
            release=__version__,
            at=self.line.now(),
            boots=self.rng.random() < 0.7,
            shows_tags=True,
        )
        self.bucket.place(keys.instance(INSTANCE), msgspec.json.encode(record))
        return gpu_host

    def _make_lane(self) -> Lane:
        """A lane as fast as estimated or much slower.

        The GPU may finish its chunks first.
        """
        self.pays_twice = True
        slow = pick(self.rng, (1.0, 1.0, 10.0, 100.0))
        script = WorkerScript(
            seconds=lambda: slow * between(self.rng, 2.0, 8.0), fate=self._draw_fate, torn=self.trouble.torn
        )
        return Lane(self.line, self.bucket, script)

    def _draw_boot(self) -> Boot:
        rng, weather = self.rng, self._weather
        lasts = between(rng, 0.0, 20 * MINUTE) if rng.random() < weather.lost_agent else float("inf")
        return Boot(between(rng, 15.0, 60.0), rng.random() < weather.deaf_boot, lasts, rng.random() < 0.5)

    def _draw_fate(self, key: str) -> ChunkFate:
        drawn = self.rng.random()
        if drawn < self._weather.dies:
            return ChunkFate.KILLER
        if drawn < self._weather.dies + self._weather.hangs:
            return ChunkFate.ENDLESS
        return self.uploads.kinds[key]

    def _draw_seconds(self) -> float:
        return self._pace * between(self.rng, 0.5, 1.5)

    def new_ledger(self, gate: Gate) -> LedgerSeam:
        return LedgerSeam(gate, saved=self._saved)

    def _make_config(self) -> RunConfig:
        return RunConfig(
            scheduler="this",
            host=FIRST,
            release=__version__,
            provider="ec2",
            instances=(INSTANCE,),
            access="simulated",
            launch=pick(self.rng, ("auto", "auto", "ssh")),
            policy=self.policy,
            choose_engine=lambda _language: EngineSpec(engine="played"),
            limits=Limits(),
            max_attempts=pick(self.rng, (2, 3)),
            priors=Priors(),
            waits=self._waits,
        )

    def wire_worlds(self) -> None:
        """Rebuilds the world of each process with the current ledger."""
        for slot in (self.main, self.beside):
            world = self.world_of(slot, self.ledger)
            slot.world = self.settings.world(world) if self.settings else world

    def world_of(self, slot: Slot, ledger: LedgerSeam, owner: str = FIRST) -> World:
        """World of one process; `owner` created its scheduler's secret."""
        gate, clock = slot.gate, slot.clock
        store = StoreSeam(self.bucket, gate)
        collector = TextCollector(gate, self._collect)
        compute = CloudApi(self.cloud, self.line, gate)
        compute.lag, compute.refused = self.trouble.lag, self.trouble.refused
        compute.late_tags = self.trouble.late_tags
        compute.polled, compute.acted = self._polled, self.checker.acted
        rates, types = RATES.__getitem__, self.types
        capacity = ExistingInstances(compute=compute, provider="ec2", rate_of=rates, types=types)
        return World(
            clock=clock,
            source=store,
            output=store,
            home=store,
            capacity=capacity,
            launcher=AgentLauncher(store, OverSsh(self.gpu_host, gate, __version__)),
            guard=GuardSeam(self.guard, gate),
            notifier=collector,
            ledger=ledger,
            shield=clock,
            keep_alive=gate.keep_alive,
            elsewhere=lambda world, run: self.lane.world(world) if run.lane and self.lane else world,
            view=collector,
            scanner=lambda manual: Scanner(
                store, store, clock=clock, min_age=timedelta(minutes=0 if manual else 5)
            ),
            preflight=lambda: gate.point("preflight"),
            secret=owner,
            new_run_id=lambda _now: self._new_id(),
            open_rendering=Rendering,
            run_log=lambda _run: nullcontext(),
            report=partial(self._report, gate, ledger),
        )

    def _new_id(self) -> str:
        self._ids += 1
        return f"run-{self._ids:04}"

    def _report(self, gate: Gate, ledger: LedgerSeam, run: Run) -> None:
        gate.point("report", run.id)
        built = report.build(run, events=ledger.events(run.id), samples=[], backlog=None, lock="")
        self._collect("report", report.encode(built).decode())
