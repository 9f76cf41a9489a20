"""The CPU lane: workers on this machine's processor, after a self-test.

They run in a unit of their own. A tick leaves a request in the state directory, and systemd starts
`batchscribe lane` for it, because the limits of the scheduler's units would hold for its processes. Without
that unit (cron, a shell), they are started as detached processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from batchscribe.adapters.local.launcher import WORKER_COMMAND, LocalLauncher, worker_name
from batchscribe.core.decide.packing import Priors
from batchscribe.core.run.instances import Instance
from batchscribe.core.run.manifest import EngineSpec, Manifest, WorkerRef, digest
from batchscribe.detached import is_running, spawn, write_atomically
from batchscribe.errors import LaunchError
from batchscribe.private_files import make_folder
from batchscribe.protocols import Clock

log = structlog.get_logger("batchscribe")
TEST_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "lane", "--test")
TEST = "self-test"
UNFINISHED = "the self-test did not finish"
"""Recorded before a test: one that kills its process is not repeated by each tick."""
RELEASE_SECONDS = 15.0
POLL_SECONDS = 0.5


class LaneTest(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a self-test; `error` is empty if it passed."""

    spec: EngineSpec
    release: str
    at: datetime
    error: str = ""
    setup_seconds: float = 0.0
    """Until the engine was loaded."""
    speed: float = 0.0
    """Audio seconds for each second of work."""

    @property
    def priors(self) -> Priors:
        """Estimates until runs are measured; a slow start takes twice as long."""
        return Priors(
            speed=max(self.speed, 1e-3),
            setup_seconds=self.setup_seconds,
            setup_p95_seconds=2 * self.setup_seconds,
            release_seconds=RELEASE_SECONDS,
            learned=True,
        )


class LaneRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker to start, or a self-test if `url` is empty."""

    url: str = ""
    sha256: str = ""
    control: str = ""
    """URL of the control objects; empty if they are below the output."""


class LaneFiles:
    """The lane's files in the state directory: requests, and the last self-test."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "lane"
        self.requests = find_requests(state_dir)

    def add_request(self, name: str, request: LaneRequest) -> None:
        """Writes a request atomically: systemd reacts to any file. Raises OSError."""
        make_folder(self.requests)
        draft = self._folder / name
        write_atomically(draft, msgspec.json.encode(request))
        draft.replace(self.requests / name)

    def has_request(self, name: str) -> bool:
        return (self.requests / name).exists()

    def remove_request(self, name: str) -> None:
        (self.requests / name).unlink(missing_ok=True)

    def take_requests(self) -> Iterator[tuple[str, LaneRequest]]:
        """Yields each request; removes it after the block, readable or not."""
        for path in sorted(self.requests.glob("*")) if self.requests.is_dir() else ():
            try:
                yield path.name, msgspec.json.decode(path.read_bytes(), type=LaneRequest)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("lane.request_unreadable", file=str(path), error=str(error))
            finally:
                path.unlink(missing_ok=True)

    def read_test(self) -> LaneTest | None:
        """The last self-test; None without one that this version can read."""
        with suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self._folder / "test.json").read_bytes(), type=LaneTest)
        return None

    def write_test(self, test: LaneTest) -> None:
        write_atomically(self._folder / "test.json", msgspec.json.encode(test))


class LaneLauncher(LocalLauncher):
    """A protocols.Launcher for the lane. With `has_unit`, systemd starts the workers."""

    def __init__(
        self,
        state_dir: Path,
        log_dir: Path,
        *,
        environment: Mapping[str, str],
        has_unit: bool,
        command: Sequence[str] = WORKER_COMMAND,
        control: str = "",
    ) -> None:
        super().__init__(state_dir, log_dir, environment=environment, command=command, control=control)
        self._control = control
        self.files = LaneFiles(state_dir)
        self._has_unit = has_unit

    def launch(self, instance: Instance, manifest: Manifest, url: str) -> None:
        name = worker_name(manifest)
        if not self._has_unit:
            super().launch(instance, manifest, url)
        elif not self._record_path(name).exists():
            self._add_request(name, LaneRequest(url=url, sha256=digest(manifest), control=self._control))

    def alive(self, instance: Instance, worker: WorkerRef) -> bool | None:
        """True if the worker runs; None while the request waits for systemd."""
        return None if self.files.has_request(worker_name(worker)) else super().alive(instance, worker)

    def cancel(self, instance: Instance, worker: WorkerRef, *, force: bool = False) -> None:
        name = worker_name(worker)
        if not self._record_path(name).exists():
            self.files.remove_request(name)
        super().cancel(instance, worker, force=force)

    def request_test(self) -> None:
        """Starts a self-test, by systemd or as a process. Raises LaunchError."""
        if self._has_unit:
            self._add_request(TEST, LaneRequest())
            return
        try:
            spawn(TEST_COMMAND, environment=self._environment, log=self._logs / "lane.log")
        except OSError as error:
            raise LaunchError(f"the self-test of the CPU lane could not be started: {error}") from error

    def run_requested(self, name: str, request: LaneRequest, clock: Clock) -> None:
        """Starts the requested worker and waits until it has ended."""
        self.start(name, request.url, request.sha256)
        self.files.remove_request(name)
        while is_running(self._record_path(name)):
            clock.sleep(POLL_SECONDS)

    def _add_request(self, name: str, request: LaneRequest) -> None:
        try:
            self.files.add_request(name, request)
        except OSError as error:
            raise LaunchError(f"no request could be left in {self.files.requests}: {error}") from error


def find_requests(state_dir: Path) -> Path:
    """Folder of the requests, which the lane's unit watches."""
    return state_dir / "lane" / "requests"
