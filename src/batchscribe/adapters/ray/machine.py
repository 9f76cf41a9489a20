"""The actor that is a machine of a run: it supervises one worker process on its node.

A process, because a decoder or an engine that crashes must end neither the actor nor, by restarts of Ray,
another node: the controller attributes the crash to its chunk. The process keeps its engine for the machine's
next manifest.
"""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

import ray

from batchscribe import __version__
from batchscribe.adapters.machine.clock import SystemClock
from batchscribe.core.run.host import HostWaits
from batchscribe.core.run.instances import Claim

WORKER_COMMAND = (sys.executable, "-P", "-m", "batchscribe", "worker", "-")
CHECK_SECONDS = 5.0
WAITS = HostWaits()
Worker = tuple[str, int]
"""Run and number of a worker."""


class RayMachine:
    """A detached actor. Each method returns at once: the worker runs beside it.

    It ends itself if it has no work for 10 minutes, and 3 minutes after its claim's deadline: no scheduler
    has to be alive for that.
    """

    def __init__(self, claim: Claim, launched_at: datetime, command: Sequence[str]) -> None:
        """`command` starts a worker that reads manifests from standard input, as `batchscribe worker -`."""
        self._claim = claim
        self._launched_at = launched_at
        self._command = list(command)
        self._clock = SystemClock()
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._known: set[Worker] = set()
        self._open: list[Worker] = []
        """Workers that have not ended, in the order of their manifests; the first one is in the process."""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._idle_since = self._clock.now()
        threading.Thread(target=self._process_lines, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def describe(self) -> tuple[Claim, datetime, str]:
        """The claim, the time of the request for this machine, and the address of its node."""
        return self._claim, self._launched_at, ray.util.get_node_ip_address()

    def read_version(self) -> str:
        """Version of batchscribe on this node."""
        return __version__

    def start(self, worker: Worker, line: str) -> None:
        """Ensures that a worker was started on the manifest that `line` names (`SHA256 URL`)."""
        if worker not in self._known:
            self._known.add(worker)
            self._open.append(worker)
            self._lines.put(line)

    def is_alive(self, worker: Worker) -> bool | None:
        """True if the worker runs; None if an earlier life of this actor, on another node, may have had it."""
        if worker not in self._known and self._restarted:
            return None
        return worker in self._open

    def cancel(self, worker: Worker, *, force: bool) -> None:
        """Asks the worker to finish its window and end; `force` kills it."""
        if self._open[:1] == [worker] and self._process is not None:
            self._process.send_signal(signal.SIGKILL if force else signal.SIGTERM)

    def _process_lines(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._process_line(line)
            except OSError:  # it ended in between: its worker has no exit record, and counts as lost
                self._process = None
            self._idle_since = self._clock.now()
            self._open.pop(0)

    def _process_line(self, line: str) -> None:
        """Waits until the worker process has reported the end of this manifest, or has ended itself."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        if not process.stdout.readline():
            process.wait()
            self._process = None

    def _watch(self) -> None:
        over = self._claim.deadline + timedelta(seconds=WAITS.overtime)
        waiting = threading.Event()
        while not waiting.wait(CHECK_SECONDS):
            now = self._clock.now()
            idle = not self._open and now - self._idle_since > timedelta(seconds=WAITS.first)
            if idle or now > over:
                ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
