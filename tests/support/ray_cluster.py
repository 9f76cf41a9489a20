"""A Ray cluster of this machine's processes, in a network and a process namespace of its own.

Ray listens on all addresses, so no test starts it outside of `ENTER`. The namespace of processes ends all of
them with its first one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from support.forked import ENGINES

ENTER = (
    *("unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"),
    *("sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
)
"""Begin of a command line that runs the rest with an empty network but for loopback, as process 1's child."""
INSIDE = "BATCHSCRIBE_RAY_TESTS"
"""Variable with the folder of the cluster's files; set inside of `ENTER` only."""
ADDRESS = "127.0.0.1:6379"
_RAY = Path(sys.executable).with_name("ray")


def make_environment(folder: Path) -> dict[str, str]:
    """For all processes of a cluster: a token, no messages to Ray's makers, and our sources."""
    return {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A node counts as dead after 5 s, not 15.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "2000",
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), ENGINES]),
        INSIDE: str(folder),
    }


@dataclass
class PlayedCluster:
    """A head without a GPU, and nodes with one each (a number for Ray: nothing here has a GPU)."""

    folder: Path
    nodes: list[psutil.Process] = field(default_factory=list)

    def start(self) -> None:
        self._start_ray(
            "--head", "--port=6379", "--num-gpus=0", "--num-cpus=0", f"--temp-dir={self.folder}/ray"
        )

    def add_node(self, *options: str) -> int:
        """Starts a node, and returns its place in `nodes`."""
        before = {process.pid for process in _list_raylets()}
        self._start_ray(f"--address={ADDRESS}", "--num-gpus=1", "--num-cpus=1", *options)
        self.nodes += [process for process in _list_raylets() if process.pid not in before]
        return len(self.nodes) - 1

    def find_machine(self) -> int:
        """Place of the node that the first machine of batchscribe is on."""
        for place, raylet in enumerate(self.nodes):
            titles = [" ".join(process.cmdline()) for process in raylet.children(recursive=True)]
            if any("RayMachine" in title for title in titles):
                return place
        raise AssertionError("no machine is on a node")

    def kill_node(self, place: int) -> None:
        """Ends all processes of a node at once, as a spot interruption does."""
        raylet = self.nodes.pop(place)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    def _start_ray(self, *options: str) -> None:
        argv = [str(_RAY), "start", "--node-ip-address=127.0.0.1", "--disable-usage-stats", *options]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Polls the condition, with a bound for what hangs."""
    for _ in range(1_800):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")


def _list_raylets() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.name() == "raylet"]
