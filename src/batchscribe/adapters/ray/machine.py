"""The actor that is a machine of a run: it supervises one worker process on its node.

A process, since a decoder or an engine that crashes must not end the actor: Ray would repeat the crash on
another node, and no failure would be attributed to the chunk.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime, timedelta

import ray

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.host import HostWaits
from batchscribe.core.run.instances import Claim

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker", "-")
CHECK_SECONDS = 5.0
Worker = tuple[str, int]
"""Run and number of a worker."""


class RayMachine:
    """A detached actor. Its methods return at once: the worker runs beside it.

    It ends itself after 10 minutes without work, and 3 minutes after its claim's deadline.
    """

    def __init__(self, claim: Claim, launched_at: datetime, control: str, command: tuple[str, ...]) -> None:
        """`command` starts a worker that reads manifests from standard input; see RayCapacity."""
        self._claim, self._launched_at = claim, launched_at
        self._command = [*(command or WORKER_COMMAND), *(("--control", control) if control else ())]
        self._clock = SystemClock()
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._known: set[Worker] = set()
        self._open: list[Worker] = []
        """Workers that have not ended; the first one is in the process."""
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        """Lives on, with its engine, from one finished manifest to the next."""
        self._idle_since = self._clock.now()
        threading.Thread(target=self._watch, daemon=True).start()

    def describe(self) -> tuple[Claim, datetime, str]:
        """The claim, the time of the request for this machine, and the address of its node."""
        return self._claim, self._launched_at, ray.util.get_node_ip_address()

    def read_version(self) -> str:
        return __version__

    def start(self, worker: Worker, line: str) -> None:
        """Ensures that a worker was started on the manifest that `line` names: `SHA256 URL`."""
        if worker not in self._known:
            self._known.add(worker)
            self._open.append(worker)
            threading.Thread(target=self._run_worker, args=(worker, line), daemon=True).start()

    def is_alive(self, worker: Worker) -> bool | None:
        """True if the worker runs; None if it may have been lost with this actor's last node."""
        return worker in self._open or (None if self._restarted and worker not in self._known else False)

    def cancel(self, worker: Worker, *, force: bool) -> None:
        """Asks the worker to finish its window and end; `force` kills it."""
        if self._open[:1] == [worker] and self._process is not None:
            self._process.send_signal(signal.SIGKILL if force else signal.SIGTERM)

    def _run_worker(self, worker: Worker, line: str) -> None:
        with self._turn:
            finished = ""
            with suppress(OSError):  # the process could not be started, or ended before it read the line
                finished = self._await_line(line)
            if not finished and self._process is not None:
                self._process.wait()
                self._process = None
            self._open.remove(worker)
            self._idle_since = self._clock.now()

    def _await_line(self, line: str) -> str:
        """The line that the process prints for a finished manifest; empty if it ended instead."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def _watch(self) -> None:
        waits, waiting = HostWaits(), threading.Event()
        over = self._claim.deadline + timedelta(seconds=waits.overtime)
        while not waiting.wait(CHECK_SECONDS):
            now = self._clock.now()
            idle = not self._open and now - self._idle_since > timedelta(seconds=waits.first)
            if idle or now > over:
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
