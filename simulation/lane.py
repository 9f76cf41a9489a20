"""The CPU of the controller's host, often too slow for its work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchscribe.adapters.existing_instances import ExistingInstances
from batchscribe.adapters.no_guard import NOT_NEEDED, NoGuard
from batchscribe.controller.context import RunConfig, World
from batchscribe.core.decide.money import FREE
from batchscribe.core.decide.offers import CPU, LOCAL, Market
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import Manifest, WorkerRef
from batchscribe.testing.compute import FakeCompute
from batchscribe.testing.launcher import FakeLauncher
from batchscribe.testing.worker import PlayedWorker, WorkerScript
from simulation.seams import Bucket
from simulation.timeline import Timeline

PRIORS = Priors(speed=4.0, setup_seconds=10.0, setup_p95_seconds=20.0, release_seconds=15.0)
AT_ONCE = timedelta(0)


class Lane:
    """The lane's machine and workers; its state outlives the controller's processes."""

    def __init__(self, line: Timeline, bucket: Bucket, script: WorkerScript) -> None:
        self._line = line
        self._bucket = bucket
        self._script = script
        self._workers: dict[tuple[str, int], PlayedWorker] = {}
        compute = FakeCompute(line, pending=AT_ONCE, stopping=AT_ONCE)
        compute.add(LOCAL, instance_type=CPU)
        self._capacity = ExistingInstances(
            compute=compute, provider=LOCAL, rate_of=lambda _type: FREE, own_type=CPU, market=Market.LANE
        )
        self._launcher = FakeLauncher(on_launch=self._launch, on_cancel=self._cancel, on_kill=self._kill)
        self._launcher.is_alive = lambda worker: self._find(worker).alive

    def configure(self, config: RunConfig) -> RunConfig:
        policy = config.policy
        own = replace(
            config,
            provider=LOCAL,
            instances=(LOCAL,),
            access="",
            shared_machine=True,
            policy=replace(policy, max_runtime=min(policy.max_runtime, policy.check_interval)),
            priors=PRIORS,
        )
        return replace(config, lane=own, find_lane_problem=lambda: "")

    def world(self, world: World) -> World:
        """World of a run on the lane."""
        return replace(
            world,
            capacity=self._capacity,
            launcher=self._launcher,
            guard=NoGuard(NOT_NEEDED),
            lag=AT_ONCE,
        )

    def power_off(self) -> None:
        for worker in self._workers.values():
            worker.die()

    def _launch(self, _instance: Instance, manifest: Manifest, _url: str) -> None:
        worker = PlayedWorker(self._line, self._bucket, manifest, self._script)
        self._workers[manifest.run, manifest.worker] = worker

    def _cancel(self, worker: WorkerRef) -> None:
        self._find(worker).ask_to_end()

    def _kill(self, worker: WorkerRef) -> None:
        self._find(worker).die()

    def _find(self, worker: WorkerRef) -> PlayedWorker:
        return self._workers[worker.run, worker.worker]
