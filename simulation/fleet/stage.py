"""The simulated world of a scheduler whose runs create their machines."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import msgspec

from batchscribe import __version__
from batchscribe.adapters.host_access.launcher import AgentLauncher
from batchscribe.controller.context import RunConfig, World
from batchscribe.core import keys
from batchscribe.core.decide.offers import Market
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.host import HostReply, InstanceRecord
from batchscribe.core.run.instances import MACHINE_TAG, Instance, InstanceState
from batchscribe.errors import HostTimeoutError
from batchscribe.testing.compute import CloudMachine
from batchscribe.testing.worker import WorkerScript
from simulation.fleet.cloud import OFFERS, FleetApi, NamedGuard, Tokens
from simulation.fleet.created_host import CreatedHost
from simulation.fleet.rules import SLACK, FleetChecker, FleetPromises
from simulation.hosts import FIRST
from simulation.people import Uploads
from simulation.process import Slot
from simulation.promises import Promises
from simulation.seams import LedgerSeam, StoreSeam
from simulation.stage import INSTANCE, Stage
from simulation.weather import CALM, HOUR, MINUTE, Weather, between, pick

IMAGE = "template"
LONGEST_LOAD = 120.0
"""Less than the time limit of a host on which no worker starts; a chunk may take longer than that."""
NOTICE_SECONDS = 120.0
"""From the notice of a spot interruption to the end of the machine."""


class NoSsh:
    """A host_access.client.HostClient: created machines are never reached over ssh."""

    def ask(self, instance: Instance, word: str, data: bytes = b"", *, timeout: float) -> HostReply:  # noqa: ARG002
        raise HostTimeoutError(f"{instance.id} has no ssh")


class ManyUploads(Uploads):
    """Audio for several machines: some at once, and more during the episode."""

    at_once = 0
    """Number of chunks, if all are there at once."""

    def plan(self, hours: float) -> None:
        if self.at_once:
            for number in range(self.at_once):
                self._line.at(0.0, self._arrival(f"s{number // 20}/chunk-{number:03}.webm"))
            return
        # Many short chunks, so that a slow machine has some to share.
        longest = pick(self._rng, (8, 8, 40))
        for session in range(2 + int(self._rng.random() * 20)):
            begin = pick(self._rng, (0.0, between(self._rng, 0.0, hours * HOUR)))
            for number in range(1, 3 + int(self._rng.random() * longest)):
                self._line.at(begin, self._arrival(f"s{session}/chunk-{number:03}.webm"))
                begin += pick(self._rng, (0.0, between(self._rng, 0.5 * MINUTE, 12 * MINUTE)))


class FleetStage(Stage):
    """A stage with machines that come and go.

    The existing instance of its base is never used.
    """

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.gpu_hosts: dict[str, CreatedHost] = {}
        """Hosts by the id of their machine."""
        self._slow: dict[str, float] = {}
        super().__init__(rng, weather)
        self._pace = pick(rng, (40.0, 150.0, 400.0)) * between(rng, 0.8, 1.2)
        self.tokens = Tokens(rng, self.line, self.cloud)
        self.tokens.lost = self._weather.lost_tokens
        self.uploads = uploads = ManyUploads(rng, self.line, self.bucket, self._weather)
        if weather.at_once and rng.random() < weather.at_once:
            self._pace = 40.0
            work = between(rng, 1.1, 1.6) * self.policy.max_runtime.total_seconds()
            uploads.at_once = int(work / self._pace)
        self.guard = NamedGuard(self.line, self._terminate)
        for slot in (self.main, self.beside):
            slot.gate.longest *= 10  # twenty machines are followed, each by its own reads
        self.checker = FleetChecker(self.gate, self.line, self.cloud, self.bucket, self.guard, ours=INSTANCE)
        self.checker.use(self.tokens.created)
        self.promises = self.bounds = FleetPromises(
            self.gate, self.line, self.machine, self.gpu_host, self._waits
        )
        self._wire()
        self.cloud.on_running, self.cloud.on_down = self._begin_host, self._end_host
        self.bucket.place(keys.instance(IMAGE), msgspec.json.encode(self._image()))
        self.config = self._configure(self.config, 1 + int(rng.random() * weather.fleet))
        self.wire_worlds()

    @property
    def is_up(self) -> bool:
        return any(machine.state is not InstanceState.TERMINATED for machine in self.tokens.created)

    def plan(self, hours: float) -> None:
        super().plan(hours)
        for _ in range(self._weather.interruptions):
            self.line.at(between(self.rng, 0.0, hours * HOUR), self._interrupt)
        for _ in range(self._weather.dry_offers):
            self.line.at(between(self.rng, 0.0, hours * HOUR), self._dry_up)

    def calm(self) -> None:
        super().calm()
        self.tokens.dry.clear()
        self.tokens.lost = 0.0
        for gpu_host in self.gpu_hosts.values():
            gpu_host.offline_until = 0.0

    def world_of(self, slot: Slot, ledger: LedgerSeam, owner: str = FIRST) -> World:
        world = super().world_of(slot, ledger, owner)
        if not hasattr(self, "tokens"):
            return world
        capacity = FleetApi(self.cloud, self.tokens, self.line, slot.gate)
        capacity.lag, capacity.refused = self.trouble.lag, self.trouble.refused
        capacity.polled, capacity.acted = self._polled, self.checker.acted
        launcher = AgentLauncher(StoreSeam(self.bucket, slot.gate), NoSsh())
        return replace(world, capacity=capacity, launcher=launcher)

    def _configure(self, config: RunConfig, most: int) -> RunConfig:
        priors = Priors(speed=600.0 / self._pace, setup_seconds=120.0, setup_p95_seconds=240.0)
        return replace(
            config,
            provider="fleet",
            instances=(),
            max_machines=most,
            image=IMAGE,
            launch="auto",
            priors=priors,
        )

    def _image(self) -> InstanceRecord:
        return InstanceRecord(
            instance=IMAGE, release=__version__, at=self.line.now(), boots=True, shows_tags=True
        )

    # machines

    def _begin_host(self, machine: CloudMachine) -> None:
        gpu_host = CreatedHost(self.line, self.cloud, self.bucket, machine, self._script(machine))
        gpu_host.next_boot, gpu_host.begun = self._draw_boot, self.checker.work_begun
        self.gpu_hosts[machine.id] = gpu_host
        promises = Promises(self.gate, self.line, machine, gpu_host, self._waits, slack=SLACK)
        self.bounds.add(promises, self.checker.runs.values())
        gpu_host.begin()

    def _end_host(self, machine: CloudMachine) -> None:
        self.gpu_hosts[machine.id].end()
        self.bounds.each = [each for each in self.bounds.each if each.machine is not machine]

    def _script(self, machine: CloudMachine) -> WorkerScript:
        slow = self.rng.random() < self._weather.slow_machines
        times = pick(self.rng, (3.0, 10.0)) if slow else 1.0
        return WorkerScript(
            seconds=lambda: times * self._draw_seconds(),
            longest_load=LONGEST_LOAD,
            fate=self._draw_fate,
            online=lambda: self.gpu_hosts[machine.id].online,
            torn=self.trouble.torn,
            published_before=self._done_twice,
            audio_seconds=600.0,
            loaded=20.0,
        )

    def _terminate(self, name: str) -> None:
        for machine in self.cloud.list_named(name):
            self.cloud.terminate(machine.id)

    # faults

    def _cut_gpu_host(self) -> None:
        lasts = pick(self.rng, (2 * MINUTE, 12 * MINUTE, 40 * MINUTE))
        running = [gpu_host for gpu_host in self.gpu_hosts.values() if gpu_host.up]
        if running:
            pick(self.rng, running).offline_until = self.line.seconds + lasts

    def _dry_up(self) -> None:
        if self._weather is not CALM:
            name = pick(self.rng, OFFERS).name
            self.tokens.dry[name] = self.line.seconds + between(self.rng, 0.1 * HOUR, 2 * HOUR)

    def _interrupt(self) -> None:
        """Interrupts a running spot machine; tries again later while there is none."""
        if self._weather is CALM:
            return
        running = [
            each
            for each in self.tokens.created
            if each.state is InstanceState.RUNNING and each.market == Market.SPOT
        ]
        if not running:
            self.line.at(5 * MINUTE, self._interrupt)
            return
        machine = pick(self.rng, running)
        self.trace.add(f"the cloud interrupts {machine.tags[MACHINE_TAG]}")
        self.main.gate.met["a spot machine was interrupted"] += 1
        if self.rng.random() < 0.5:
            self.gpu_hosts[machine.id].notice = "the cloud interrupts this spot machine"
            self.line.at(NOTICE_SECONDS, partial(self.cloud.terminate, machine.id))
        else:
            self.cloud.terminate(machine.id)
        self.promises.wrong(5 * MINUTE)
