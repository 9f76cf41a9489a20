"""A host whose power is moto's: the real agent, real workers, and a poweroff that stops the instance.

Its workers are forks of the nursery.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batchscribe import detached
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.agent.boot import AgentSeams, Boot, HostAgent
from batchscribe.agent.host import GpuHost
from batchscribe.agent.state_files import NoDeadman
from batchscribe.core.run.host import HostClaim, HostPlace, HostWaits
from batchscribe.protocols import Store
from support.forked import nursery

WAITS = HostWaits(linger=3.0, after_report=0.5)


@dataclass
class Power:
    """The state files of one boot; `request_power_off` is the plug."""

    pull: Callable[[], object]
    powers_off: bool = True
    pulled: int = 0

    def record_claim(self, _run: str, *, limit: float, now: float) -> float:
        return limit

    def record_progress(self, now: float) -> None:
        """Has no reader."""

    def delete_claim(self) -> None:
        """There is no dead-man."""

    def request_power_off(self) -> None:
        self.pulled += 1
        self.pull()


@dataclass
class PlayedGpuHost:
    """Boots whenever its instance runs, and finds what it finds."""

    home: Path
    place: HostPlace
    stores: Callable[[str], Store]
    running: Callable[[], bool]
    power: Power
    announced: Callable[[], str | None]
    """Hash of its manifest in its tag."""
    machine: Callable[[], str] | None = None
    """The run's name of it in its tag, if a run created it."""
    boots: int = 0
    trouble: list[BaseException] = field(default_factory=list)

    def live(self, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            try:
                if self.running():
                    self._boot(ended)
            except Exception as error:  # noqa: BLE001  told by the test that owns this thread
                self.trouble.append(error)
                return

    def _boot(self, ended: threading.Event) -> None:
        self.boots += 1
        clock = SystemClock()

        def runs(claim: HostClaim) -> Store:
            return self.stores(claim.output)

        seams = AgentSeams(
            clock=clock,
            workers=GpuHost(self.home, clock),
            deadman_files=lambda _claim: self.power,
            permit=lambda _run: None,
            announced=self.announced,
            home=lambda: self.stores(self.place.home),
            runs=runs,
            machine=self.machine,
            unclaimed=self.power if self.machine else NoDeadman(),
        )
        agent = HostAgent(self.place, Boot(id=os.urandom(4).hex(), at=datetime.now(UTC)), seams)
        while self.running() and not ended.is_set():
            if agent.step() is None:
                break
            ended.wait(0.5)
        while self.running() and not ended.wait(0.2):
            pass
        for process in self.home.glob(".batchscribe/runs/*/*/process.json"):
            detached.ask_to_end(process, force=True)  # without power there are no processes


@contextmanager
def played_gpu_host(host: PlayedGpuHost, environment: Mapping[str, str]) -> Iterator[PlayedGpuHost]:
    """The host, living beside the block; `environment` is what its workers get."""
    folder = host.home / ".batchscribe"
    folder.mkdir(parents=True)
    env = folder / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    env.chmod(0o600)
    ended = threading.Event()
    thread = threading.Thread(target=host.live, args=(ended,), daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detached, "spawn", nursery().spawn)
            yield host
    finally:
        ended.set()
        thread.join(timeout=60)
    assert host.trouble == []
