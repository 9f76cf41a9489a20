"""A simulated GPU host of a created machine, booted once."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from batchscribe.agent.boot import AgentSeams
from batchscribe.core import keys
from batchscribe.core.run import manifest as wire
from batchscribe.core.run.instances import MACHINE_TAG
from batchscribe.core.run.manifest import Manifest
from batchscribe.testing.compute import Cloud, CloudMachine
from batchscribe.testing.worker import WorkerScript
from simulation.played_host import Boot, PlayedDeadman, PlayedHost
from simulation.seams import Bucket
from simulation.timeline import Timeline


class CreatedDeadman(PlayedDeadman):
    """State files in which a claim replaces the machine's own limit."""

    def __init__(self) -> None:
        super().__init__()
        self._run = ""

    def record_claim(self, run: str, *, limit: float, now: float) -> float:
        if self._run != run:
            self._run, self.limit = run, None
        return super().record_claim(run, limit=limit, now=now)


class CreatedHost(PlayedHost):
    """Host whose agent takes the claim of its name, or powers off."""

    def __init__(
        self, line: Timeline, cloud: Cloud, bucket: Bucket, machine: CloudMachine, script: WorkerScript
    ) -> None:
        super().__init__(line, cloud, bucket, machine, script)
        self.notice = ""
        """Announced end of the machine by its cloud."""

    @property
    def name(self) -> str:
        return self._machine.tags[MACHINE_TAG]

    def given_at(self, run: str, worker: int) -> float | None:  # noqa: ARG002  the signature of the base
        """Time of the last manifest for this machine without a worker."""
        prefix = keys.manifests(run)
        stored = [key for key in self._bucket.keys(prefix) if key.endswith("/manifest.json")]
        manifests = [wire.decode(self._bucket.get(key).data, Manifest) for key in stored]
        own = [each for each in manifests if each.machine is msgspec.UNSET or each.machine == self.name]
        waiting = [each for each in own if (each.run, each.worker) not in self.workers]
        times = (super(CreatedHost, self).given_at(each.run, each.worker) for each in waiting)
        return max(filter(None, times), default=None)

    def _booted(self, boot: Boot, number: int) -> None:
        if self._boots != number:
            return
        self.up = True
        self._deadman_files = CreatedDeadman()
        self._start_agent(boot)
        self._deadman(self._deadman_files, number)

    def _make_seams(self) -> AgentSeams:
        assert self._deadman_files is not None
        return replace(
            super()._make_seams(),
            machine=lambda: self.name,
            unclaimed=self._deadman_files,
            interruption=lambda: self.notice,
        )
