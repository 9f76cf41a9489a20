"""Actor that is a run's machine and supervises one worker process.

The worker is a process, since a decoder or an engine that crashes must not end the actor: Ray would repeat
the crash on another node, and no failure would be attributed to the chunk.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

import msgspec
import ray

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.host import HostWaits
from batchscribe.core.run.instances import Claim

CHECK_SECONDS = 5.0
Worker = tuple[str, int]
"""Run and number of a worker."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A machine in Ray's records of actors, whose `repr_name` is its JSON."""

    tags: dict[str, str]
    launched_at: datetime
    """Time of the request for it."""
    address: str
    """Of its node."""


class RayMachine:
    """A detached actor, whose methods return at once.

    The worker runs beside it, by `command`: arguments of Python. The actor ends itself after 10 minutes
    without work, and 3 minutes after its claim's deadline.
    """

    def __init__(self, claim: Claim, launched_at: datetime, command: tuple[str, ...]) -> None:
        self._claim, self._launched_at = claim, launched_at
        self._command = [sys.executable, *command]
        self._clock = SystemClock()
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._queue = ThreadPoolExecutor(max_workers=1)
        self._workers: dict[Worker, Future[None]] = {}
        self._process: subprocess.Popen[str] | None = None
        """Lives on, with its engine, from one finished manifest to the next."""
        threading.Thread(target=self._enforce_limits, daemon=True).start()

    def __repr__(self) -> str:
        """The description of this machine in Ray's records of actors."""
        address = ray.util.get_node_ip_address()
        described = Description(tags=self._claim.tags, launched_at=self._launched_at, address=address)
        return msgspec.json.encode(described).decode()

    def read_version(self) -> str:
        return __version__

    def start(self, worker: Worker, line: str) -> None:
        """Ensures that a worker was started on `line`: `SHA256 URL`."""
        if worker not in self._workers:
            self._workers[worker] = self._queue.submit(self._run_worker, line)

    def is_alive(self, worker: Worker) -> bool | None:
        """True if it runs; None if a restart may have lost it."""
        if worker in self._workers:
            return not self._workers[worker].done()
        return None if self._restarted else False

    def cancel(self, worker: Worker, *, force: bool) -> None:
        """Asks the worker to finish its window and end; `force` kills it."""
        if worker in self._workers and self._workers[worker].running() and self._process is not None:
            self._process.send_signal(signal.SIGKILL if force else signal.SIGTERM)

    def _run_worker(self, line: str) -> None:
        finished = ""
        with suppress(OSError):  # the process could not be started, or ended before it read the line
            finished = self._await_line(line)
        if not finished and self._process is not None:
            self._process.wait()
            self._process = None

    def _await_line(self, line: str) -> str:
        """Line that the process prints for a finished manifest; else empty."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def _enforce_limits(self) -> None:
        waits, idle_since = HostWaits(), self._clock.monotonic()
        left = (self._claim.deadline - self._clock.now()).total_seconds()
        limit = idle_since + left + waits.overtime
        while True:
            self._clock.sleep(CHECK_SECONDS)
            now = self._clock.monotonic()
            if not all(work.done() for work in tuple(self._workers.values())):
                idle_since = now
            if now >= limit or now - idle_since >= waits.first:
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
